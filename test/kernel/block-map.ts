/**
 * Answers about a large volume, block by block: what is allocated in a snapshot, what changed between two, and what both become when
 * some blocks are written to or discarded afterwards.
 */
import type { ExtentAnswer } from '../../src/devicemapper/extents.ts'

/** One byte for each block of the volume: 1 where it is allocated or changed. */
export type BlockMap = Uint8Array

/** Collects an answer. Calls `pause` after each batch: a client that takes its time. @throws Error for what is no whole block */
export async function collectBlocks(
  { capacityBytes, batches }: ExtentAnswer,
  blockBytes: number,
  pause: () => Promise<void> | undefined = () => undefined
): Promise<BlockMap> {
  if (capacityBytes === undefined) throw new Error('our own agent always says the capacity')
  const map = new Uint8Array(capacityBytes / blockBytes)
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) {
      const [first, end] = [offsets[i] / blockBytes, (offsets[i] + sizes[i]) / blockBytes]
      if (!Number.isInteger(first) || !Number.isInteger(end))
        throw new Error(`${sizes[i]} bytes at ${offsets[i]} cut a block`)
      map.fill(1, first, end)
    }
    await pause()
  }
  return map
}

/** A device that began as one of the snapshots, and was then written to and discarded in, block by block. */
export interface Offspring {
  /** Index of the snapshot. */
  readonly of: number
  /** What was last done to a block; a written one is a block of its own, like none in any other device. */
  readonly touched: ReadonlyMap<number, 'written' | 'discarded'>
}

/** Everything there is to know about some snapshots that do not change. */
export class KnownAnswers {
  readonly #allocated: readonly BlockMap[]
  /** By base, then target. */
  readonly #deltas: readonly (readonly BlockMap[])[]

  constructor(allocated: readonly BlockMap[], deltas: readonly (readonly BlockMap[])[]) {
    this.#allocated = allocated
    this.#deltas = deltas
  }

  /** What is allocated in a device, or what changed on the way to it from another (not from itself). */
  expected(base: Offspring | undefined, target: Offspring): BlockMap {
    const [ofBase, ofTarget] = [base && this.#allocated[base.of], this.#allocated[target.of]]
    const map = Uint8Array.from(base ? this.#deltas[base.of][target.of] : ofTarget)
    for (const block of new Set([...(base?.touched.keys() ?? []), ...target.touched.keys()])) {
      const [before, after] = [base?.touched.get(block), target.touched.get(block)]
      if (before === 'written' || after === 'written') map[block] = 1
      else {
        const mappedBefore = ofBase !== undefined && before !== 'discarded' && ofBase[block] === 1
        const mappedAfter = after !== 'discarded' && ofTarget[block] === 1
        // Mapped in both, it is as it was in the two snapshots they began as.
        if (!mappedBefore || !mappedAfter) map[block] = mappedBefore === mappedAfter ? 0 : 1
      }
    }
    return map
  }
}

/** The first block on which two answers differ, in words; undefined when they agree. */
export function firstDisagreement(answer: BlockMap, expected: BlockMap): string | undefined {
  if (Buffer.compare(answer, expected) === 0) return undefined
  const block = answer.findIndex((value, index) => value !== expected[index])
  const count = answer.reduce((sum, value, index) => sum + Math.abs(value - (expected[index] ?? 0)), 0)
  return `${count} blocks differ, the first is ${block}: ${answer[block]} and should be ${expected[block]}`
}
