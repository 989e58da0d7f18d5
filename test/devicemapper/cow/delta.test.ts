import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import test from 'ava'
import fc from 'fast-check'

import { openCowStore } from '../../../src/devicemapper/cow/cow-store.ts'
import { changed, type ChangedQuestion, type SnapshotStore } from '../../../src/devicemapper/cow/delta.ts'
import type { CompareBudget } from '../../../src/devicemapper/cow/old-contents.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { naiveStore, writeCowStore } from '../../support/cow-image.ts'
import { BLOCK_BYTES, type ModelSnapshot, randomLife } from '../../support/cow-life.ts'
import type { Extent } from '../../support/expected.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const KIB = 1024
const unlimited = (): CompareBudget => ({ bytes: Infinity, equal: 0, different: 0, left: 0 })

type Rest = Omit<ChangedQuestion, 'base' | 'target'>

/** Asks about two store files. */
async function ask(
  base: { path: string; sizeBytes: number },
  target: { path: string; sizeBytes: number } | undefined,
  rest: Rest = {},
  direct = false
): Promise<Extent[]> {
  const opened: SnapshotStore[] = []
  try {
    for (const each of target ? [base, target] : [base]) {
      opened.push({ store: await openCowStore(each.path, { direct }), sizeBytes: each.sizeBytes })
    }
    return await collectExtents(changed({ base: opened[0], target: opened.at(1), ...rest }))
  } finally {
    for (const { store } of opened) await store.close()
  }
}

const given = (snapshot: ModelSnapshot) => ({ path: snapshot.path, sizeBytes: snapshot.sizeBlocks * BLOCK_BYTES })

/** Blocks of 4 KiB in extents. */
function blocksOf(extents: readonly Extent[]): Set<number> {
  const blocks = new Set<number>()
  for (const [offset, size] of extents) {
    for (let at = offset; at < offset + size; at += BLOCK_BYTES) blocks.add(at / BLOCK_BYTES)
  }
  return blocks
}

/** What the rule says, block by block, from the stores' bytes. */
function byTheRule(base: ModelSnapshot, target: ModelSnapshot): Set<number> {
  const blocks = new Set<number>()
  for (const { path, sizeBlocks } of [base, target]) {
    const { chunkBytes, entries } = naiveStore(readFileSync(path), sizeBlocks * BLOCK_BYTES)
    const ratio = chunkBytes / BLOCK_BYTES
    for (const { oldChunk } of entries) {
      for (let i = 0; i < ratio; i++) blocks.add(Number(oldChunk) * ratio + i)
    }
  }
  const unit = Math.min(base.chunkBlocks, target.chunkBlocks)
  if (base.sizeBlocks < target.sizeBlocks) {
    for (let at = Math.floor(base.sizeBlocks / unit) * unit; at < target.sizeBlocks; at++) blocks.add(at)
  }
  return new Set([...blocks].filter((block) => block < target.sizeBlocks))
}

const ordered = (blocks: Iterable<number>) => [...blocks].sort((a, b) => a - b)
const lives = fc.record({ seed: fc.nat(), direct: fc.boolean(), stretch: fc.constantFrom(undefined, 4096) })

test('any two snapshots of a life: what the rule says, and all that differs from what was backed up', async (t) => {
  let pairs = 0
  await fc.assert(
    fc.asyncProperty(lives, async ({ seed, direct, stretch }) => {
      const origin = randomLife({
        seed,
        pathOf: (i) => join(folder, `rule-${i}`),
        chunkBlocks: [1, 1, 2, 16, 128],
        writesIntoSnapshots: true,
        grows: true
      })
      for (const [i, base] of origin.snapshots.entries()) {
        for (const target of origin.snapshots.slice(i + 1)) {
          const rest = stretch === undefined ? {} : { stretchChunks: stretch }
          const extents = await ask(given(base), given(target), rest, direct)
          t.deepEqual(ordered(blocksOf(extents)), ordered(byTheRule(base, target)))
          const found = blocksOf(extents)
          const content = target.content()
          for (const [block, value] of content.entries()) {
            // (Backed up when it was taken, or later: what was written into it since counts as well.)
            if (value !== base.taken[block] || value !== base.content()[block])
              t.true(found.has(block), `block ${block}`)
          }
          pairs++
        }
      }
    }),
    { numRuns: 60 }
  )
  t.true(pairs > 60)
})

