/**
 * A campaign of damage to stores of classic snapshots, which have no checksum: entries, counts, order, header and length are changed, and the
 * answers are judged by what they would do to a backup.
 *
 * An error is fine, and so is an answer that has all that the undamaged stores' has. A smaller one is wrong, unless the damage is of a kind that
 * docs/guarantees.md says cannot be noticed.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { openCowStore } from '../../src/devicemapper/cow/cow-store.ts'
import { changed } from '../../src/devicemapper/cow/delta.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { collectExtents } from './collect-extents.ts'
import { writeCowStore } from './cow-image.ts'
import type { Extent } from './expected.ts'
import type { Random } from './random.ts'

const BLOCK_BYTES = 4096
const ENTRY_BYTES = 16

/** What docs/guarantees.md lists of stores under "Cannot be noticed". */
export type UnnoticedInStore =
  /** An entry's old chunk became another one that the origin has and no other entry is of. */
  | 'old chunk'
  /** The last entries are gone, as if they had not been written yet; the kernel's count of them is not known. */
  | 'end'
  /** The header has another chunk size, at which the list happens to be empty; the kernel's is not known. */
  | 'chunk size'
  /** What a chunk held was changed, and contents were compared. */
  | 'content'

/** How the stores are asked. */
const ways = ['by hand', 'compared', 'with what the kernel says'] as const
type Way = (typeof ways)[number]

/** Which damage cannot be noticed in which way of asking. */
const excuses: Readonly<Record<Way, readonly UnnoticedInStore[]>> = {
  'by hand': ['old chunk', 'end', 'chunk size'],
  compared: ['old chunk', 'end', 'chunk size', 'content'],
  'with what the kernel says': ['old chunk']
}

interface Mutation {
  readonly name: string
  readonly unnoticed?: UnnoticedInStore
}

/** How often each came, for each kind of damage. */
export type CowTally = Map<string, { refused: number; notSmaller: number; unnoticed: number }>

interface Pair {
  readonly folder: string
  readonly sizeBytes: number
  readonly chunkBytes: number
  readonly chunks: readonly (readonly number[])[]
}

/** Two stores of one origin, with entries of their own and entries in both. */
function writePair(folder: string, random: Random): Pair {
  const chunkBytes = BLOCK_BYTES * random.pick([1, 1, 1, 2, 4])
  const sizeChunks = random.integer(20, 900)
  const some = (count: number) =>
    random.shuffle(Array.from({ length: sizeChunks }, (_, i) => i)).slice(0, Math.min(count, sizeChunks))
  const both = some(random.pick([3, 60, 300]))
  const own = some(random.pick([2, 30])).filter((chunk) => !both.includes(chunk))
  const chunks = [[...own, ...both], both]
  // Some chunks in both hold the same, and comparing leaves them out. Where all is zero, a list read with another chunk size is empty.
  const isBlank = random.chance(0.2)
  const content = (list: readonly number[], value: number) => (index: number) =>
    isBlank ? undefined : Buffer.alloc(chunkBytes, list[index] % 3 === 0 ? 1 : value)
  for (const [i, list] of chunks.entries()) {
    const contents = content(list, i === 0 ? 3 : 5)
    writeCowStore(join(folder, `store-${i}`), { chunkBytes, chunks: list, contents })
  }
  return { folder, sizeBytes: sizeChunks * chunkBytes - random.pick([0, 512, 2048]), chunkBytes, chunks }
}

/**
 * Writes a pair of stores, and damages one of them so many times.
 *
 * @returns what is wrong with answers, or an empty list; `tally` is added to
 */
export async function damageStores(folder: string, random: Random, count: number, tally: CowTally): Promise<string[]> {
  const pair = writePair(folder, random)
  const truth = new Map<Way, readonly Extent[]>()
  for (const way of ways) truth.set(way, await ask(pair, way))
  const faults: string[] = []
  for (let i = 0; i < count; i++) {
    const which = random.integer(0, 1)
    const path = join(folder, `store-${which}`)
    const intact = readFileSync(path)
    const store = { bytes: Buffer.from(intact), entries: pair.chunks[which].length, ...pair }
    const mutation = random.pick(mutations)(store, random)
    writeFileSync(path, store.bytes)
    for (const way of ways) {
      const fault = await judge(pair, way, mutation, truth.get(way) ?? [], tally)
      if (fault !== undefined) faults.push(`${mutation.name} in store ${which}, ${way}: ${fault}`)
    }
    writeFileSync(path, intact)
  }
  return faults
}

