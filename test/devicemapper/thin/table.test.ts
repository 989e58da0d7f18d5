/** Tables as real kernels print them, what is written for them to load, and that the two agree. */
import test from 'ava'
import fc from 'fast-check'
import { DeltamapperError } from '../../../src/errors.ts'
import {
  formatPoolTable,
  formatThinTable,
  parsePoolTable,
  parseThinTable,
  type PoolTable
} from '../../../src/devicemapper/thin/table.ts'

const unknown = { instanceOf: DeltamapperError, code: 'DM_STATUS_UNKNOWN' }
const invalid = { instanceOf: DeltamapperError, code: 'DM_ARGUMENT_INVALID' }
const pool: PoolTable = {
  metadataDevice: { major: 254, minor: 0 },
  dataDevice: { major: 254, minor: 1 },
  blockSectors: 128,
  lowWaterBlocks: 0,
  features: {
    skipBlockZeroing: false,
    ignoreDiscard: false,
    noDiscardPassdown: false,
    readOnly: false,
    errorIfNoSpace: false
  }
}

test('a pool, plain and with features', (t) => {
  t.deepEqual(parsePoolTable('254:0 254:1 128 0 0 '), pool)
  t.deepEqual(parsePoolTable('254:0 254:1 2048 1024 2 skip_block_zeroing error_if_no_space '), {
    ...pool,
    blockSectors: 2048,
    lowWaterBlocks: 1024,
    features: { ...pool.features, skipBlockZeroing: true, errorIfNoSpace: true }
  })
})

test('a thin device, with an external origin and without', (t) => {
  const poolDevice = { major: 254, minor: 4 }
  t.deepEqual(parseThinTable('254:4 0'), { poolDevice, deviceId: 0, externalOrigin: undefined })
  t.deepEqual(parseThinTable('254:4 16777215 7:0'), {
    poolDevice,
    deviceId: 16777215,
    externalOrigin: { major: 7, minor: 0 }
  })
})

test('the table of a thin device says nothing when its pool failed', (t) => {
  for (const params of ['Fail', '-', 'Error']) t.is(parseThinTable(params), undefined)
})

test('what is not understood is refused', (t) => {
  for (const params of [
    '',
    '254:0 254:1 128 0',
    '/dev/mapper/meta 254:1 128 0 0',
    '254:0 254 128 0 0',
    '4096:0 254:1 128 0 0',
    '254:1048576 254:1 128 0 0',
    '254:0 254:1 64 0 0',
    '254:0 254:1 129 0 0',
    '254:0 254:1 2097280 0 0',
    '254:0 254:1 128 -1 0',
    '254:0 254:1 128 0 1',
    '254:0 254:1 128 0 1 compression',
    '254:0 254:1 128 0 1 toString',
    '254:0 254:1 128 0 0 skip_block_zeroing',
    '254:0 254:1 128 0 9007199254740991 read_only'
  ]) {
    t.throws(() => parsePoolTable(params), unknown, params)
  }
  for (const params of ['', '254:4', '254:4 16777216', '254:4 x', '254:4 1 /dev/loop0', '254:4 1 7:0 7:1', 'fail']) {
    t.throws(() => parseThinTable(params), unknown, params)
  }
})

test('what the kernel would refuse is not written', (t) => {
  for (const blockSectors of [0, 64, 129, 2097280, 128.5, NaN]) {
    t.throws(() => formatPoolTable({ ...pool, blockSectors }), invalid, String(blockSectors))
  }
  for (const lowWaterBlocks of [-1, 0.5, 2 ** 53]) t.throws(() => formatPoolTable({ ...pool, lowWaterBlocks }), invalid)
  for (const deviceId of [-1, 2 ** 24, 1.5]) {
    t.throws(() => formatThinTable({ poolDevice: pool.dataDevice, deviceId, externalOrigin: undefined }), invalid)
  }
})

test('what is written reads back', (t) => {
  const device = fc.record({ major: fc.nat(4095), minor: fc.nat(1048575) })
  const table = fc.record({
    metadataDevice: device,
    dataDevice: device,
    blockSectors: fc.integer({ min: 1, max: 16384 }).map((each) => each * 128),
    lowWaterBlocks: fc.maxSafeNat(),
    features: fc.record({
      skipBlockZeroing: fc.boolean(),
      ignoreDiscard: fc.boolean(),
      noDiscardPassdown: fc.boolean(),
      readOnly: fc.boolean(),
      errorIfNoSpace: fc.boolean()
    })
  })
  const thin = fc.record({
    poolDevice: device,
    deviceId: fc.nat(2 ** 24 - 1),
    externalOrigin: fc.option(device, { nil: undefined })
  })
  fc.assert(
    fc.property(table, thin, (one, other) => {
      t.deepEqual(parsePoolTable(formatPoolTable(one)), one)
      t.deepEqual(parseThinTable(formatThinTable(other)), other)
    })
  )
})