test('chunks of one size, and nobody wrote into a snapshot: compared, the chunks that differ and no others', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      lives,
      fc.constantFrom(1, 2, 16),
      fc.boolean(),
      async ({ seed, direct, stretch }, chunk, grows) => {
        const pathOf = (i: number) => join(folder, `exact-${i}`)
        const origin = randomLife({ seed, pathOf, chunkBlocks: [chunk], writesIntoSnapshots: false, grows })
        for (const [i, base] of origin.snapshots.entries()) {
          for (const target of origin.snapshots.slice(i + 1)) {
            const rest = { compare: unlimited(), ...(stretch !== undefined && { stretchChunks: stretch }) }
            const found = blocksOf(await ask(given(base), given(target), rest, direct))
            const differ = new Set<number>()
            for (const [block, value] of target.taken.entries()) {
              if (value === base.taken[block] && block < Math.floor(base.sizeBlocks / chunk) * chunk) continue
              if (value === base.taken[block] && base.sizeBlocks === target.sizeBlocks) continue
              const first = Math.floor(block / chunk) * chunk
              for (let at = first; at < Math.min(first + chunk, target.sizeBlocks); at++) differ.add(at)
            }
            t.deepEqual(ordered(found), ordered(differ))
          }
        }
      }
    ),
    { numRuns: 60 }
  )
})

test('comparing ends where its budget does: the rest counts as changed', async (t) => {
  const chunks = [5, 9, 2, 30]
  const contents = (value: number) => (index: number) => Buffer.alloc(4096, index === 1 ? value : 7)
  const [base, target] = ['budget-1', 'budget-2'].map((name) => ({ path: join(folder, name), sizeBytes: 40 * 4096 }))
  writeCowStore(base.path, { chunkBytes: 4096, chunks, contents: contents(1) })
  writeCowStore(target.path, { chunkBytes: 4096, chunks, contents: contents(2) })
  const all: Extent[] = [2, 5, 9, 30].map((chunk) => [chunk * 4096, 4096])
  const compared = async (bytes: number) => {
    const budget = { ...unlimited(), bytes }
    return { extents: await ask(base, target, { compare: budget }), budget }
  }
  t.deepEqual(await compared(Infinity), {
    extents: [all[2]],
    budget: { bytes: Infinity, equal: 3, different: 1, left: 0 }
  })
  t.deepEqual(await compared(0), { extents: all, budget: { bytes: 0, equal: 0, different: 0, left: 4 } })
  t.deepEqual(await compared(3 * 8192 + 1), {
    extents: all.slice(2),
    budget: { bytes: 1, equal: 2, different: 1, left: 1 }
  })
})

test('chunks of different sizes are not compared: what both have is counted, in the smaller ones', async (t) => {
  const [base, target] = ['sizes-1', 'sizes-2'].map((name) => ({ path: join(folder, name), sizeBytes: 40 * 4096 }))
  writeCowStore(base.path, { chunkBytes: 8192, chunks: [1, 4] })
  writeCowStore(target.path, { chunkBytes: 4096, chunks: [3, 30] })
  const budget = unlimited()
  t.deepEqual(await ask(base, target, { compare: budget }), [
    [8192, 8192],
    [32768, 8192],
    [30 * 4096, 4096]
  ])
  t.deepEqual(budget, { ...unlimited(), left: 1 })
})

