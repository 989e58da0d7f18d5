/**
 * How far a walk has come into one mapping tree: what it has read but not yet used, and which subtrees it knows but has
 * not read.
 *
 *      depth 0   ────────────────────────────────────────● root's children not yet followed
 *      depth 1            ─────────────────●─────●─────●
 *      depth 2     ─●──●──●──●                                each ● a subtree that is still to be read
 *      mappings   ▪▪▪▪                                        virtual block → data block
 *                 └──────────────────────────────────────────▶ virtual block number
 *
 * One queue for each depth. A deeper queue lies wholly before a shallower one, so the tree's order is: the mappings,
 * then the deepest queue, and so on up. Depth is counted from the top of the taller of the trees that are walked
 * together. So a shared subtree has the same depth in both.
 */
import { damaged, type BlockReader, type BlockWindow } from '../block-reader.ts'
import type { ExtentBuilder } from '../extents.ts'
import type { MappingSink } from './mapping-sink.ts'
import { blockAt, keyAt, type KeyRange, MAX_DEPTH, type NodeShape, nodeShape, U64_SIZE } from '../btree.ts'

/**
 * Waiting subtrees, in ascending order: `blocks[i]` holds the keys `[lows[i], highs[i])`. Those of `head <= i < asked`
 * are being read, those of `asked <= i < tail` are not yet.
 */
export class SubtreeQueue {
  blocks = new Float64Array(256)
  lows = new Float64Array(256)
  highs = new Float64Array(256)
  head = 0
  asked = 0
  tail = 0
  /** Subtrees before this index have already been compared with the other tree's. */
  compared = 0

  push(block: number, low: number, high: number): void {
    if (this.tail === this.blocks.length) this.#makeRoom()
    const i = this.tail++
    this.blocks[i] = block
    this.lows[i] = low
    this.highs[i] = high
  }

  #makeRoom(): void {
    const { head, tail } = this
    const room = 2 * (tail - head) > this.blocks.length ? 2 * this.blocks.length : this.blocks.length
    this.blocks = movedToStart(this.blocks, head, tail, room)
    this.lows = movedToStart(this.lows, head, tail, room)
    this.highs = movedToStart(this.highs, head, tail, room)
    this.tail -= this.head
    this.asked -= this.head
    this.compared = Math.max(0, this.compared - this.head)
    this.head = 0
  }
}

/**
 * Mappings read and not yet used, ascending: virtual block `keys[i]` is in data block `data[i]`, which was given to it
 * at the pool's time `times[i]`, for `head <= i < tail`.
 */
export class MappingQueue {
  keys = new Float64Array(512)
  data = new Float64Array(512)
  times = new Uint32Array(512)
  head = 0
  tail = 0

  /** Makes room for `count` more after `tail`. */
  reserve(count: number): void {
    if (this.head === this.tail) this.head = this.tail = 0
    if (this.tail + count <= this.keys.length) return
    const used = this.tail - this.head
    const room = Math.max(2 * (used + count), this.keys.length)
    const { head, tail } = this
    this.keys = movedToStart(this.keys, head, tail, room)
    this.data = movedToStart(this.data, head, tail, room)
    this.times = movedToStart(this.times, head, tail, room)
    this.head = 0
    this.tail = used
  }

  /** The first index whose key is not below `bound`. */
  indexOf(bound: number): number {
    let below = this.head
    let above = this.tail
    if (below === above || this.keys[above - 1] < bound) return above
    while (below < above) {
      const middle = (below + above) >>> 1
      if (this.keys[middle] < bound) below = middle + 1
      else above = middle
    }
    return below
  }
}

/** Elements `[head, tail)` at the beginning: of the same array, unless there has to be more room. */
function movedToStart<T extends Float64Array<ArrayBuffer> | Uint32Array<ArrayBuffer>>(
  from: T,
  head: number,
  tail: number,
  room: number
): T {
  if (room === from.length) {
    from.copyWithin(0, head, tail)
    return from
  }
  const to = (from instanceof Float64Array ? new Float64Array(room) : new Uint32Array(room)) as T
  to.set(from.subarray(head, tail))
  return to
}

export class Frontier {
  readonly mappings = new MappingQueue()
  /**
   * A virtual block, among those added, that was written after this tree became a snapshot's; undefined when there is
   * none.
   */
  writtenBlock: number | undefined
  /** Entries of all leaves that were added, in and out of the range. */
  entriesAdded = 0
  /** A subtree outside the range was left unread, so `entriesAdded` is not the whole tree. */
  leftOut = false
  readonly queues: SubtreeQueue[] = [new SubtreeQueue()]
  readonly #reader: BlockReader
  readonly #range: KeyRange
  readonly #takenAt: number
  readonly #toTheEnd: boolean
  #leafDepth: number | undefined

  /**
   * @param range virtual blocks that matter: `low` inclusive, `high` exclusive. Beyond it, the first child of each node
   *   is read: if its lower bound were wrong, blocks of the range would be in it
   * @param takenAt the pool's time at which this tree became a snapshot's: a mapping of that time or later was written
   *   to the snapshot. Infinity if that does not matter
   * @param toTheEnd read also beyond the range, to prove that nothing of the range is there
   */
  constructor(reader: BlockReader, range: KeyRange, takenAt = Infinity, toTheEnd = false) {
    this.#reader = reader
    this.#range = range
    this.#takenAt = takenAt
    this.#toTheEnd = toTheEnd
  }

