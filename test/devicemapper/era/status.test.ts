/** Status lines of era devices as real kernels print them, and lines that no kernel prints. */
import test from 'ava'
import { parseEraStatus } from '../../../src/devicemapper/era/status.ts'
import { DeltamapperError } from '../../../src/errors.ts'

test('a device without and with a metadata snapshot', (t) => {
  const working = { state: 'working', usedMetadataBlocks: 10, totalMetadataBlocks: 2048, currentEra: 1 } as const
  t.deepEqual(parseEraStatus('8 10/2048 1 -'), { ...working, metadataSnapshot: undefined })
  t.deepEqual(parseEraStatus('8 10/2048 1 7'), { ...working, metadataSnapshot: 7 })
  t.deepEqual(parseEraStatus('8 10/2048 1 - something new'), { ...working, metadataSnapshot: undefined }, 'tomorrow')
})

test('the kernel could not find out', (t) => {
  t.deepEqual(parseEraStatus('Error'), { state: 'unknown' })
  t.deepEqual(parseEraStatus('8 10/2048 Error'), { state: 'unknown' })
})

test('what no kernel prints is refused', (t) => {
  for (const line of ['', '8', '8 10/2048', '8 11/10 1 -', '8 10/2048 x -', '8 10/2048 1', 'Fail']) {
    t.throws(() => parseEraStatus(line), { instanceOf: DeltamapperError, code: 'DM_STATUS_UNKNOWN' }, line)
  }
})
