import test from 'ava'
import fc from 'fast-check'
import {
  CHUNK_BLOCKS,
  ChunkUnion,
  ChunkWriter,
  type WrittenChunk
} from '../../../../src/agent/catalog/store/written-chunks.ts'

/** Where chunks and Roaring's containers of 2^16 end, and the last block that there can be. */
const borders = [0, 1, 65_535, 65_536, CHUNK_BLOCKS - 1, CHUNK_BLOCKS, 3 * CHUNK_BLOCKS, 2 ** 31 - 2]

/** Runs by ascending block, that do not touch. */
const runs = fc
  .array(
    fc.tuple(
      fc.oneof(fc.constantFrom(...borders), fc.nat({ max: 4 * CHUNK_BLOCKS })),
      fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 50 }), fc.integer({ min: 1, max: 200_000 }))
    ),
    { maxLength: 30 }
  )
  .map((pairs) => {
    const ascending = pairs
      .map(([begin, length]) => [begin, Math.min(begin + length, 2 ** 31)] as const)
      .sort((a, b) => a[0] - b[0])
    const merged: [number, number][] = []
    for (const [begin, end] of ascending) {
      const last = merged.at(-1)
      if (last && begin <= last[1]) last[1] = Math.max(last[1], end)
      else merged.push([begin, end])
    }
    return merged
  })

function chunksOf(all: readonly (readonly [number, number])[]): WrittenChunk[] {
  const writer = new ChunkWriter()
  const chunks: WrittenChunk[] = []
  for (const [begin, end] of all) {
    writer.addRun(begin, end)
    chunks.push(...writer.take())
  }
  return [...chunks, ...writer.takeLast()]
}

/** The blocks of a chunk, as runs. */
function runsOf(chunks: readonly WrittenChunk[]): [number, number][] {
  const found: [number, number][] = []
  for (const each of chunks) {
    using union = new ChunkUnion(each.chunk)
    union.add(each)
    for (const value of union.blocks()) {
      const block = each.chunk * CHUNK_BLOCKS + value
      const last = found.at(-1)
      if (last && last[1] === block) last[1]++
      else found.push([block, block + 1])
    }
  }
  return found
}

test('what goes in comes out, each chunk on its own and by ascending chunk', (t) => {
  fc.assert(
    fc.property(runs, (all) => {
      const chunks = chunksOf(all)
      t.deepEqual(runsOf(chunks), all)
      t.true(chunks.every((each, i) => each.blocks > 0 && (i === 0 || each.chunk > chunks[i - 1].chunk)))
    }),
    { numRuns: 60 }
  )
})

test('a union has the blocks of all', (t) => {
  const limit = fc.array(fc.nat({ max: CHUNK_BLOCKS - 1 }), { maxLength: 300 })
  fc.assert(
    fc.property(fc.array(limit, { minLength: 1, maxLength: 6 }), (sets) => {
      using union = new ChunkUnion(7)
      const all = new Set<number>()
      for (const set of sets) {
        const blocks = [...new Set(set)].sort((a, b) => a - b)
        const [chunk] = chunksOf(blocks.map((each) => [7 * CHUNK_BLOCKS + each, 7 * CHUNK_BLOCKS + each + 1] as const))
        if (chunk) union.add(chunk)
        for (const each of set) all.add(each)
      }
      const expected = [...all].sort((a, b) => a - b)
      t.deepEqual([...union.blocks()], expected)
      const again = union.toChunk()
      t.is(again.blocks, expected.length)
      using copy = new ChunkUnion(7)
      copy.add(again)
      t.deepEqual([...copy.blocks()], expected)
    }),
    { numRuns: 60 }
  )
})

test('no chunk is larger than 132 KB, whatever was written', (t) => {
  let state = 1
  const writer = new ChunkWriter()
  let [most, blocks] = [0, 0]
  const look = (chunks: WrittenChunk[]) => {
    for (const each of chunks) [most, blocks] = [Math.max(most, each.bytes.length), blocks + each.blocks]
  }
  // Half of all blocks, at random: nothing can be compressed worse.
  for (let block = 0; block < 2 * CHUNK_BLOCKS; block++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    if (state < 2 ** 31) writer.addRun(block, block + 1)
    look(writer.take())
  }
  look(writer.takeLast())
  t.true(blocks > 0.9 * CHUNK_BLOCKS && blocks < 1.1 * CHUNK_BLOCKS)
  t.true(most > 120_000 && most < 132_000, `${most} bytes`)
})

test('the format is the portable one: its bytes are those that the specification gives', (t) => {
  const [array] = chunksOf([[5, 6]])
  // Cookie 12346 without runs, 1 container; key 0, one value; its offset; the value.
  t.is(Buffer.from(array.bytes).toString('hex'), '3a30000001000000' + '00000000' + '10000000' + '0500')
  const [run] = chunksOf([[CHUNK_BLOCKS + 10, CHUNK_BLOCKS + 1010]])
  // Cookie 12347, one container, which is of runs; key 0, 1000 values; one run from 10 on, of 999 more.
  t.is(Buffer.from(run.bytes).toString('hex'), '3b300000' + '01' + '0000e703' + '0100' + '0a00e703')
  t.is(run.chunk, 1)
})

test('what is no bitmap of its chunk is refused', (t) => {
  const [good] = chunksOf([[0, 70_000]])
  const beyond = new Uint8Array(Buffer.from('3a30000001000000' + '10000000' + '10000000' + '0500', 'hex'))
  for (const [bytes, blocks] of [
    [good.bytes, good.blocks - 1],
    [good.bytes.subarray(0, 8), good.blocks],
    [new Uint8Array(), 1],
    [Buffer.from('no bitmap at all'), 1],
    // Its one block is the first of what would be the next chunk.
    [beyond, 1]
  ] as const) {
    using union = new ChunkUnion(0)
    t.throws(() => union.add({ chunk: 0, blocks, bytes }), { code: 'DM_CATALOG_DAMAGED' })
  }
})
