/**
 * What every tool's XML has in common on its way to extents. (thin/xml-extents.test.ts and era/xml-extents.test.ts have the rest.)
 */
import test from 'ava'
import { baseEndBlock, endBytes, extentsOfBatches } from '../../src/devicemapper/xml-extents.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { collectExtents } from '../support/collect-extents.ts'

const BLOCK = 65536
type Run = readonly [begin: number, end: number]

async function* batchesOf(...batches: Run[][]): AsyncGenerator<Run[]> {
  yield* batches
}

function addAll(runs: Run[], add: (begin: number, end: number) => void): void {
  for (const [begin, end] of runs) add(begin, end)
}

test('the end in bytes is exact or refused', (t) => {
  t.is(endBytes(2 ** 37 - 1, BLOCK), 2 ** 53 - BLOCK)
  t.throws(() => endBytes(2 ** 37, BLOCK), { instanceOf: DeltamapperError, code: 'DM_METADATA_UNSUPPORTED' })
})

test('only a smaller base has an end that matters', (t) => {
  t.is(baseEndBlock({ sizeBytes: 9 * BLOCK }, BLOCK), Infinity)
  t.is(baseEndBlock({ sizeBytes: 9 * BLOCK, baseSizeBytes: 9 * BLOCK }, BLOCK), Infinity)
  t.is(baseEndBlock({ sizeBytes: 9 * BLOCK, baseSizeBytes: 9 * BLOCK - 1 }, BLOCK), 8)
  t.is(baseEndBlock({ sizeBytes: 9 * BLOCK, baseSizeBytes: 0 }, BLOCK), 0)
  t.throws(() => baseEndBlock({ sizeBytes: 9 * BLOCK, baseSizeBytes: -1 }, BLOCK), { instanceOf: DeltamapperError })
})

test('from some block on everything is in the answer, once, and no further than the end', async (t) => {
  const sizes = { sizeBytes: 20 * BLOCK - 512 }
  const answer = (wholeFrom?: number, startingOffset = 0) =>
    collectExtents(
      extentsOfBatches(
        batchesOf([[2, 4]], [[8, 12]], [[30, 40]]),
        BLOCK,
        { ...sizes, startingOffset },
        addAll,
        wholeFrom
      )
    )
  const [first, second] = [
    [2 * BLOCK, 2 * BLOCK],
    [8 * BLOCK, 4 * BLOCK]
  ] as const
  t.deepEqual(await answer(), [first, second])
  t.deepEqual(await answer(10), [first, [8 * BLOCK, 12 * BLOCK - 512]])
  t.deepEqual(await answer(15), [first, second, [15 * BLOCK, 5 * BLOCK - 512]])
  t.deepEqual(await answer(0), [[0, sizes.sizeBytes]])
  t.deepEqual(await answer(10, 17 * BLOCK + 1), [[17 * BLOCK, 3 * BLOCK - 512]])
  t.deepEqual(await answer(10, sizes.sizeBytes), [])
})