test('offsets round down to a chunk, and the last chunk ends with the volume', async (t) => {
  const base = { path: join(folder, 'offsets'), sizeBytes: 10 * 8192 + 512 }
  writeCowStore(base.path, { chunkBytes: 8192, chunks: [10, 0, 3] })
  const last: Extent = [81920, 512]
  t.deepEqual(await ask(base, undefined), [[0, 8192], [24576, 8192], last])
  t.deepEqual(await ask(base, undefined, { startingOffset: 24577 }), [[24576, 8192], last])
  t.deepEqual(await ask(base, undefined, { startingOffset: 82431 }), [last])
  t.deepEqual(await ask(base, undefined, { startingOffset: 82432 }), [])
  t.deepEqual(await ask(base, undefined, { sizeBytes: 90112, startingOffset: 82432 }), [[81920, 8192]])
  await t.throwsAsync(() => ask(base, undefined, { startingOffset: 82433 }), { code: 'DM_OFFSET_OUT_OF_RANGE' })
  await t.throwsAsync(() => ask(base, undefined, { sizeBytes: -1 }), { code: 'DM_ARGUMENT_INVALID' })
})

test('2^32 chunks and more: several stretches, in the memory of one', async (t) => {
  const sizeBytes = 2 ** 32 * 4 * KIB + 8192
  const top = 2 ** 32 + 1
  const chunks = [top, 0, 2 ** 28 - 1, 2 ** 28, 2 ** 31, 7, 2 ** 32 - 1, 2 ** 32]
  const path = join(folder, 'wide')
  writeCowStore(path, { chunkBytes: 4096, chunks })
  const extents = await ask({ path, sizeBytes }, undefined)
  t.deepEqual(extents, [
    [0, 4096],
    [7 * 4096, 4096],
    [(2 ** 28 - 1) * 4096, 8192],
    [2 ** 31 * 4096, 4096],
    [(2 ** 32 - 1) * 4096, 3 * 4096]
  ])
  writeCowStore(path, { chunkBytes: 4096, chunks: [...chunks, 7] })
  await t.throwsAsync(() => ask({ path, sizeBytes }, undefined), { code: 'DM_METADATA_DAMAGED', message: /chunk 7,/ })
})

test('what a list was found to be is told before the first extent, with the digest of its beginning', async (t) => {
  const path = join(folder, 'digest')
  const sizeBytes = 2000 * 4096
  const read = async (chunks: number[], prefix: number, stretchChunks?: number) => {
    writeCowStore(path, { chunkBytes: 4096, chunks })
    const store = await openCowStore(path)
    let told: unknown
    const refusal = new Error('refused')
    const onRead: ChangedQuestion['onRead'] = (base) => {
      told = base
      throw refusal
    }
    const { batches } = changed({ base: { store, sizeBytes, prefix }, onRead, ...(stretchChunks && { stretchChunks }) })
    t.is(await t.throwsAsync(async () => batches[Symbol.asyncIterator]().next()), refusal)
    const listed = await store.list()
    await store.close()
    return { told: told as { entries: number; digest: string; prefixDigest: string | undefined }, listed }
  }
  const chunks = Array.from({ length: 700 }, (_, i) => i * 2)
  const short = await read(chunks.slice(0, 300), 300)
  t.is(short.told.digest, short.listed.digest)
  t.is(short.told.prefixDigest, short.told.digest)
  for (const stretch of [undefined, 4096]) {
    const long = await read(chunks, 300, stretch)
    t.is(long.told.entries, 700)
    t.is(long.told.prefixDigest, short.told.digest)
    t.is(long.told.digest, long.listed.digest)
    t.is((await read(chunks, 701, stretch)).told.prefixDigest, undefined)
    t.is((await read(chunks, 0, stretch)).told.prefixDigest, (await read([], 0, stretch)).told.digest)
  }
})

