/** Pairs of all widths come out of a frame as they went in, and are the same as a leaf's only if each bit is. */
import test from 'ava'
import fc from 'fast-check'
import { FRAME_BYTES, frameBytes } from '../../../src/devicemapper/thin/base-record/format.ts'
import { PairDecoder, PairEncoder } from '../../../src/devicemapper/thin/base-record/packed-pairs.ts'
import { timeAt } from '../../../src/devicemapper/thin/base-record/recorded-pairs.ts'

/** Bits of a data block and of a time, from the beginning of the frame on, and from its middle on. */
const widths = fc.record({ data: fc.integer({ min: 0, max: 40 }), time: fc.integer({ min: 0, max: 24 }) })
const word = fc.integer({ min: 0, max: 2 ** 32 - 1 })
const drawn = fc.record({
  pairs: fc.array(fc.tuple(word, word), { minLength: 1, maxLength: 70 }),
  early: widths,
  late: widths,
  flipped: fc.nat(),
  at: fc.nat()
})

/** The leaf that has pairs of so many bits, one for each of its virtual blocks from 7 on. */
function leafOf({ pairs, early, late }: { pairs: [number, number][]; early: Width; late: Width }) {
  const values = pairs.flatMap(([some, other], i) => {
    const { data, time } = 2 * i < pairs.length ? early : late
    const block = (BigInt(other) * 256n + BigInt(some >>> 24)) & (2n ** BigInt(data) - 1n)
    const pair = block * 2n ** 24n + BigInt((some & 0xffffff) % 2 ** time)
    return [Number(pair & 0xffffffffn), Number(pair >> 32n)]
  })
  const keys = pairs.flatMap((_, i) => [7 + i, 0])
  return {
    words: new Uint32Array([...keys, ...values]),
    node: { isLeaf: true, entries: pairs.length, keys: 0, values: keys.length }
  }
}

interface Width {
  data: number
  time: number
}

test('pairs come out as they went in, and one bit makes them others', (t) => {
  fc.assert(
    fc.property(drawn, ({ flipped, at, ...model }) => {
      const { words, node } = leafOf(model)
      const { entries: count, values } = node
      const encoder = new PairEncoder()
      encoder.begin(count)
      for (let from = 0; from < count; from += 16) {
        encoder.addEntries(words, node, from, Math.min(from + 16, count))
      }
      const bytes = Buffer.allocUnsafeSlow(FRAME_BYTES + frameBytes(count))
      const end = encoder.encode(bytes, 0)
      const { pairs, starts, lengths } = new PairDecoder().decode(bytes.subarray(0, end), count)
      if (!pairs) throw new Error('it has no pairs')
      t.deepEqual([starts[0], lengths[0]], [7, count])
      const own = [...Array(count).keys()].flatMap((i) => [pairs.lowWord(i), pairs.highWord(i)])
      t.deepEqual(own, [...words.subarray(values)])
      t.is(pairs.youngest, Math.max(...[...Array(count).keys()].map((i) => timeAt(pairs, i))))
      const memory = Buffer.from(words.buffer)
      t.true(pairs.isSame(0, count, memory, words, values))
      words[values + (at % (2 * count))] ^= 1 << (flipped % 32)
      t.false(pairs.isSame(0, count, memory, words, values))
    }),
    { numRuns: 2000, includeErrorInReport: true }
  )
})

test('a pair that would be packed into the same word is another', (t) => {
  // Data block 5 at time 0, in 3 bits; in the leaf, data block 5 + 8.
  const { words, node } = leafOf({ pairs: [[5 << 24, 0]], early: { data: 40, time: 24 }, late: { data: 0, time: 0 } })
  const encoder = new PairEncoder()
  encoder.begin(2)
  encoder.addEntries(words, node, 0, 1)
  encoder.add(8, 1, 0, 1)
  const bytes = Buffer.allocUnsafeSlow(frameBytes(2))
  const { pairs } = new PairDecoder().decode(bytes.subarray(0, encoder.encode(bytes, 0)), 2)
  t.deepEqual([bytes[1], bytes[2]], [3, 1])
  const memory = Buffer.from(words.buffer)
  t.true(pairs?.isSame(0, 1, memory, words, node.values))
  words[node.values] = 13 << 24
  t.false(pairs?.isSame(0, 1, memory, words, node.values))
  // 5 | 1 << 3, as data block 13 is.
  words[node.values] = (5 << 24) | 1
  t.false(pairs?.isSame(0, 1, memory, words, node.values))
})

test('bytes that no encoder writes are refused', (t) => {
  const { words, node } = leafOf({
    pairs: [
      [5 << 24, 0],
      [6 << 24, 0]
    ],
    early: { data: 40, time: 24 },
    late: { data: 40, time: 24 }
  })
  const encoder = new PairEncoder()
  encoder.begin(2)
  encoder.addEntries(words, node, 0, 2)
  const bytes = Buffer.allocUnsafeSlow(frameBytes(2))
  const right = bytes.subarray(0, encoder.encode(bytes, 0))
  t.notThrows(() => new PairDecoder().decode(right, 2))
  const spoilt: [at: number, value: number, message: RegExp][] = [
    [1, 0, /cannot hold/],
    [1, 41, /cannot hold/],
    [1, 2, /more than 2 bits/],
    [2, 25, /cannot hold/],
    [1, 34, /cut off|place of none|bits|hold/],
    [4, 3, /cannot hold/],
    [4, 0, /cut off/],
    [8, 0xff, /more than 3 bits/]
  ]
  for (const [at, value, message] of spoilt) {
    const copy = Buffer.from(right)
    copy[at] = value
    t.throws(() => new PairDecoder().decode(aligned(copy), 2), { message }, `byte ${at}`)
  }
  t.throws(() => new PairDecoder().decode(right.subarray(0, right.length - 1), 2))
  t.throws(() => new PairDecoder().decode(right.subarray(0, 3), 2))
  t.throws(() => new PairDecoder().decode(right, 3))
})

/** A copy in memory of its own, as frames are read. */
function aligned(bytes: Buffer): Buffer {
  const own = Buffer.allocUnsafeSlow(bytes.length)
  bytes.copy(own)
  return own
}
