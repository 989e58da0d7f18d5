/**
 * The heart of it: what differs between two mapping trees, in order, without reading what they share.
 *
 * A snapshot begins as a second reference to its origin's root; later writes copy just the path from root to leaf
 * (Documentation/admin-guide/device-mapper/persistent-data.rst). So two snapshots share most of their nodes, and a node both refer
 * to holds the same mappings in both. Data blocks are shared the same way and never written in place while they are, so equal data
 * block means equal content, and a different one counts as changed.
 *
 * Both trees are walked at once, in ascending order (see Frontier), by three rules:
 *
 * 1. *Drop what is shared.* A subtree that stands in both queues of a depth is removed from both, unread.
 * 2. *Read only what cannot be shared.* A subtree is read once the other tree has been opened far enough that it would have shown
 *    up there: its whole range lies below the other's horizon at that depth.
 * 3. *Compare what is known of both.* Mappings below both horizons are compared and leave as changed blocks.
 *
 * `allocated` is the same walk with no base: everything differs from nothing.
 */
import type { BlockReader } from '../block-reader.ts'
import { WINDOW_BLOCKS } from '../block-reader.ts'
import { ALL_KEYS, heightBelow, type KeyRange, U64_SIZE } from '../btree.ts'
import { checksumSalt } from '../checksum.ts'
import { type ExtentBatch, ExtentBuilder } from '../extents.ts'
import { Frontier, type SubtreeQueue } from './frontier.ts'

/** Leaves read at once, to begin with: the first answer is to leave soon. It doubles with each window, up to WINDOW_BLOCKS. */
const FIRST_WINDOW = 16
/** Children to expect of an internal node when deciding how many to open: kernel-grown nodes are half full at the least. */
const EXPECTED_CHILDREN = 64

export interface MappingDelta {
  reader: BlockReader
  /** Root block of the base's mapping tree; undefined for "everything the target maps". */
  baseRoot: number | undefined
  /** Root block of the target's mapping tree. */
  targetRoot: number
  /** Size of a data block in bytes. */
  blockBytes: number
  /** Size of the target in bytes: extents end there. */
  sizeBytes: number
  /** First data block of interest. */
  firstBlock: number
  /**
   * From this block on the base has nothing that a backup of it could hold, so that everything mapped counts as changed, even where
   * both trees agree (a volume that shrank and grew again). Infinity when the base is as large as the target.
   */
  baseEndBlock: number
  signal?: AbortSignal | undefined
}

/** Yields what changed, merged and clamped. The last extent of a batch is closed: nothing that follows touches it. */
export async function* changedExtents(delta: MappingDelta): AsyncGenerator<ExtentBatch> {
  const walk = new CoWalk(delta)
  await walk.openRoots()
  do {
    walk.compare()
    const batch = walk.extents.take()
    if (batch) yield batch
  } while (await walk.advance())
  walk.compare()
  const last = walk.extents.takeLast()
  if (last) yield last
}

/** One subtree of the window about to be read. */
interface Wanted {
  side: Frontier
  range: KeyRange
}

class CoWalk {
  readonly extents: ExtentBuilder
  readonly #delta: MappingDelta
  readonly #base: Frontier
  readonly #target: Frontier
  readonly #wantedBlocks = new Float64Array(WINDOW_BLOCKS)
  #leavesAtOnce = FIRST_WINDOW

  constructor(delta: MappingDelta) {
    this.#delta = delta
    const range = { low: delta.firstBlock, high: Math.ceil(delta.sizeBytes / delta.blockBytes) }
    this.#base = new Frontier(delta.reader, range)
    this.#target = new Frontier(delta.reader, range)
    this.extents = new ExtentBuilder(delta.blockBytes, delta.sizeBytes)
  }

