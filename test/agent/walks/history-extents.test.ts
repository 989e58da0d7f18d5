import test from 'ava'
import fc from 'fast-check'
import { firstChunk, historyExtents, type HistoryQuestion } from '../../../src/agent/walks/history-extents.ts'
import { CHUNK_BLOCKS, ChunkWriter, type WrittenChunk } from '../../../src/agent/catalog/store/written-chunks.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { extentsOfBlocks } from '../../support/era-model.ts'

/** Chunks of some bitmaps, in the order in which the catalog gives them, from the one asked for on. */
async function* chunksOf(bitmaps: readonly (readonly number[])[], from: number): AsyncGenerator<WrittenChunk> {
  const chunks = bitmaps.flatMap((blocks) => {
    const writer = new ChunkWriter()
    for (const each of [...new Set(blocks)].sort((a, b) => a - b)) writer.addRun(each, each + 1)
    return writer.takeLast()
  })
  yield* chunks.filter(({ chunk }) => chunk >= from).sort((a, b) => a.chunk - b.chunk)
}

function answer(bitmaps: readonly (readonly number[])[], question: HistoryQuestion) {
  const batches = historyExtents(question, chunksOf(bitmaps, firstChunk(question)))
  return collectExtents({ capacityBytes: question.sizeBytes, batches })
}

const block = fc.oneof(
  fc.constantFrom(0, 1, CHUNK_BLOCKS - 1, CHUNK_BLOCKS, 2 * CHUNK_BLOCKS - 1, 2 * CHUNK_BLOCKS),
  fc.nat({ max: 300 }),
  fc.nat({ max: 3 * CHUNK_BLOCKS })
)

test('the union of the bitmaps, what the base cannot have, no more than the target, from the offset on', async (t) => {
  const bitmaps = fc.array(fc.array(block, { maxLength: 60 }), { maxLength: 5 })
  const size = fc.oneof(fc.nat({ max: 400 * 4096 }), fc.nat({ max: 3 * CHUNK_BLOCKS * 4096 }))
  await fc.assert(
    fc.asyncProperty(
      bitmaps,
      size,
      fc.option(size),
      fc.double({ min: 0, max: 1, noNaN: true }),
      async (all, sizeBytes, least, where) => {
        const leastBytes = least ?? Infinity
        const startingOffset = Math.round(where * sizeBytes)
        // A model of every block that a grown range has would be as large as the range.
        fc.pre(sizeBytes - leastBytes < 3000 * 4096)
        const question = { blockBytes: 4096, sizeBytes, leastBytes, startingOffset }
        const expected = extentsOfBlocks(all.flat(), {
          blockBytes: 4096,
          sizeBytes,
          baseSizeBytes: leastBytes,
          startingOffset
        })
        t.deepEqual(await answer(all, question), expected)
      }
    ),
    { numRuns: 150 }
  )
})

test('a grown range is one extent, from the block on that the base had a part of', async (t) => {
  const grown = { blockBytes: 65536, sizeBytes: 2 ** 44 + 512, leastBytes: 2 ** 30 + 512, startingOffset: 0 }
  t.deepEqual(await answer([[3], [2 ** 14 - 1, 2 ** 14, 2 ** 20]], grown), [
    [3 * 65536, 65536],
    [2 ** 30 - 65536, 2 ** 44 + 512 - 2 ** 30 + 65536]
  ])
  t.deepEqual(await answer([[3]], { ...grown, startingOffset: 2 ** 40 + 5 }), [[2 ** 40, 2 ** 44 + 512 - 2 ** 40]])
  t.deepEqual(await answer([[3]], { ...grown, startingOffset: 2 ** 44 + 512 }), [])
})

test('chunks are asked for no further than they matter', async (t) => {
  let asked = 0
  async function* endless(): AsyncGenerator<WrittenChunk> {
    for (let chunk = 0; ; chunk++) {
      asked++
      const writer = new ChunkWriter()
      writer.addRun(chunk * CHUNK_BLOCKS, chunk * CHUNK_BLOCKS + 1)
      yield* writer.takeLast()
    }
  }
  const sizeBytes = 2 * CHUNK_BLOCKS * 512
  const question = { blockBytes: 512, sizeBytes, leastBytes: sizeBytes, startingOffset: 0 }
  const extents = await collectExtents({ capacityBytes: sizeBytes, batches: historyExtents(question, endless()) })
  t.deepEqual(extents, [
    [0, 512],
    [CHUNK_BLOCKS * 512, 512]
  ])
  t.true(asked <= 4, `${asked} chunks`)
})