/** Each with what is wrong with it; `store` is spoiled before it is read. */
const bad: readonly [name: string, message: RegExp, chunks: readonly number[], spoil: (bytes: Buffer) => void][] = [
  ['an old chunk beyond the end', /entry 1 is of chunk 400/, [1, 400], () => undefined],
  ['an old chunk twice', /entry 2 is of chunk 1, which/, [1, 2, 1], () => undefined],
  ['a new chunk out of place', /chunk is 9, and 3 is its place/, [1, 2, 3], (b) => b.writeUInt32LE(9, 4096 + 24)],
  ['a new chunk twice', /chunk is 2, and 3 is its place/, [1, 2, 3], (b) => b.writeUInt32LE(2, 4096 + 24)],
  ['a new chunk in an area', /chunk is 258, and 3 is its/, [1, 2, 3], (b) => b.writeUInt32LE(258, 4096 + 24)],
  ['a new chunk beyond 2^32', /4294967299, and 3 is/, [1, 2, 3], (b) => b.writeUInt32LE(1, 4096 + 28)],
  ['an empty entry before others', /entry 1 is empty, and/, [1, 2, 3], (b) => b.fill(0, 4096 + 16, 4096 + 32)],
  ['an entry without a place', /entry 2 is at no place/, [1, 2, 3], (b) => b.writeUInt32LE(0, 4096 + 40)],
  ['a header with more behind it', /behind its header/, [1], (b) => b.writeUInt8(1, 300)],
  ['a header that is half valid', /has 2 where/, [1], (b) => b.writeUInt32LE(2, 4)],
  ['chunks of no size', /chunks of 24 sectors/, [1], (b) => b.writeUInt32LE(24, 12)]
]
for (const [name, message, chunks, spoil] of bad) {
  test(`refused before anything is answered: ${name}`, async (t) => {
    const path = join(folder, `bad-${name.replaceAll(/[^a-z]/g, '-')}`)
    writeCowStore(path, { chunkBytes: 4096, chunks })
    const bytes = readFileSync(path)
    spoil(bytes)
    writeFileSync(path, bytes)
    const base = { path, sizeBytes: 400 * 4096 }
    for (const stretchChunks of [undefined, 4096]) {
      await t.throwsAsync(() => ask(base, base, stretchChunks ? { stretchChunks } : {}), {
        code: 'DM_METADATA_DAMAGED',
        message
      })
    }
  })
}

test('a file that ends before what its list calls for', async (t) => {
  const path = join(folder, 'short')
  const chunks = Array.from({ length: 256 }, (_, i) => i)
  const base = { path, sizeBytes: 400 * 4096 }
  const refused = async (bytes: number, message: RegExp) => {
    writeCowStore(path, { chunkBytes: 4096, chunks })
    truncateSync(path, bytes)
    await t.throwsAsync(() => ask(base, undefined), { code: 'DM_METADATA_DAMAGED', message })
  }
  await refused(258 * 4096, /ends where area 1 of its entries is due/)
  await refused(257 * 4096, /entry 255 points beyond its end/)
  await refused(4096, /ends where area 0/)
  await refused(100, /smaller than a header/)
})

test('fewer entries than the kernel has counted; more are not looked at', async (t) => {
  const path = join(folder, 'counted')
  writeCowStore(path, { chunkBytes: 4096, chunks: [4, 2, 6] })
  const counted = async (entries: number) => {
    const store = await openCowStore(path)
    try {
      return await collectExtents(changed({ base: { store, sizeBytes: 40960, counted: entries } }))
    } finally {
      await store.close()
    }
  }
  await t.throwsAsync(() => counted(4), { code: 'DM_METADATA_DAMAGED', message: /3 entries, and 4 were written/ })
  t.is((await counted(3)).length, 3)
  t.deepEqual(await counted(2), [
    [8192, 4096],
    [16384, 4096]
  ])
  t.deepEqual(await counted(0), [])
})

test('stores that are none, and those that the kernel has given up', async (t) => {
  const path = join(folder, 'none')
  const header = (values: number[]) => {
    const bytes = Buffer.alloc(16384)
    for (const [i, value] of values.entries()) bytes.writeUInt32LE(value, 4 * i)
    writeFileSync(path, bytes)
  }
  header([0x70416e53, 0, 1, 8])
  await t.throwsAsync(() => openCowStore(path), { code: 'DM_COW_INVALID' })
  header([0x70416e53, 1, 2, 8])
  await t.throwsAsync(() => openCowStore(path), { code: 'DM_METADATA_UNSUPPORTED' })
  header([0x70416e53, 1, 1, 2048])
  await t.throwsAsync(() => openCowStore(path), { code: 'DM_METADATA_UNSUPPORTED' })
  header([0, 1, 1, 8])
  await t.throwsAsync(() => openCowStore(path), { code: 'DM_METADATA_FOREIGN' })
  header([0x70416e53, 1, 1, 8])
  t.deepEqual(await ask({ path, sizeBytes: 40960 }, undefined), [])
})
