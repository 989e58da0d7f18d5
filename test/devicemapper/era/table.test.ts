/** Era tables as the kernel prints them, and what it never would. */
import test from 'ava'
import fc from 'fast-check'
import { formatEraTable, parseEraTable } from '../../../src/devicemapper/era/table.ts'
import { DeltamapperError } from '../../../src/errors.ts'

test('a table as the kernel prints it', (t) => {
  t.deepEqual(parseEraTable('7:1 254:0 128'), {
    metadataDevice: { major: 7, minor: 1 },
    originDevice: { major: 254, minor: 0 },
    blockSectors: 128
  })
})

test('what is written is read back', (t) => {
  const device = fc.record({
    major: fc.integer({ min: 0, max: 4095 }),
    minor: fc.integer({ min: 0, max: 2 ** 20 - 1 })
  })
  const table = fc.record({
    metadataDevice: device,
    originDevice: device,
    blockSectors: fc.integer({ min: 1, max: 2 ** 29 - 1 }).map((each) => each * 8)
  })
  fc.assert(fc.property(table, (each) => t.deepEqual(parseEraTable(formatEraTable(each)), each) ?? true))
})

test('what no kernel prints is refused', (t) => {
  const lines = [
    '',
    '7:1 254:0',
    '7:1 254:0 0',
    '7:1 254:0 12',
    '7:1 254:0 128 1',
    '/dev/a 254:0 128',
    '7:1 254:0 4294967296'
  ]
  for (const line of lines) {
    t.throws(() => parseEraTable(line), { instanceOf: DeltamapperError, code: 'DM_STATUS_UNKNOWN' }, line)
  }
})

test('blocks that cannot be are not written', (t) => {
  const device = { major: 7, minor: 0 }
  for (const blockSectors of [0, 1, 12, -8, 8.5, 2 ** 32, NaN]) {
    const table = { metadataDevice: device, originDevice: device, blockSectors }
    t.throws(() => formatEraTable(table), { instanceOf: DeltamapperError, code: 'DM_ARGUMENT_INVALID' })
  }
})