  /** The depth at which this tree's leaves are; undefined until the first one was read. */
  get leafDepth(): number | undefined {
    return this.#leafDepth
  }

  queue(depth: number): SubtreeQueue {
    while (this.queues.length <= depth) this.queues.push(new SubtreeQueue())
    return this.queues[depth]
  }

  /**
   * Puts the whole tree `levels` deeper: the other tree is taller by as much. Call it before anything below the root is
   * read.
   */
  lower(levels: number): void {
    for (let i = 0; i < levels; i++) this.queues.unshift(new SubtreeQueue())
    if (this.#leafDepth !== undefined) this.#leafDepth += levels
  }

  /**
   * The lowest key that depth `depth` may still lack: it is hidden in a subtree further up. Infinity when nothing is.
   */
  horizon(depth: number): number {
    for (let above = Math.min(depth, this.queues.length) - 1; above >= 0; above--) {
      const queue = this.queues[above]
      if (queue.head < queue.tail) return queue.lows[queue.head]
    }
    return Infinity
  }

  /** The lowest key whose mapping is not known yet. */
  get mappingHorizon(): number {
    return this.horizon(this.queues.length)
  }

  /**
   * Processes the node at the head of the queue of `depth`, which was read as the window's i-th. An internal node's
   * children go to the next depth. A leaf is returned, and the caller adds the mappings that matter.
   */
  take(window: BlockWindow, i: number, depth: number): NodeShape | undefined {
    const { words } = window
    const queue = this.queues[depth]
    const at = queue.head++
    const block = queue.blocks[at]
    const range = { low: queue.lows[at], high: queue.highs[at] }
    const node = nodeShape(window, i, range, U64_SIZE, this.#reader, block)
    if (node.isLeaf) {
      if ((this.#leafDepth ??= depth) !== depth) throw this.#uneven(block)
      return node
    }
    if (depth >= MAX_DEPTH || depth >= (this.#leafDepth ?? MAX_DEPTH)) throw this.#uneven(block)
    const { low: first, high: end } = this.#range
    const children = this.queue(depth + 1)
    let isInside = range.low < end || this.#toTheEnd
    for (let child = 0; child < node.entries; child++) {
      const low = keyAt(words, node, child)
      const high = child + 1 < node.entries ? keyAt(words, node, child + 1) : range.high
      if (high > first && isInside) children.push(blockAt(words, node, child), low, high)
      else this.leftOut = true
      isInside &&= low < end || this.#toTheEnd
    }
    return undefined
  }

  /** Appends a leaf's entries `[from, to)` to the mappings. */
  addMappings(words: Uint32Array, leaf: NodeShape, from: number, to: number): void {
    const { low: first, high: end } = this.#range
    const { mappings } = this
    mappings.reserve(to - from)
    const { keys, data, times } = mappings
    const takenAt = this.#takenAt
    this.entriesAdded += to - from
    let tail = mappings.tail
    for (let i = from, k = leaf.keys + 2 * from, v = leaf.values + 2 * from; i < to; i++, k += 2, v += 2) {
      const key = words[k] + words[k + 1] * 2 ** 32
      if (key < first) continue
      if (key >= end) break
      // The value is data block << 24 | time (dm-thin-metadata.c, pack_block_time). The time says when the block was
      // given to the device: mappings that a snapshot got from its origin are older than the snapshot.
      const time = words[v] & 0xffffff
      if (time >= takenAt) this.writtenBlock ??= key
      keys[tail] = key
      times[tail] = time
      data[tail++] = words[v + 1] * 256 + (words[v] >>> 24)
    }
    mappings.tail = tail
  }

  /**
   * Adds entries' blocks to the answer at once: there is nothing to compare them with (any more), and leaves come in
   * order.
   */
  addExtents(words: Uint32Array, leaf: NodeShape, from: number, to: number, extents: ExtentBuilder): void {
    this.countMappings(words, leaf, from, to)
    const [first, end] = this.#inRange(words, leaf, from, to)
    extents.addKeys(words, leaf, first, end)
  }

  /** Tells a leaf's mappings that are in the range. */
  tell(words: Uint32Array, leaf: NodeShape, sink: MappingSink): void {
    const [from, to] = this.#inRange(words, leaf, 0, leaf.entries)
    if (from < to) sink.putEntries(words, leaf, from, to)
  }

  /** Those of a leaf's entries `[from, to)` whose keys are in the range. */
  #inRange(words: Uint32Array, leaf: NodeShape, from: number, to: number): [from: number, to: number] {
    const { low, high } = this.#range
    let [first, end] = [from, to]
    while (first < end && keyAt(words, leaf, first) < low) first++
    while (first < end && keyAt(words, leaf, end - 1) >= high) end--
    return [first, end]
  }

  /** Counts entries that need not be known as mappings, and looks at them for writes. */
  countMappings(words: Uint32Array, leaf: NodeShape, from: number, to: number): void {
    this.entriesAdded += to - from
    if (this.#takenAt === Infinity || this.writtenBlock !== undefined) return
    const { low, high } = this.#range
    for (let i = from, v = leaf.values + 2 * from; i < to; i++, v += 2) {
      if ((words[v] & 0xffffff) < this.#takenAt) continue
      const key = keyAt(words, leaf, i)
      if (key < low || key >= high) continue
      this.writtenBlock = key
      return
    }
  }

  #uneven(block: number) {
    return damaged(this.#reader.path, block, 'it stands at a depth where its tree cannot have such a node')
  }
}
