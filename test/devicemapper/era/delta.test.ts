import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'

import { openEraMetadata } from '../../../src/devicemapper/era/era-metadata.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { type EraView, writeEraImage } from '../../support/era-image.ts'
import { extentsOfBlocks } from '../../support/era-model.ts'
import type { Extent } from '../../support/expected.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const KIB_64 = 65536
/** 1 TiB of 64 KiB blocks: 16,481 blocks of the era array, 516 of a bitset. */
const BLOCKS = 2 ** 24
const digested = [0, 31, 32, 5_000_000, 5_000_001, 130_303, 130_304, BLOCKS - 1]
const marked = [1, 33, 32_575, 32_576, 130_303, 12_000_000, BLOCKS - 2]

const view: EraView = {
  blocks: BLOCKS,
  currentEra: 12,
  current: { era: 12, bits: BLOCKS, marked: new Set([BLOCKS - 3]) },
  // The older one is from before the device has grown.
  writesets: [
    { era: 10, bits: 9_000_000, marked: new Set([8_000_000]) },
    { era: 11, bits: BLOCKS, marked: new Set(marked) }
  ],
  eras: new Map(digested.map((block, i) => [block, i + 2]))
}
const path = join(folder, 'large.img')
test.before(async () => {
  await writeFile(path, writeEraImage(view).bytes)
})

async function ask(
  t: ExecutionContext,
  sinceEra: number,
  question: { startingOffset?: number; sizeBytes?: number } = {},
  direct = false
) {
  const metadata = await openEraMetadata(path, { direct })
  t.teardown(() => metadata.close())
  const extents = await collectExtents(await metadata.written({ sinceEra, ...question }))
  return { extents, ...metadata.statistics }
}

function expected(blocks: readonly number[], question = {}): Extent[] {
  return extentsOfBlocks(blocks, { blockBytes: KIB_64, sizeBytes: BLOCKS * KIB_64, ...question })
}

test('a device of 1 TiB, all of it', async (t) => {
  const all = [...digested, ...marked, 8_000_000, BLOCKS - 3]
  t.deepEqual((await ask(t, 1)).extents, expected(all))
  t.deepEqual((await ask(t, 1, {}, true)).extents, expected(all))
  t.deepEqual((await ask(t, 5)).extents, expected(all.filter((each) => ![0, 31, 32].includes(each))))
  t.deepEqual((await ask(t, 11)).extents, expected([...marked, BLOCKS - 3]))
})

test('a walk that begins late reads what lies there, and no more', async (t) => {
  const startingOffset = (BLOCKS - 100) * KIB_64
  const { extents, nodesRead } = await ask(t, 1, { startingOffset })
  t.deepEqual(extents, expected([BLOCKS - 3, BLOCKS - 2, BLOCKS - 1]))
  t.true(nodesRead < 200, `${nodesRead} nodes`)
})

test('a walk that ends early reads what lies there, and no more', async (t) => {
  const sizeBytes = 100 * KIB_64 + 512
  const { extents, nodesRead } = await ask(t, 1, { sizeBytes })
  t.deepEqual(extents, expected([0, 1, 31, 32, 33], { sizeBytes }))
  t.true(nodesRead < 200, `${nodesRead} nodes`)
})

test('the first extents are there before most of it is read', async (t) => {
  const metadata = await openEraMetadata(path)
  t.teardown(() => metadata.close())
  const { batches } = await metadata.written({ sinceEra: 1 })
  const iterator = batches[Symbol.asyncIterator]()
  t.false((await iterator.next()).done)
  t.true(metadata.statistics.nodesRead < 500)
  await iterator.return?.()
})

test('a signal that is aborted ends a walk with its reason', async (t) => {
  const metadata = await openEraMetadata(path)
  t.teardown(() => metadata.close())
  const reason = new Error('enough')
  for (const signal of [AbortSignal.abort(reason), AbortSignal.timeout(1)]) {
    const error = await t.throwsAsync(async () => collectExtents(await metadata.written({ sinceEra: 1, signal })))
    t.true(error === reason || error?.name === 'TimeoutError')
  }
})

/** Eras that are told apart wrongly where 32 bits are taken for 31. */
const eraBorders = [1, 2, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 3]
const NEWEST_ERA = 2 ** 32 - 2

/** Values for blocks 0 to `blocks - 1`: gaps, runs of one value, and stretches in which every block has its own, each of any length. */
function patchwork(random: Random, blocks: number, draw: () => number): number[] {
  const values: number[] = []
  while (values.length < blocks) {
    const length = Math.min(2 ** random.integer(0, 9) + random.integer(0, 40), blocks - values.length)
    const kind = random.integer(0, 2)
    const one = draw()
    for (let i = 0; i < length; i++) values.push(kind === 0 ? 0 : kind === 1 ? one : random.chance(0.5) ? draw() : 0)
  }
  return values
}

test('whatever stands side by side, the answer is what it is block by block', async (t) => {
  const image = join(folder, 'patchwork.img')
  const verdicts = { exact: 0, superset: 0 }
  await fc.assert(
    fc.asyncProperty(
      fc.oneof(
        { weight: 5, arbitrary: fc.integer({ min: 1, max: 2500 }) },
        { weight: 1, arbitrary: fc.integer({ min: 130_200, max: 130_400 }) }
      ),
      fc.nat(),
      fc.tuple(fc.constantFrom(...eraBorders), fc.constantFrom(...eraBorders, NEWEST_ERA)),
      fc.record({ size: fc.nat({ max: 100 }), offset: fc.nat({ max: 100 }) }),
      async (blocks, seed, [one, other], parts) => {
        const random = new Random(seed)
        const eras = patchwork(random, blocks, () => random.pick(eraBorders) + random.integer(0, 1))
        const marks = patchwork(random, blocks, () => 1)
        const writeset = new Set([...marks.keys()].filter((block) => marks[block] === 1))
        await writeFile(
          image,
          writeEraImage({
            blocks,
            currentEra: NEWEST_ERA + 1,
            current: { era: NEWEST_ERA + 1, bits: blocks, marked: new Set() },
            writesets: [{ era: NEWEST_ERA, bits: blocks, marked: writeset }],
            eras: new Map(eras.entries())
          }).bytes
        )
        const [sinceEra, untilEra] = [Math.min(one, other), Math.max(one, other)]
        const written = eras.flatMap((era, block) => (era >= sinceEra ? [block] : []))
        if (untilEra === NEWEST_ERA) written.push(...writeset)
        const sizeBytes = Math.ceil((blocks * KIB_64 * (100 - parts.size)) / 100 / 512) * 512
        const startingOffset = Math.floor((sizeBytes * parts.offset) / 100)
        const metadata = await openEraMetadata(image)
        try {
          for (const range of [{ sizeBytes: blocks * KIB_64 }, { sizeBytes, startingOffset }]) {
            const answer = await metadata.written({ sinceEra, untilEra, ...range })
            t.deepEqual(await collectExtents(answer), extentsOfBlocks(written, { blockBytes: KIB_64, ...range }))
            // What lies before the offset is not looked at.
            if ('startingOffset' in range) continue
            const isExact = eras.every((era) => era <= untilEra)
            t.is(answer.isExact(), isExact)
            verdicts[isExact ? 'exact' : 'superset']++
          }
        } finally {
          await metadata.close()
        }
      }
    ),
    { numRuns: 60 }
  )
  t.log(verdicts)
  t.true(verdicts.exact > 0 && verdicts.superset > 0)
})
