/** Names, numbers and tables: what is refused before it comes to the kernel. */
import test from 'ava'
import fc from 'fast-check'
import { DeltamapperError } from '../../src/errors.ts'
import {
  checkName,
  checkReference,
  checkTable,
  checkUuid,
  decodeDeviceNumber,
  describeDevice,
  nodeName,
  type TableRow
} from '../../native/device.ts'

const invalid = { instanceOf: DeltamapperError, code: 'DM_ARGUMENT_INVALID' }
const row = (startSector: number, lengthSectors: number, more: Partial<TableRow> = {}): TableRow => ({
  startSector,
  lengthSectors,
  targetType: 'zero',
  params: '',
  ...more
})

test('a device number survives the kernel encoding', (t) => {
  // new_encode_dev in linux/kdev_t.h, in arithmetic that cannot overflow
  const encode = (major: number, minor: number) => (minor % 256) + major * 256 + Math.floor(minor / 256) * 2 ** 20
  t.deepEqual(decodeDeviceNumber(encode(254, 3)), { major: 254, minor: 3 })
  fc.assert(
    fc.property(fc.nat(2 ** 12 - 1), fc.nat(2 ** 20 - 1), (major, minor) => {
      t.deepEqual(decodeDeviceNumber(encode(major, minor)), { major, minor })
    })
  )
})

test('a node is named as udev could name it', (t) => {
  t.is(nodeName('vg-pool_tmeta'), 'vg-pool_tmeta')
  t.is(nodeName('a b'), 'a\\x20b')
  t.is(nodeName('é'), '\\xc3\\xa9')
  t.is(nodeName('back\\slash'), 'back\\x5cslash')
  t.is(nodeName('a\\x20b'), 'a\\x20b', 'what is written that way already stays')
})

test('a node name holds only what udev takes, and keeps names apart', (t) => {
  const name = fc.string({ minLength: 1, maxLength: 30, unit: 'binary' }).filter((each) => !each.includes('\\'))
  fc.assert(
    fc.property(name, name, (one, other) => {
      t.regex(nodeName(one), /^[0-9A-Za-z#+\-.:=@_\\]+$/)
      t.is(nodeName(one) === nodeName(other), Buffer.from(one).equals(Buffer.from(other)))
    })
  )
})

test('names and UUIDs that no device can have are refused', (t) => {
  for (const name of ['', '.', '..', 'control', 'a/b', '/dev/mapper/x', 'a\0b', 'x'.repeat(128), 'é'.repeat(64)]) {
    t.throws(() => checkName(name), invalid, JSON.stringify(name))
  }
  for (const name of ['x', 'x'.repeat(127), 'vg-lv', 'a b', '-', '…']) t.notThrows(() => checkName(name), name)
  for (const uuid of ['', 'a/b', 'a\0', 'x'.repeat(129)]) t.throws(() => checkUuid(uuid), invalid)
  t.notThrows(() => checkUuid('x'.repeat(128)))
})

test('a reference is a name, a UUID or a number, and nothing near it', (t) => {
  t.is(describeDevice('pool'), 'pool')
  t.is(describeDevice({ uuid: 'LVM-1' }), 'UUID LVM-1')
  t.is(describeDevice({ major: 254, minor: 7 }), '254:7')
  t.notThrows(() => checkReference({ major: 4095, minor: 1048575 }))
  for (const bad of [
    { major: -1, minor: 0 },
    { major: 4096, minor: 0 },
    { major: 1, minor: 2 ** 20 },
    { major: 1.5, minor: 0 },
    { major: NaN, minor: 0 }
  ]) {
    t.throws(() => checkReference(bad), invalid)
  }
  t.throws(() => checkReference({ uuid: '' }), invalid)
  t.throws(() => checkReference(''), invalid)
})

test('a table has rows without gaps from sector 0, in exact numbers', (t) => {
  t.notThrows(() => checkTable([row(0, 8), row(8, 1)]))
  t.notThrows(() => checkTable([row(0, Number.MAX_SAFE_INTEGER)]))
  const refused: Record<string, TableRow[]> = {
    empty: [],
    'not at 0': [row(8, 8)],
    gap: [row(0, 8), row(9, 8)],
    overlap: [row(0, 8), row(7, 8)],
    'empty row': [row(0, 0)],
    negative: [row(0, -8)],
    fraction: [row(0, 0.5)],
    'too long': [row(0, Number.MAX_SAFE_INTEGER), row(Number.MAX_SAFE_INTEGER, 1)],
    'no type': [row(0, 8, { targetType: '' })],
    'type of two words': [row(0, 8, { targetType: 'thin pool' })],
    'type too long': [row(0, 8, { targetType: 'x'.repeat(16) })],
    NUL: [row(0, 8, { params: 'a\0b' })]
  }
  for (const [what, rows] of Object.entries(refused)) t.throws(() => checkTable(rows), invalid, what)
})
