import test from 'ava'
import fc from 'fast-check'
import { mapStyle, VolumeMap } from '../../../src/cli/output/map.ts'

const KIB = 1024
const MIB = 1024 * KIB

test('a map of fixed width', (t) => {
  const map = new VolumeMap(70 * MIB + 100 * KIB, 16)
  map.add(0, 8 * MIB)
  map.add(8 * MIB + 4 * KIB, 4 * KIB)
  map.add(10 * MIB, 180 * KIB)
  map.add(20 * MIB, 300 * KIB)
  map.add(30 * MIB, 10 * MIB)
  map.add(70 * MIB, 100 * KIB)
  t.deepEqual(
    [...map.lines('changed', false)],
    [
      'changed, 512 KiB a cell, 8 MiB a row:  ░ some of it  ▒ a third  ▓ two thirds  █ all',
      '       0 B │████████████████│',
      '     8 MiB │░   ▒           │',
      '    16 MiB │        ▒       │',
      '    24 MiB │            ████│',
      '    32 MiB │████████████████│',
      '    40 MiB │                │',
      '    48 MiB │                │',
      '    56 MiB │                │',
      '    64 MiB │            █│',
      '6 extents, 19472384 bytes (18.6 MiB) changed of 73502720 bytes (70.1 MiB): 26.5 %; complete'
    ]
  )
})

test('any volume fits on 16 rows, and every cell that has a change shows one', (t) => {
  const volume = fc
    .record({
      capacity: fc.oneof(fc.integer({ min: 1, max: 2 ** 31 }), fc.maxSafeNat()),
      columns: fc.constantFrom(16, 64, 128)
    })
    .filter(({ capacity }) => capacity > 0)
  fc.assert(
    fc.property(volume, fc.array(fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.nat(2 ** 40))), (v, picks) => {
      const map = new VolumeMap(v.capacity, v.columns)
      let end = 0
      const changes: [number, number][] = []
      for (const [at, length] of picks.sort(([a], [b]) => a - b)) {
        const offset = Math.max(end + 1, Math.floor(at * v.capacity))
        const size = Math.min(length + 1, v.capacity - offset)
        if (size <= 0) continue
        map.add(offset, size)
        changes.push([offset, size])
        end = offset + size
      }
      const lines = [...map.lines('changed', false)]
      const rows = lines.slice(1, -1).map((line) => line.slice(line.indexOf('│') + 1, -1))
      t.true(rows.length <= 16)
      const cells = [...rows.join('')]
      const cellBytes = Math.max(65536, 2 ** Math.ceil(Math.log2(v.capacity / (v.columns * 16))))
      t.is(cells.length, Math.ceil(v.capacity / cellBytes))
      const touched = (cell: number) =>
        changes.some(([offset, size]) => offset < (cell + 1) * cellBytes && offset + size > cell * cellBytes)
      t.true(cells.every((shade, cell) => (shade !== ' ') === touched(cell)))
    }),
    { numRuns: 50 }
  )
})

test('a volume of nothing has no rows', (t) => {
  t.is([...new VolumeMap(0, 64).lines('allocated', false)].length, 2)
})

test('the style follows the terminal', (t) => {
  t.deepEqual(mapStyle(undefined, {}), { columns: 64, colour: false })
  t.deepEqual(mapStyle(80, {}), { columns: 64, colour: true })
  t.deepEqual(mapStyle(76, {}), { columns: 32, colour: true })
  t.deepEqual(mapStyle(1000, {}), { columns: 128, colour: true })
  t.deepEqual(mapStyle(3, {}), { columns: 16, colour: true })
  t.deepEqual(mapStyle(80, { NO_COLOR: '1' }), { columns: 64, colour: false })
  t.deepEqual(mapStyle(80, { NO_COLOR: '', TERM: 'dumb' }), { columns: 64, colour: false })
})

test('colours change nothing but colours', (t) => {
  const map = new VolumeMap(10 * MIB, 32)
  map.add(MIB, 5 * MIB)
  // eslint-disable-next-line no-control-regex -- escape sequences are what is looked for
  const plain = [...map.lines('changed', true)].map((line) => line.replaceAll(/\u001b\[\d+m/g, ''))
  t.deepEqual(plain, [...map.lines('changed', false)])
})