async function judge(
  pair: Pair,
  way: Way,
  { name, unnoticed }: Mutation,
  truth: readonly Extent[],
  tally: CowTally
): Promise<string | undefined> {
  const row = `${name} | ${way}`
  const counts = tally.get(row) ?? { refused: 0, notSmaller: 0, unnoticed: 0 }
  tally.set(row, counts)
  const answer = await ask(pair, way).catch((thrown: unknown) => ({ thrown }))
  if ('thrown' in answer) {
    counts.refused++
    const { thrown } = answer
    const isSaid = thrown instanceof DeltamapperError && thrown.code !== 'DM_INTERNAL'
    return isSaid ? undefined : thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)
  }
  if (covers(answer, truth)) {
    counts.notSmaller++
    return undefined
  }
  counts.unnoticed++
  if (unnoticed !== undefined && excuses[way].includes(unnoticed)) return undefined
  return `answered ${JSON.stringify(answer.slice(0, 9))} for ${JSON.stringify(truth.slice(0, 9))}`
}

async function ask({ folder, sizeBytes, chunkBytes, chunks }: Pair, way: Way): Promise<Extent[]> {
  const stores = []
  try {
    for (const i of [0, 1]) stores.push(await openCowStore(join(folder, `store-${i}`)))
    const isKnown = way === 'with what the kernel says'
    const [base, target] = stores.map((store, i) => {
      if (isKnown && store.header.chunkBytes !== chunkBytes) {
        throw new DeltamapperError('DM_METADATA_DAMAGED', 'the kernel has another chunk size', 'as the agent finds')
      }
      return { store, sizeBytes, ...(isKnown && { counted: chunks[i].length }) }
    })
    const compare = way === 'compared' ? { bytes: Infinity, equal: 0, different: 0, left: 0 } : undefined
    return await collectExtents(changed({ base, target, compare }))
  } finally {
    for (const store of stores) await store.close()
  }
}

interface Store extends Pair {
  bytes: Buffer
  readonly entries: number
}

/** Where entry `index` stands. */
function entryAt({ chunkBytes }: Store, index: number): number {
  const perArea = chunkBytes / ENTRY_BYTES
  const area = Math.floor(index / perArea)
  return (1 + area * (perArea + 1)) * chunkBytes + (index % perArea) * ENTRY_BYTES
}