  /** Reads the two roots and finds out which tree is taller, so that from here on equal depth means equal height. */
  async openRoots(): Promise<void> {
    const { baseRoot, targetRoot, baseEndBlock } = this.#delta
    if (this.#delta.firstBlock * this.#delta.blockBytes >= this.#delta.sizeBytes) return
    if (baseRoot === targetRoot && baseEndBlock === Infinity) return
    const sides = baseRoot === undefined ? [this.#target] : [this.#base, this.#target]
    const roots = baseRoot === undefined ? [targetRoot] : [baseRoot, targetRoot]
    await this.#read(
      roots,
      sides.map((side) => ({ side, range: ALL_KEYS })),
      0
    )
    // Two roots with a child in common are of one height. Nothing is left to share with a tree that is just a leaf.
    if (sides.length === 1 || this.#base.isLeafOnly || this.#target.isLeafOnly) return
    const [baseQueue, targetQueue] = sides.map((side) => side.queue(1))
    if (baseQueue.tail === 0 || targetQueue.tail === 0) return
    if (queuedBlocks(baseQueue).isDisjointFrom(queuedBlocks(targetQueue))) {
      const taller = (await this.#height(targetQueue)) - (await this.#height(baseQueue))
      if (taller > 0) this.#base.lower(taller)
      else this.#target.lower(-taller)
    }
  }

  /** Compares everything that is known of both trees by now. */
  compare(): void {
    const { extents } = this
    const { baseEndBlock } = this.#delta
    const base = this.#base.mappings
    const target = this.#target.mappings
    const bound = Math.min(this.#base.mappingHorizon, this.#target.mappingHorizon)
    const baseEnd = base.indexOf(bound)
    const targetEnd = target.indexOf(bound)
    let b = base.head
    let t = target.head
    while (b < baseEnd && t < targetEnd) {
      const baseKey = base.keys[b]
      const targetKey = target.keys[t]
      if (baseKey === targetKey) {
        if (base.data[b] !== target.data[t] || targetKey >= baseEndBlock) extents.add(targetKey)
        b++
        t++
      } else if (baseKey < targetKey) {
        // Mapped in the base only: discarded since, it reads as zeros now. That is a change.
        extents.add(baseKey)
        b++
      } else {
        extents.add(targetKey)
        t++
      }
    }
    while (b < baseEnd) extents.add(base.keys[b++])
    while (t < targetEnd) extents.add(target.keys[t++])
    base.head = b
    target.head = t
  }

  /** Reads the next window of leaves. False when both trees are at their end. */
  async advance(): Promise<boolean> {
    const advanced = await this.#advance(Math.max(this.#base.deepest, this.#target.deepest), this.#leavesAtOnce)
    this.#leavesAtOnce = Math.min(2 * this.#leavesAtOnce, WINDOW_BLOCKS)
    return advanced
  }

  /** Reads up to `wanted` subtrees of one depth, lowest keys first, opening the depths above as far as that takes. */
  async #advance(depth: number, wanted: number): Promise<boolean> {
    for (;;) {
      const [base, target] = [this.#base.queue(depth), this.#target.queue(depth)]
      this.#dropShared(base, target)
      // Rule 2: what reaches beyond this bound might still turn out to be shared.
      const bound = Math.min(this.#base.horizon(depth), this.#target.horizon(depth))
      const ready = countBelow(base, bound, wanted) + countBelow(target, bound, wanted)
      if (ready < wanted && depth > 0) {
        const more = Math.ceil((wanted - ready) / EXPECTED_CHILDREN)
        if (await this.#advance(depth - 1, more)) continue
      }
      if (ready === 0) return false
      await this.#readLowest(base, target, bound, Math.min(ready, wanted), depth)
      return true
    }
  }

  /** Rule 1. Both queues ascend, so that a shared subtree stands under the same key in both. */
  #dropShared(base: SubtreeQueue, target: SubtreeQueue): void {
    if (base.compared === base.tail && target.compared === target.tail) return
    const { baseEndBlock } = this.#delta
    let [b, t] = [base.head, target.head]
    let [keptB, keptT] = [b, t]
    while (b < base.tail || t < target.tail) {
      const baseLow = b < base.tail ? base.lows[b] : Infinity
      const targetLow = t < target.tail ? target.lows[t] : Infinity
      if (baseLow === targetLow && base.blocks[b] === target.blocks[t] && target.highs[t] <= baseEndBlock) {
        b++
        t++
      } else if (baseLow <= targetLow) keep(base, b++, keptB++)
      else keep(target, t++, keptT++)
    }
    base.tail = base.compared = keptB
    target.tail = target.compared = keptT
  }

  /** Reads the `count` lowest subtrees of both queues that lie below `bound`. */
  async #readLowest(
    base: SubtreeQueue,
    target: SubtreeQueue,
    bound: number,
    count: number,
    depth: number
  ): Promise<void> {
    const wanted: Wanted[] = []
    while (wanted.length < count) {
      const baseLow = base.head < base.tail && base.highs[base.head] <= bound ? base.lows[base.head] : Infinity
      const targetLow =
        target.head < target.tail && target.highs[target.head] <= bound ? target.lows[target.head] : Infinity
      const [side, queue] = baseLow <= targetLow ? [this.#base, base] : [this.#target, target]
      const i = queue.head++
      this.#wantedBlocks[wanted.length] = queue.blocks[i]
      wanted.push({ side, range: { low: queue.lows[i], high: queue.highs[i] } })
    }
    await this.#read(this.#wantedBlocks, wanted, depth)
  }

  async #read(blocks: ArrayLike<number>, wanted: Wanted[], depth: number): Promise<void> {
    const { reader, signal } = this.#delta
    await reader.read(
      blocks,
      wanted.length,
      checksumSalt.btreeNode,
      ({ words, slots }) => {
        for (let i = 0; i < wanted.length; i++) {
          wanted[i].side.accept(words, slots[i], blocks[i], wanted[i].range, depth)
        }
      },
      signal
    )
  }

  async #height(queue: SubtreeQueue): Promise<number> {
    const { reader, signal } = this.#delta
    const i = queue.head
    return heightBelow(reader, queue.blocks[i], { low: queue.lows[i], high: queue.highs[i] }, U64_SIZE, signal)
  }
}

function queuedBlocks(queue: SubtreeQueue): Set<number> {
  return new Set(queue.blocks.subarray(queue.head, queue.tail))
}

/** How many subtrees at the head of the queue lie wholly below `bound`; counts no further than `most`. */
function countBelow(queue: SubtreeQueue, bound: number, most: number): number {
  let i = queue.head
  while (i < queue.tail && i - queue.head < most && queue.highs[i] <= bound) i++
  return i - queue.head
}

function keep(queue: SubtreeQueue, from: number, to: number): void {
  queue.blocks[to] = queue.blocks[from]
  queue.lows[to] = queue.lows[from]
  queue.highs[to] = queue.highs[from]
}
