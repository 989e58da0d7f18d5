/**
 * From runs of blocks to extents: as expected.ts has it, which shares nothing with the sources.
 */
import test from 'ava'
import fc from 'fast-check'
import { DeltamapperError } from '../../../src/errors.ts'
import { readDeltaXml } from '../../../src/devicemapper/thin/delta-xml.ts'
import { readDumpXml } from '../../../src/devicemapper/thin/dump-xml.ts'
import { allocatedExtentsOf, changedExtentsOf } from '../../../src/devicemapper/thin/xml-extents.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { expectedAllocated, expectedDelta, fromStartingOffset } from '../../support/expected.ts'
import { streamOf } from '../../support/read-xml.ts'
import { asPrinted } from '../../support/spell-xml.ts'
import { node } from '../../support/spell-xml.ts'
import type { DeltaKind, DeltaRun } from '../../support/thin-tools.ts'

const BLOCK = 65536
const pool = { uuid: '', time: 1, transaction: 2, data_block_size: 128, nr_data_blocks: 0 }

function deltaXml(runs: readonly DeltaRun[]) {
  const ranges = runs.map(({ kind, begin, length }) => node(kind, { begin, length }))
  return readDeltaXml(
    streamOf(Buffer.from(asPrinted(node('superblock', pool, [node('diff', { left: 1, right: 2 }, ranges)]))))
  )
}

const kind = fc.constantFrom<DeltaKind>('same', 'different', 'left_only', 'right_only')
const runs = fc
  .array(fc.record({ kind, gap: fc.constantFrom(0, 0, 1, 5), length: fc.integer({ min: 1, max: 6 }) }), {
    maxLength: 20
  })
  .map((steps) => {
    let next = 0
    return steps.map(({ kind, gap, length }): DeltaRun => {
      const begin = next + gap
      next = begin + length
      return { kind, begin, length }
    })
  })
/** Around the ends of runs and off block boundaries. */
const size = fc
  .record({ blocks: fc.nat({ max: 140 }), bytes: fc.constantFrom(0, 0, 512, BLOCK - 512) })
  .map(({ blocks, bytes }) => blocks * BLOCK + bytes)

test('a delta is what differs, what only one maps, and what the target maps beyond a smaller base', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      runs,
      size,
      fc.option(size, { nil: undefined }),
      size,
      async (runs, sizeBytes, baseSizeBytes, offset) => {
        const mapped = runs.filter(({ kind }) => kind !== 'left_only').map((run) => ({ ...run, dataBegin: 0, time: 0 }))
        const all = expectedDelta(runs, mapped, { blockSizeBytes: BLOCK, sizeBytes, baseSizeBytes })
        const ask = async (startingOffset?: number) => {
          const { header, batches } = await deltaXml(runs)
          return collectExtents(changedExtentsOf(batches, header, { sizeBytes, baseSizeBytes, startingOffset }))
        }
        t.deepEqual(await ask(), all)
        if (offset < sizeBytes) t.deepEqual(await ask(offset), fromStartingOffset(all, offset, BLOCK))
      }
    ),
    { numRuns: 300 }
  )
})

test('what is allocated is what one device maps', async (t) => {
  await fc.assert(
    fc.asyncProperty(runs, runs, size, async (one, other, sizeBytes) => {
      const device = (id: number, runs: readonly DeltaRun[]) => {
        const mapped = runs.reduce((sum, { length }) => sum + length, 0)
        const details = { dev_id: id, mapped_blocks: mapped, transaction: 0, creation_time: 0, snap_time: 0 }
        const mappings = runs.map(({ begin, length }) =>
          node('range_mapping', { origin_begin: begin, data_begin: 0, length, time: 0 })
        )
        return node('device', details, mappings)
      }
      const xml = asPrinted(node('superblock', pool, [device(3, one), device(7, other)]))
      const mappings = other.map(({ begin, length }) => ({ begin, dataBegin: 0, length, time: 0 }))
      const { header, batches } = await readDumpXml(streamOf(Buffer.from(xml)))
      t.deepEqual(
        await collectExtents(allocatedExtentsOf(batches, 7, header, { sizeBytes })),
        expectedAllocated(mappings, { blockSizeBytes: BLOCK, sizeBytes })
      )
    }),
    { numRuns: 100 }
  )
})

test('a device that is not there is an error, not an empty answer', async (t) => {
  const { header, batches } = await readDumpXml(streamOf(Buffer.from(asPrinted(node('superblock', pool)))))
  await t.throwsAsync(collectExtents(allocatedExtentsOf(batches, 7, header, { sizeBytes: BLOCK })), {
    instanceOf: DeltamapperError,
    code: 'DM_DEVICE_NOT_FOUND'
  })
})

test('an offset beyond the end is refused, one at the end gives nothing', async (t) => {
  const { header, batches } = await deltaXml([{ kind: 'different', begin: 0, length: 4 }])
  t.throws(() => changedExtentsOf(batches, header, { sizeBytes: BLOCK, startingOffset: BLOCK + 1 }), {
    instanceOf: DeltamapperError,
    code: 'DM_OFFSET_OUT_OF_RANGE'
  })
  t.deepEqual(
    await collectExtents(changedExtentsOf(batches, header, { sizeBytes: BLOCK + 512, startingOffset: BLOCK + 512 })),
    []
  )
})

test('bytes beyond 2^53 are refused, never rounded', async (t) => {
  const { header, batches } = await deltaXml([{ kind: 'different', begin: 2 ** 37 - 2, length: 2 ** 39 }])
  const sizeBytes = Number.MAX_SAFE_INTEGER
  const begin = (2 ** 37 - 2) * BLOCK
  t.deepEqual(await collectExtents(changedExtentsOf(batches, header, { sizeBytes })), [[begin, sizeBytes - begin]])
  t.throws(() => changedExtentsOf(batches, header, { sizeBytes: 2 ** 53 }), { instanceOf: DeltamapperError })
  t.throws(() => changedExtentsOf(batches, header, { sizeBytes: BLOCK, baseSizeBytes: -1 }), {
    instanceOf: DeltamapperError
  })
})