const mutations: readonly ((store: Store, random: Random) => Mutation)[] = [
  (store, random) => {
    const at = entryAt(store, random.integer(0, store.entries - 1))
    const most = Math.ceil(store.sizeBytes / store.chunkBytes) - 1
    store.bytes.writeBigUInt64LE(BigInt(random.integer(0, most)), at)
    return { name: 'old chunk: another one of the origin', unnoticed: 'old chunk' }
  },
  (store, random) => {
    const at = entryAt(store, random.integer(0, store.entries - 1))
    const other = entryAt(store, random.integer(0, store.entries - 1))
    store.bytes.copy(store.bytes, at, other, other + 8)
    return { name: "old chunk: another entry's" }
  },
  (store, random) => {
    const at = entryAt(store, random.integer(0, store.entries - 1))
    const beyond = Math.ceil(store.sizeBytes / store.chunkBytes) + random.integer(0, 3)
    store.bytes.writeBigUInt64LE(random.pick([BigInt(beyond), 2n ** 32n, 2n ** 64n - 1n]), at)
    return { name: 'old chunk: beyond the end' }
  },
  (store, random) => {
    const at = entryAt(store, random.integer(0, store.entries - 1)) + 8
    const now = Number(store.bytes.readBigUInt64LE(at))
    const to = random.pick([now + 1, now - 1, 1, random.integer(1, 600), 2 ** 32 + now].filter((each) => each !== now))
    store.bytes.writeBigUInt64LE(BigInt(to), at)
    return { name: 'new chunk: another place' }
  },
  (store, random) => {
    const at = entryAt(store, random.integer(0, store.entries - 1))
    store.bytes.fill(0, at + 8, at + ENTRY_BYTES)
    // (Of an entry of chunk 0, nothing is left then.)
    const isNothing = store.bytes.readBigUInt64LE(at) === 0n && at === entryAt(store, store.entries - 1)
    return { name: 'new chunk: none', ...(isNothing && { unnoticed: 'end' }) }
  },
  (store, random) => {
    if (store.entries < 2) return { name: 'an entry in the middle is gone' }
    const at = entryAt(store, random.integer(0, store.entries - 2))
    store.bytes.fill(0, at, at + ENTRY_BYTES)
    const perArea = store.chunkBytes / ENTRY_BYTES
    // (The last of a full area: the list ends there.)
    const endsArea = (at % store.chunkBytes) / ENTRY_BYTES === perArea - 1
    return endsArea
      ? { name: 'the last entry of a full area is gone', unnoticed: 'end' }
      : { name: 'an entry in the middle is gone' }
  },
  (store, random) => {
    for (let i = random.integer(1, Math.min(5, store.entries)); i > 0; i--) {
      const at = entryAt(store, store.entries - i)
      store.bytes.fill(0, at, at + ENTRY_BYTES)
    }
    return { name: 'the last entries are gone', unnoticed: 'end' }
  },
  (store, random) => {
    const [one, other] = [0, 1].map(() => entryAt(store, random.integer(0, store.entries - 1)))
    const kept = Buffer.from(store.bytes.subarray(one, one + ENTRY_BYTES))
    store.bytes.copy(store.bytes, one, other, other + ENTRY_BYTES)
    kept.copy(store.bytes, other)
    return { name: 'order: two entries swapped' }
  },
  (store, random) => {
    const [one, other] = [0, 1].map(() => entryAt(store, random.integer(0, store.entries - 1)))
    const kept = Buffer.from(store.bytes.subarray(one, one + 8))
    store.bytes.copy(store.bytes, one, other, other + 8)
    kept.copy(store.bytes, other)
    return { name: 'order: two old chunks swapped', unnoticed: 'content' }
  },
  (store, random) => {
    const at = entryAt(store, store.entries)
    if (at + ENTRY_BYTES <= store.bytes.length) {
      store.bytes.writeBigUInt64LE(BigInt(random.integer(0, 1000)), at)
      store.bytes.writeBigUInt64LE(BigInt(random.integer(1, 1000)), at + 8)
    }
    return { name: 'count: an entry more' }
  },
  (store, random) => {
    const at = random.pick([0, 4, 8])
    store.bytes.writeUInt32LE(random.pick([0, 1, 2, random.uint32()]), at)
    return { name: `header: ${{ 0: 'magic', 4: 'valid', 8: 'version' }[at]}` }
  },
  (store, random) => {
    store.bytes.writeUInt32LE(random.pick([8, 16, 32, 64, 128, 256, 512, 1024, 2048, 24, 1, random.uint32()]), 12)
    return { name: 'header: chunk size', unnoticed: 'chunk size' }
  },
  (store, random) => {
    store.bytes = store.bytes.subarray(0, random.integer(0, store.bytes.length - 1))
    return { name: 'length: cut off' }
  },
  (store, random) => {
    const area =
      store.chunkBytes *
      (1 +
        random.integer(0, Math.floor((store.entries * ENTRY_BYTES) / store.chunkBytes)) *
          (store.chunkBytes / ENTRY_BYTES + 1))
    const at = area + random.integer(0, store.chunkBytes - 1)
    if (at < store.bytes.length) store.bytes[at] ^= 1 << random.integer(0, 7)
    return { name: 'an area: one bit', unnoticed: 'old chunk' }
  },
  (store, random) => {
    const at = random.integer(16, store.chunkBytes - 1)
    store.bytes[at] ^= 1 << random.integer(0, 7)
    return { name: 'header: one bit behind it' }
  },
  (store, random) => {
    const place = store.bytes.readBigUInt64LE(entryAt(store, random.integer(0, store.entries - 1)) + 8)
    store.bytes.fill(random.integer(0, 255), Number(place) * store.chunkBytes, (Number(place) + 1) * store.chunkBytes)
    return { name: 'an old content: overwritten', unnoticed: 'content' }
  }
]

/** Whether every byte of `inner` is in `outer`. */
function covers(outer: readonly Extent[], inner: readonly Extent[]): boolean {
  let i = 0
  for (const [begin, size] of inner) {
    while (i < outer.length && outer[i][0] + outer[i][1] <= begin) i++
    if (i === outer.length || outer[i][0] > begin || outer[i][0] + outer[i][1] < begin + size) return false
  }
  return true
}

/** The sums of the tally for each way of asking: the table that docs/guarantees.md has. */
export function summaryTable(tally: CowTally): string {
  const lines = ways.map((way) => {
    const counts = [...tally].filter(([row]) => row.endsWith(` | ${way}`)).map(([, each]) => each)
    const sum = (of: 'refused' | 'notSmaller' | 'unnoticed') =>
      counts.reduce((all, each) => all + each[of], 0).toLocaleString('en-US')
    return `| ${way} | ${sum('refused')} | ${sum('notSmaller')} | ${sum('unnoticed')} |`
  })
  return ['| asked | refused | nothing missing | smaller, not noticed |', '|---|--:|--:|--:|', ...lines].join('\n')
}

/** The tally for each kind of damage. */
export function tallyTable(tally: CowTally): string {
  const lines = [...tally]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([row, { refused, notSmaller, unnoticed }]) => `| ${row} | ${refused} | ${notSmaller} | ${unnoticed} |`)
  return [
    '| damage | asked | refused | nothing missing | smaller, not noticed |',
    '|---|---|---|---|---|',
    ...lines
  ].join('\n')
}
