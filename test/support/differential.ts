/**
 * Two engines asked the same about a pool: our own reading of the metadata, and Debian's tools. What they do not agree on is made small,
 * and kept. The tests do it with a few pools, `npm run differential` with many.
 */
import { copyFile, mkdir, mkdtemp, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { openPoolMetadata, type PoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { type CheckOutcome, crossChecked, describeDifference } from '../../src/devicemapper/tools/cross-check.ts'
import type { ToolCommand } from '../../src/devicemapper/tools/tool.ts'
import { toolAnswer } from '../../src/devicemapper/tools/tool-answer.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { writeMetadataImage } from './metadata-image.ts'
import type { TreeShape } from './persistent-tree.ts'
import { type Mapping, PoolModel } from './pool-model.ts'
import { Random } from './random.ts'
import type { TestPool } from './random-pool.ts'
import { thinDump } from './thin-tools.ts'

export interface DifferentialQuestion {
  /** Thin device ids; without a base, what the target has allocated. */
  readonly base?: number | undefined
  readonly target: number
  /** Bytes. */
  readonly sizeBytes: number
  readonly baseSizeBytes: number
}

export interface DifferentialTally {
  /** Ordered pairs of different devices. */
  readonly pairs: number
  readonly answers: number
  readonly extents: number
  /** Data blocks that thin_delta has called the same beyond a shrunk base, as is expected of it. */
  readonly sameBeyondBase: number
}

export const noTally: DifferentialTally = { pairs: 0, answers: 0, extents: 0, sameBeyondBase: 0 }

export function addTallies(one: DifferentialTally, other: DifferentialTally): DifferentialTally {
  return {
    pairs: one.pairs + other.pairs,
    answers: one.answers + other.answers,
    extents: one.extents + other.extents,
    sameBeyondBase: one.sameBeyondBase + other.sameBeyondBase
  }
}

/** A question on which the engines do not agree, or that the tools could not answer. */
export class EnginesDisagree extends Error {
  override name = 'EnginesDisagree'
  readonly pool: TestPool
  readonly question: DifferentialQuestion

  constructor(pool: TestPool, question: DifferentialQuestion, outcome: CheckOutcome) {
    super(`${pool.name}, ${JSON.stringify(question)}: ${describeOutcome(outcome)}`)
    this.pool = pool
    this.question = question
  }
}

/**
 * Asks both engines for everything: what each device has allocated, and what has changed between each ordered pair.
 *
 * @throws EnginesDisagree at the first question on which they do not agree
 */
export async function compareEngines(pool: TestPool, command: ToolCommand, seed: number): Promise<DifferentialTally> {
  const random = new Random(seed)
  const metadata = await openPoolMetadata(pool.path, { liveRoot: !pool.metadataSnapshot })
  let tally = noTally
  try {
    const ends = new Map<number, number>()
    for (const id of pool.deviceIds) ends.set(id, await metadata.mappedEnd(await metadata.device(id)))
    for (const target of pool.deviceIds) {
      for (const base of [undefined, ...pool.deviceIds.filter((id) => id !== target)]) {
        const question = { base, target, ...sizes(random, pool, ends.get(target) ?? 0, base, target) }
        const { outcome, sameBeyondBase } = await askBoth(metadata, question, command)
        if (outcome.check !== 'agreed') throw new EnginesDisagree(pool, question, outcome)
        const pairs = base === undefined ? 0 : 1
        tally = addTallies(tally, { pairs, answers: 1, extents: outcome.extents, sameBeyondBase })
      }
    }
  } finally {
    await metadata.close()
  }
  return tally
}

/** Sizes as they were, where the pool's history tells; else all that is mapped, or less of target or base. */
function sizes(random: Random, { sizes: known }: TestPool, end: number, base: number | undefined, target: number) {
  const within = () => random.integer(Math.min(1, end), end)
  const drawn = random.pick([
    { sizeBytes: end, baseSizeBytes: end },
    { sizeBytes: end, baseSizeBytes: within() },
    { sizeBytes: within(), baseSizeBytes: within() }
  ])
  const [targetSize, baseSize] = [known?.get(target), base === undefined ? undefined : known?.get(base)]
  if (targetSize === undefined || random.chance(0.5)) return drawn
  return { sizeBytes: targetSize, baseSizeBytes: baseSize ?? targetSize }
}

/** One question, asked of both. */
async function askBoth(
  metadata: PoolMetadata,
  { base, target, sizeBytes, baseSizeBytes }: DifferentialQuestion,
  command: ToolCommand
): Promise<{ outcome: CheckOutcome; sameBeyondBase: number }> {
  const native =
    base === undefined
      ? await metadata.allocated({ deviceId: target, sizeBytes })
      : await metadata.delta({ baseId: base, targetId: target, sizeBytes, baseSizeBytes })
  const devices = {
    base: base === undefined ? undefined : { device: await metadata.device(base), sizeBytes: baseSizeBytes },
    target: { device: await metadata.device(target), sizeBytes }
  }
  let sameBeyondBase = () => 0
  let outcome: CheckOutcome | undefined
  const tools = (signal: AbortSignal) => {
    const answer = toolAnswer({ metadata, ...devices, command, signal })
    sameBeyondBase = answer.beyondBase
    return answer.batches
  }
  try {
    const batches = crossChecked(native.batches, tools, (found) => {
      outcome = found
    })
    for await (const { count } of batches) if (count === 0) throw new Error('a batch is empty')
  } catch (error) {
    if (!(error instanceof DeltamapperError && error.code === 'DM_ENGINES_DISAGREE')) throw error
  }
  if (outcome === undefined) throw new Error('nobody has said how it ended')
  return { outcome, sameBeyondBase: sameBeyondBase() }
}

function describeOutcome(outcome: CheckOutcome): string {
  if (outcome.check === 'disagreed') return describeDifference(outcome.first)
  return outcome.check === 'unchecked' ? `the tool gave no answer: ${outcome.why.line}` : 'they agree'
}

/** What is at one virtual block of base and target. */
interface Entry {
  readonly key: number
  readonly base: Mapping | undefined
  readonly target: Mapping | undefined
}

const shapes: readonly TreeShape[] = [
  { leafEntries: 6, internalEntries: 6, split: 'middle' },
  { leafEntries: 252, internalEntries: 252, split: 'middle' }
]

/**
 * Makes a disagreement small and keeps it, in a folder of its own: `metadata.img`, and `disagreement.json`, which says what to ask.
 *
 * The two devices that it is about are made anew, the target as a snapshot of the base; then whatever can go without the disagreement going
 * goes. What does not show in a pool made anew is kept as it is.
 *
 * @param home where the folder is made
 * @returns the folder, and how many blocks base and target map in what is kept; undefined where that is the pool itself
 */
export async function keepSmall(
  { pool, question, message }: EnginesDisagree,
  command: ToolCommand,
  home: string
): Promise<{ folder: string; mappings: number | undefined }> {
  await mkdir(home, { recursive: true })
  const folder = await mkdtemp(join(home, 'disagreement-'))
  const image = join(folder, 'metadata.img')
  const kept = { found: message, liveRoot: !pool.metadataSnapshot, question }
  const say = (what: object) => writeFile(join(folder, 'disagreement.json'), `${JSON.stringify(what, null, 2)}\n`)
  const all = await entriesOf(pool, question)
  for (const shape of shapes) {
    const remade = { ...question, base: question.base === undefined ? undefined : 1, target: 2 }
    const disagrees = async (entries: readonly Entry[]) => {
      await writeFile(image, imageOf(entries, shape, pool.blockSizeBytes))
      const metadata = await openPoolMetadata(image)
      try {
        return (await askBoth(metadata, remade, command)).outcome.check !== 'agreed'
      } finally {
        await metadata.close()
      }
    }
    if (!(await disagrees(all))) continue
    const entries = await reduced(all, disagrees)
    await writeFile(image, imageOf(entries, shape, pool.blockSizeBytes))
    await say({ ...kept, liveRoot: true, question: remade, entries })
    const mappings = entries.reduce(
      (sum, { base, target }) => sum + Number(base !== undefined) + Number(target !== undefined),
      0
    )
    return { folder, mappings }
  }
  await copyFile(pool.path, image)
  await say(kept)
  return { folder, mappings: undefined }
}

/** Asks what was kept in a folder once more. */
export async function askKept(folder: string, command: ToolCommand): Promise<{ agreed: boolean; says: string }> {
  const { question, liveRoot } = JSON.parse(await readFile(join(folder, 'disagreement.json'), 'utf8')) as {
    question: DifferentialQuestion
    liveRoot: boolean
  }
  const metadata = await openPoolMetadata(join(folder, 'metadata.img'), { liveRoot })
  try {
    const { outcome } = await askBoth(metadata, question, command)
    return { agreed: outcome.check === 'agreed', says: `${JSON.stringify(question)}: ${describeOutcome(outcome)}` }
  } finally {
    await metadata.close()
  }
}

/** What the two devices of a question map, as thin_dump says. */
async function entriesOf(
  { path, metadataSnapshot }: TestPool,
  { base, target }: DifferentialQuestion
): Promise<Entry[]> {
  const { devices } = await thinDump(path, { metadataSnapshot })
  const mapped = (id: number | undefined) => {
    const runs = id === undefined ? [] : (devices.get(id)?.mappings ?? [])
    return new Map(
      runs.flatMap(({ begin, dataBegin, length, time }) =>
        Array.from({ length }, (_, i): [number, Mapping] => [begin + i, { block: dataBegin + i, time }])
      )
    )
  }
  const [ofBase, ofTarget] = [mapped(base), mapped(target)]
  const keys = [...new Set([...ofBase.keys(), ...ofTarget.keys()])].sort((one, other) => one - other)
  return keys.map((key) => ({ key, base: ofBase.get(key), target: ofTarget.get(key) }))
}

/** A pool with a base, device 1, and a snapshot of it, device 2, in which what differs was written or discarded afterwards. */
function imageOf(entries: readonly Entry[], shape: TreeShape, blockSizeBytes: number): Uint8Array {
  const random = new Random(1)
  const times = entries.flatMap(({ base, target }) => [base?.time ?? 0, target?.time ?? 0])
  const time = Math.max(0, ...times)
  const model = new PoolModel({ random, shape, dataBlockSizeSectors: blockSizeBytes / 512, time })
  model.createThin(1)
  for (const { key, base } of entries) if (base) model.map(1, key, base)
  model.createSnapshot(2, 1)
  for (const { key, base, target } of entries) {
    if (target === undefined) model.discard(2, key)
    else if (base?.block !== target.block) model.map(2, key, target)
  }
  return writeMetadataImage(model, { random }).bytes
}

/** Leaves out larger and then smaller parts, as long as it still holds (delta debugging, with complements only). */
async function reduced<T>(all: readonly T[], holds: (some: readonly T[]) => Promise<boolean>): Promise<readonly T[]> {
  let some = all
  for (let parts = 2; some.length > 1;) {
    const size = Math.ceil(some.length / parts)
    let shorter: readonly T[] | undefined
    for (let from = 0; from < some.length && shorter === undefined; from += size) {
      const rest = [...some.slice(0, from), ...some.slice(from + size)]
      if (await holds(rest)) shorter = rest
    }
    if (shorter !== undefined) {
      some = shorter
      parts = Math.max(2, parts - 1)
    } else if (size === 1) break
    else parts = Math.min(some.length, 2 * parts)
  }
  return some
}
