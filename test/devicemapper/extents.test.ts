import test from 'ava'
import fc from 'fast-check'

import { ExtentBuilder, type ExtentBatch } from '../../src/devicemapper/extents.ts'

type Extent = [offset: number, size: number]

/** What a batch holds at this moment: its arrays are used again. */
function extentsOf(batch: ExtentBatch | undefined): Extent[] {
  return Array.from({ length: batch?.count ?? 0 }, (_, i) => [batch!.offsets[i], batch!.sizes[i]])
}

/** The rule, naively: every byte of every block, up to the end; neighbours together. */
function naive(blocks: readonly number[], blockBytes: number, sizeBytes: number): Extent[] {
  const extents: Extent[] = []
  for (const block of blocks) {
    const begin = block * blockBytes
    const end = Math.min(begin + blockBytes, sizeBytes)
    const last = extents.at(-1)
    if (last && last[0] + last[1] === begin) last[1] = end - last[0]
    else extents.push([begin, end - begin])
  }
  return extents
}

/** Ascending blocks as gaps between them; 0 is a neighbour. Now and then a run, and a look at what is ready so far. */
const steps = fc.array(
  fc.record({
    gap: fc.oneof({ weight: 3, arbitrary: fc.constant(0) }, fc.nat({ max: 5 }), fc.nat({ max: 2 ** 30 })),
    run: fc.oneof({ weight: 4, arbitrary: fc.constant(1) }, fc.nat({ max: 9 })),
    take: fc.boolean()
  })
)

test('blocks become extents: merged, ascending, cut at the end, whenever they are taken', (t) => {
  fc.assert(
    fc.property(
      steps,
      fc.constantFrom(65536, 3 * 65536, 2 ** 20, 2 ** 30),
      fc.double({ min: 0, max: 1, noNaN: true }),
      (steps, blockBytes, within) => {
        const most = Math.floor(Number.MAX_SAFE_INTEGER / blockBytes)
        const blocks: number[] = []
        const taken: Extent[] = []
        // Where the volume ends: somewhere within the last block that is added.
        const last = steps.reduce((sum, { gap, run }) => sum + gap + run, 0) - 1
        if (last >= most) return
        const sizeBytes = last * blockBytes + Math.max(1, Math.floor(within * blockBytes))
        const builder = new ExtentBuilder(blockBytes, sizeBytes)
        let next = 0
        for (const { gap, run, take } of steps) {
          const begin = next + gap
          next = begin + run
          if (run === 1) builder.add(begin)
          else builder.addRun(begin, next)
          for (let block = begin; block < next; block++) blocks.push(block)
          if (take) taken.push(...extentsOf(builder.take()))
        }
        taken.push(...extentsOf(builder.takeLast()))
        t.deepEqual(taken, naive(blocks, blockBytes, sizeBytes))
      }
    ),
    { numRuns: 500 }
  )
})

test("a node's keys become the same extents, whatever part of it is added at once", (t) => {
  const parts = fc.array(fc.nat({ max: 40 }), { minLength: 1 })
  fc.assert(
    fc.property(steps, parts, fc.nat({ max: 2 ** 12 }), fc.constantFrom(0, 2 ** 32 - 20), (steps, parts, word, low) => {
      const blocks: number[] = []
      let next = low
      for (const { gap, run } of steps) {
        for (let block = next + gap; block < next + gap + run; block++) blocks.push(block)
        next += gap + run
      }
      const words = new Uint32Array(word + 2 * blocks.length)
      blocks.forEach((block, i) => words.set([block % 2 ** 32, Math.floor(block / 2 ** 32)], word + 2 * i))
      const node = { isLeaf: true, entries: blocks.length, keys: word, values: words.length }
      const sizeBytes = next * 65536 - 1
      const builder = new ExtentBuilder(65536, sizeBytes)
      const taken: Extent[] = []
      for (let from = 0, part = 0; from < blocks.length; part++) {
        const to = Math.min(from + parts[part % parts.length] + (part % 2), blocks.length)
        builder.addKeys(words, node, from, to)
        if (part % 3 === 0) taken.push(...extentsOf(builder.take()))
        from = to
      }
      taken.push(...extentsOf(builder.takeLast()))
      t.deepEqual(taken, naive(blocks, 65536, sizeBytes))
    }),
    { numRuns: 500 }
  )
})

test('what may still grow is kept back, so that extents of two batches never touch', (t) => {
  const builder = new ExtentBuilder(65536, 2 ** 40)
  builder.add(0)
  builder.add(1)
  t.is(builder.take(), undefined)
  builder.add(2)
  builder.add(9)
  t.deepEqual(extentsOf(builder.take()), [[0, 3 * 65536]])
  t.is(builder.take(), undefined)
  builder.add(10)
  t.deepEqual(extentsOf(builder.takeLast()), [[9 * 65536, 2 * 65536]])
  t.is(builder.takeLast(), undefined)
})

test('nothing added is nothing', (t) => {
  const builder = new ExtentBuilder(65536, 0)
  builder.addRun(5, 5)
  t.is(builder.take(), undefined)
  t.is(builder.takeLast(), undefined)
})

test('a batch takes any number of extents, and later ones use its memory again', (t) => {
  const builder = new ExtentBuilder(65536, Number.MAX_SAFE_INTEGER)
  const count = 100_000
  for (let i = 0; i <= count; i++) builder.add(2 * i)
  const batch = builder.take()
  t.is(batch?.count, count)
  t.true(extentsOf(batch).every(([offset, size], i) => offset === 2 * i * 65536 && size === 65536))
  for (let i = 0; i < count; i++) builder.add(10 * count + 2 * i)
  t.is(builder.take()?.offsets, batch?.offsets)
})

test('the last byte that fits a double is exact', (t) => {
  const blockBytes = 65536
  const lastBlock = Math.floor(Number.MAX_SAFE_INTEGER / blockBytes)
  const builder = new ExtentBuilder(blockBytes, Number.MAX_SAFE_INTEGER)
  builder.add(lastBlock - 1)
  builder.add(lastBlock)
  const offset = (lastBlock - 1) * blockBytes
  t.deepEqual(extentsOf(builder.takeLast()), [[offset, Number.MAX_SAFE_INTEGER - offset]])
})
