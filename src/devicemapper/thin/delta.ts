/**
 * The heart of it: what differs between two mapping trees, in order, without reading what they share.
 *
 * A snapshot begins as a second reference to its origin's root; later writes copy just the path from root to leaf
 * (Documentation/admin-guide/device-mapper/persistent-data.rst). So two snapshots share most of their nodes, and a
 * shared node holds the same mappings in both. Data blocks are shared the same way, and never written in place while
 * they are. So equal data blocks mean equal content, and different ones count as changed.
 *
 * Both trees are walked at once, in ascending order (see Frontier), by three rules:
 *
 * 1. *Drop what is shared.* A subtree that is in both queues of a depth is removed from both, unread.
 * 2. *Read only what cannot be shared.* A subtree is read once the other tree has been opened far enough that a shared
 *    subtree would have appeared: its lowest key lies below the other's horizon at that depth. (Not its highest: a leaf
 *    that spans half of a sparse volume would wait until the same half of a full one was read, and remembered.)
 * 3. *Compare what is known of both.* Mappings below both horizons are compared and leave as changed blocks.
 *
 * `allocated` is the same walk with no base: everything differs from nothing. A base that is gone is there as a record
 * of its mappings (base-record/): all of the target's tree is read then, as nothing tells what of it was the base's.
 */
import { DeltamapperError } from '../../errors.ts'
import { type BlockReader, type BlockWindow, damaged, SMALL_WINDOW_BLOCKS, WINDOW_BLOCKS } from '../block-reader.ts'
import { ALL_KEYS, heightBelow, keyAt, type KeyRange, type NodeShape, runEnd, U64_SIZE } from '../btree.ts'
import { checksumSalt } from '../checksum.ts'
import { type ExtentBatch, ExtentBuilder } from '../extents.ts'
import type { BaseRecordReader } from './base-record/reader.ts'
import { RecordedRuns } from './recorded-runs.ts'
import { Frontier, type MappingQueue, type SubtreeQueue } from './frontier.ts'
import type { MappingSink } from './mapping-sink.ts'

/**
 * Leaves read at once at the beginning, so that the first answer leaves soon. It doubles with each window, up to the
 * walk's share.
 */
const FIRST_WINDOW = SMALL_WINDOW_BLOCKS
/**
 * Windows of leaves being read while another is compared, if reading takes time: this keeps device and processor busy.
 * A walk with a slow client holds those that it has read. So this is for a few walks in a thread; more keep the device
 * busy with a window each, and hold none while their clients are slow.
 */
const WINDOWS_AHEAD = 3
const WALKS_WITH_WINDOWS_AHEAD = 2
/** Leaves that all walks of a thread together may read at once. */
const LEAVES_AT_ONCE = 4096
/**
 * Extents that are worth leaving: each batch of a device in use has a check of its own (pool-metadata.ts). A batch that
 * is smaller leaves after so long (milliseconds), and the first one at once.
 */
const EXTENTS_IN_BATCH = 8192
const LEAVES_AFTER_MS = 100
/** Of this thread: walks that have begun, and those of them that are at a window right now. */
let walksUnderWay = 0
let walksReading = 0
/**
 * Children to expect of an internal node when deciding how many to open: kernel-grown nodes are half full at the least.
 */
const EXPECTED_CHILDREN = 64

export interface MappingDelta {
  reader: BlockReader
  /**
   * Root block of the base's mapping tree; undefined for "everything the target maps", and where the base is a record.
   */
  baseRoot: number | undefined
  /**
   * The record of a base that is gone. A pair as young as the base or younger proves nothing: whoever got it could
   * write to it in place.
   */
  baseRecord?: Pick<BaseRecordReader, 'startAt' | 'next' | 'header'> | undefined
  /** Root block of the target's mapping tree. */
  targetRoot: number
  /**
   * Data blocks that base and target map according to their device details, to check the result. Undefined if unknown.
   */
  baseMapped?: number | undefined
  targetMapped?: number | undefined
  /** Size of a data block in bytes. */
  blockBytes: number
  /** Size of the target in bytes: extents end there. */
  sizeBytes: number
  /**
   * The size was taken from the target's tree, so damage there would make it wrong. Therefore both trees are read to
   * their ends, beyond the last extent, and checked against the details.
   */
  sizeIsFromTree?: boolean | undefined
  /** First data block of interest; Infinity for none. */
  firstBlock: number
  /**
   * From this block on the base has nothing that a backup could hold. So everything mapped counts as changed, even if
   * both trees agree (a volume that shrank and grew again). Infinity when the base is as large as the target.
   */
  baseEndBlock: number
  /**
   * The pool's time at which the base became a snapshot. A mapping of that time or later was written since, and ends
   * the walk with DM_BASE_CHANGED. Infinity if the base need not be a snapshot.
   */
  baseTakenAt: number
  /** The same for the target, where it is only noted: see `changedExtents`. */
  targetTakenAt: number
  /**
   * Data blocks from 0 on that an external origin provides wherever the target maps nothing: all of them count as
   * allocated. 0 without one. Two snapshots with the same origin differ only where their trees do.
   */
  originBlocks: number
  /** Is told the target's mappings, as far as the walk meets them. */
  sink?: MappingSink | undefined
  signal?: AbortSignal | undefined
}

/**
 * Yields what changed, merged and clamped. The last extent of a batch is closed: nothing that follows touches it. The
 * end comes only if the result adds up to the device details, as far as that can be told: see `checkMapped`.
 *
 * @returns whether none of the target's own mappings was written after it became a snapshot
 */
export async function* changedExtents(delta: MappingDelta): AsyncGenerator<ExtentBatch, boolean> {
  const walk = new CoWalk(delta)
  walksUnderWay++
  try {
    await walk.openRoots()
    let more: boolean
    do {
      do {
        walk.compare()
        if (delta.sink) await delta.sink.settle()
        const batch = walk.takeBatch()
        if (batch) yield batch
      } while (delta.baseRecord && (await walk.advanceRecord()))
      try {
        more = await walk.advance()
      } catch (error) {
        // Damage further on does not spoil what came before.
        const batch = delta.signal?.aborted || walk.baseIsWritten ? undefined : walk.extents.take()
        if (batch) yield batch
        throw error
      }
    } while (more)
    walk.compare()
    if (delta.sink) await delta.sink.settle()
    walk.checkMapped()
    const last = walk.extents.takeLast()
    if (last) yield last
    return walk.targetIsPristine
  } finally {
    walksUnderWay--
    await walk.end()
  }
}

/** Leaves that a walk may read at once: a whole window, while few walks do. Those that wait for clients have none. */
function share(): number {
  return Math.max(FIRST_WINDOW, Math.min(Math.floor(LEAVES_AT_ONCE / walksReading), WINDOW_BLOCKS))
}

/**
 * Subtrees that are being read together, in ascending order of keys: which tree each belongs to, and where they will
 * be.
 */
interface Reading {
  sides: Frontier[]
  depth: number
  window: Promise<BlockWindow>
}

class CoWalk {
  readonly extents: ExtentBuilder
  readonly #delta: MappingDelta
  readonly #base: Frontier
  readonly #target: Frontier
  readonly #record: RecordedRuns | undefined
  /** Virtual blocks that matter. */
  readonly #range: KeyRange
  /** From this time on a pair that both have proves nothing. */
  readonly #pairsUntil: number
  /** Windows of leaves being read, the next one first. */
  readonly #ahead: Reading[] = []
  #leavesAtOnce = FIRST_WINDOW
  /** When a batch left, by performance.now(). */
  #lastLeft = -Infinity
  /** Both trees are level: equal depth means equal height. */
  #level = false
  /** All that the target maps is in the answer: nothing has to wait for a base. */
  readonly #isAlone: boolean
  /** The roots were read, and all subtrees below them that the rules want. */
  #walked = false

  constructor(delta: MappingDelta) {
    this.#delta = delta
    const end = Math.ceil(delta.sizeBytes / delta.blockBytes)
    const originEnd = Math.min(delta.originBlocks, end)
    const range = (this.#range = { low: Math.max(delta.firstBlock, originEnd), high: end })
    this.#base = new Frontier(delta.reader, range, delta.baseTakenAt, delta.sizeIsFromTree)
    this.#target = new Frontier(delta.reader, range, delta.targetTakenAt, delta.sizeIsFromTree)
    this.#record = delta.baseRecord && new RecordedRuns(delta.baseRecord, range)
    this.#pairsUntil = delta.baseRecord?.header.device.creationTime ?? Infinity
    this.#isAlone = delta.baseRoot === undefined && !delta.baseRecord
    this.extents = new ExtentBuilder(delta.blockBytes, delta.sizeBytes)
    this.extents.addRun(delta.firstBlock, originEnd)
  }

  /** Reads the two roots and finds out which tree is taller, so that from here on equal depth means equal height. */
  async openRoots(): Promise<void> {
    const { baseRoot, targetRoot, baseEndBlock, firstBlock, blockBytes, sizeBytes, sizeIsFromTree } = this.#delta
    this.#checkSameRoot()
    if (firstBlock * blockBytes >= sizeBytes && !(sizeIsFromTree && sizeBytes === 0)) return
    if (baseRoot === targetRoot && baseEndBlock === Infinity) return
    this.#walked = true
    const [base, target] = [this.#base, this.#target]
    if (baseRoot !== undefined) base.queue(0).push(baseRoot, ALL_KEYS.low, ALL_KEYS.high)
    target.queue(0).push(targetRoot, ALL_KEYS.low, ALL_KEYS.high)
    await this.#accept(this.#startReading(0, Infinity, 2))

    const [baseQueue, targetQueue] = [base.queue(1), target.queue(1)]
    // A tree that is just a leaf, or missing, has no subtrees to share. Two roots with a child in common are of one
    // height.
    if (baseQueue.tail === 0 || targetQueue.tail === 0) return
    this.#level = true
    if (!queuedBlocks(baseQueue).isDisjointFrom(queuedBlocks(targetQueue))) return
    const taller = (await this.#heightOfFirst(targetQueue)) - (await this.#heightOfFirst(baseQueue))
    if (taller > 0) base.lower(taller)
    else target.lower(-taller)
  }

  /** What is to leave by now. */
  takeBatch(): ExtentBatch | undefined {
    const { count } = this.extents
    if (count === 0) return undefined
    if (count < EXTENTS_IN_BATCH && performance.now() - this.#lastLeft < LEAVES_AFTER_MS) return undefined
    this.#lastLeft = performance.now()
    return this.extents.take()
  }

  get baseIsWritten(): boolean {
    return this.#base.writtenBlock !== undefined
  }

  get targetIsPristine(): boolean {
    return this.#target.writtenBlock === undefined
  }

  /** Compares everything that is known of both trees by now. @throws DM_BASE_CHANGED */
  compare(): void {
    const { writtenBlock } = this.#base
    if (writtenBlock !== undefined) {
      throw new DeltamapperError(
        'DM_BASE_CHANGED',
        `the base was written to after it was taken (its data block ${writtenBlock}, for one)`,
        'take a full backup, and keep snapshots that are backed up read-only'
      )
    }
    const [base, target] = [this.#base, this.#target]
    const record = this.#record
    if (record) this.#compareRuns(Math.min(record.horizon, target.mappingHorizon), record, target.mappings)
    else this.#compareBelow(Math.min(base.mappingHorizon, target.mappingHorizon), base.mappings, target.mappings)
  }

  #compareBelow(bound: number, base: MappingQueue, target: MappingQueue): void {
    const { extents } = this
    const { baseEndBlock, sink } = this.#delta
    const baseEnd = base.indexOf(bound)
    const targetEnd = target.indexOf(bound)
    let b = base.head
    let t = target.head
    while (b < baseEnd && t < targetEnd) {
      const baseKey = base.keys[b]
      const targetKey = target.keys[t]
      if (baseKey === targetKey) {
        const [data, time] = [target.data[t], target.times[t]]
        // While the base lives, its data blocks are given to nobody else, whatever times the mappings have.
        const isMoved = base.data[b] !== data
        const isOtherPair = isMoved || base.times[b] !== time
        if (isMoved || targetKey >= baseEndBlock) extents.add(targetKey)
        if (isOtherPair) sink?.put(targetKey, data, time)
        else sink?.keep(targetKey, data, time)
        b++
        t++
      } else if (baseKey < targetKey) {
        // Mapped in the base only: discarded since, it reads as zeros now. That is a change.
        extents.add(baseKey)
        sink?.drop(baseKey)
        b++
      } else {
        extents.add(targetKey)
        sink?.put(targetKey, target.data[t], target.times[t])
        t++
      }
    }
    for (; b < baseEnd; b++) {
      extents.add(base.keys[b])
      sink?.drop(base.keys[b])
    }
    for (; t < targetEnd; t++) {
      extents.add(target.keys[t])
      sink?.put(target.keys[t], target.data[t], target.times[t])
    }
    base.head = b
    target.head = t
  }

  /** The same, with a record in place of the base's tree. */
  #compareRuns(bound: number, record: RecordedRuns, target: MappingQueue): void {
    const { extents } = this
    const { baseEndBlock, sink } = this.#delta
    const { keys, data, times } = target
    const targetEnd = target.indexOf(bound)
    let t = target.head
    for (;;) {
      const key = t < targetEnd ? keys[t] : bound
      this.#dropBelow(key, record)
      if (t === targetEnd) break
      if (record.begin > key) {
        extents.add(key)
        sink?.put(key, data[t], times[t])
        t++
        continue
      }
      const { end } = record
      let block = key
      for (; block < end && t < targetEnd && keys[t] === block; block++, t++) {
        const time = record.timeOf(block)
        const isOther = data[t] !== record.dataOf(block) || times[t] !== time
        if (isOther || time >= this.#pairsUntil || block >= baseEndBlock) extents.add(block)
        if (!sink) continue
        if (isOther) sink.put(block, data[t], times[t])
        else sink.keep(block, data[t], times[t])
      }
      record.compared(block)
    }
    target.head = t
  }

  /** What the record has below a block, and the target has not. */
  #dropBelow(block: number, record: RecordedRuns): void {
    const { sink } = this.#delta
    while (record.begin < block) {
      const { begin } = record
      const end = Math.min(record.end, block)
      this.extents.addRun(begin, end)
      if (sink) for (let dropped = begin; dropped < end; dropped++) sink.drop(dropped)
      record.compared(end)
    }
  }

  /**
   * Compares a leaf of the target with the record in place, as far as that is known. The rest is added to the target's
   * mappings.
   */
  async #takeRecorded(record: RecordedRuns, window: BlockWindow, leaf: NodeShape): Promise<void> {
    const target = this.#target
    const { mappings } = target
    // All that lies before it comes first, unless that is so much that it has to leave before.
    const first = leaf.entries > 0 ? keyAt(window.words, leaf, 0) : 0
    while (leaf.entries > 0 && this.extents.count < EXTENTS_IN_BATCH) {
      this.#compareRuns(Math.min(record.horizon, first), record, mappings)
      if (record.horizon > first) break
      this.#delta.signal?.throwIfAborted()
      await record.advance()
    }
    const compared = mappings.head === mappings.tail ? this.#compareLeaf(record, window, leaf) : 0
    target.addMappings(window.words, leaf, compared, leaf.entries)
  }

  /** @returns how many entries of the leaf were compared: all that the record is known for, and that are wanted */
  #compareLeaf(record: RecordedRuns, { bytes, words }: BlockWindow, leaf: NodeShape): number {
    const { low, high } = this.#range
    const { entries, values } = leaf
    const { sink } = this.#delta
    if (entries === 0 || keyAt(words, leaf, 0) < low) return 0
    const known = Math.min(record.horizon, high, this.#delta.baseEndBlock)
    let i = 0
    while (i < entries) {
      const block = keyAt(words, leaf, i)
      if (block >= known) break
      this.#dropBelow(block, record)
      const most = Math.min(runEnd(words, leaf, i, entries) - i, known - block)
      if (record.begin > block) {
        const length = Math.min(most, record.begin - block)
        this.extents.addRun(block, block + length)
        sink?.putEntries(words, leaf, i, i + length)
        i += length
        continue
      }
      const length = Math.min(most, record.end - block)
      const word = values + 2 * i
      if (record.mayProve(this.#pairsUntil) && record.isSame(block, length, bytes, words, word)) {
        record.compared(block + length)
      } else this.#addOthers(record, block, length, words, word)
      sink?.putEntries(words, leaf, i, i + length)
      i += length
    }
    this.#target.countMappings(words, leaf, 0, i)
    return i
  }

  /** Adds blocks whose pairs, which begin at a word, are others than the record's, or prove nothing. */
  #addOthers(record: RecordedRuns, begin: number, length: number, words: Uint32Array, word: number): void {
    const until = this.#pairsUntil
    // They come in runs, as they were written.
    let other = begin
    for (let block = begin, w = word; block < begin + length; block++, w += 2) {
      if (!record.proves(block, words[w], words[w + 1], until)) continue
      this.extents.addRun(other, block)
      other = block + 1
    }
    this.extents.addRun(other, begin + length)
    record.compared(begin + length)
  }

  /** Takes in more of the record, as far as the target is known. False when there is no more to be had of it by now. */
  async advanceRecord(): Promise<boolean> {
    const record = this.#record
    if (!record || record.horizon === Infinity || record.horizon >= this.#target.mappingHorizon) return false
    this.#delta.signal?.throwIfAborted()
    await record.advance()
    return true
  }

  /**
   * Checks the result against the device details. Shared subtrees count in both trees or in neither, so leaving them
   * unread does not matter. Subtrees left out by an offset or a size do matter.
   *
   * @throws DM_METADATA_DAMAGED
   */
  checkMapped(): void {
    const { baseRoot, targetRoot, baseMapped, targetMapped } = this.#delta
    if (!this.#walked || targetMapped === undefined) return
    const [base, target] = [this.#base, this.#target]
    if (baseRoot === undefined) {
      const found = target.entriesAdded
      if (target.leftOut ? found <= targetMapped : found === targetMapped) return
      const what = `the tree below it maps ${found}${target.leftOut ? ' data blocks and more' : ' data blocks'}`
      throw damaged(this.#delta.reader.path, targetRoot, `${what}, and the details of its device say ${targetMapped}`)
    }
    if (baseMapped === undefined || base.leftOut || target.leftOut) return
    const more = target.entriesAdded - base.entriesAdded
    if (more === targetMapped - baseMapped) return
    throw damaged(
      this.#delta.reader.path,
      targetRoot,
      `the tree below it maps ${inWords(more)} the one below block ${baseRoot}, ` +
        `and the details of their devices say ${targetMapped} and ${baseMapped}`
    )
  }

  /** @throws DM_METADATA_DAMAGED when the details give one tree two sizes */
  #checkSameRoot(): void {
    const { reader, baseRoot, targetRoot, baseMapped, targetMapped } = this.#delta
    if (baseRoot !== targetRoot || baseMapped === targetMapped) return
    const what = `the details of the two devices whose tree begins there say that it maps ${baseMapped} and ${targetMapped} data blocks`
    throw damaged(reader.path, targetRoot, what)
  }

  /**
   * Processes the next window of leaves (or, before the first leaf, of internal nodes). False when both trees are at
   * their end.
   */
  async advance(): Promise<boolean> {
    walksReading++
    try {
      return await this.#advance()
    } finally {
      walksReading--
    }
  }

  async #advance(): Promise<boolean> {
    // The leaves of the taller tree. Leaves of a shorter tree that could not be levelled are read on the way there.
    const depth = Math.max(this.#base.queues.length, this.#target.queues.length) - 1
    const atLeaves = this.#base.leafDepth === depth || this.#target.leafDepth === depth
    const most = share()
    const areFew = walksUnderWay <= WALKS_WITH_WINDOWS_AHEAD
    while (this.#ahead.length < (atLeaves && areFew && this.#delta.reader.isDirect ? WINDOWS_AHEAD : 1)) {
      const reading = await this.#read(depth, Math.min(this.#leavesAtOnce, most))
      if (!reading) break
      this.#ahead.push(reading)
      this.#leavesAtOnce = Math.min(2 * this.#leavesAtOnce, WINDOW_BLOCKS)
    }
    const next = this.#ahead.shift()
    if (!next) return false
    await this.#accept(next)
    return true
  }

  /** Waits for running reads, so that the file may be closed. */
  async end(): Promise<void> {
    for (const { window } of this.#ahead) await window.then((each) => this.#delta.reader.release(each), ignore)
  }

  /**
   * Starts to read up to `wanted` subtrees of one depth, lowest keys first, and opens the depths above as far as
   * necessary.
   */
  async #read(depth: number, wanted: number): Promise<Reading | undefined> {
    for (;;) {
      const [base, target] = [this.#base.queue(depth), this.#target.queue(depth)]
      this.#dropShared(base, target)
      // Rule 2: subtrees that begin beyond this bound may still turn out to be shared.
      const bound = Math.min(this.#base.horizon(depth), this.#target.horizon(depth))
      const ready = countBelow(base, bound, wanted) + countBelow(target, bound, wanted)
      if (ready < wanted && depth > 0) {
        const above = await this.#read(depth - 1, Math.ceil((wanted - ready) / EXPECTED_CHILDREN))
        if (above) {
          await this.#accept(above)
          continue
        }
      }
      return ready === 0 ? undefined : this.#startReading(depth, bound, Math.min(ready, wanted))
    }
  }

  /** Rule 1. Both queues ascend, so a shared subtree has the same key in both. */
  #dropShared(base: SubtreeQueue, target: SubtreeQueue): void {
    if (base.compared === base.tail && target.compared === target.tail) return
    const { baseEndBlock } = this.#delta
    let [b, t] = [base.asked, target.asked]
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

  /** Starts to read the `count` lowest subtrees of both queues of a depth that begin below `bound`. */
  #startReading(depth: number, bound: number, count: number): Reading {
    this.#delta.signal?.throwIfAborted()
    const [base, target] = [this.#base.queue(depth), this.#target.queue(depth)]
    const sides: Frontier[] = []
    const blocks: number[] = []
    while (sides.length < count) {
      const baseLow = nextLow(base, bound)
      const targetLow = nextLow(target, bound)
      if (baseLow === Infinity && targetLow === Infinity) break
      const [side, queue] = baseLow <= targetLow ? [this.#base, base] : [this.#target, target]
      sides.push(side)
      blocks.push(queue.blocks[queue.asked++])
    }
    const window = this.#delta.reader.load(blocks, blocks.length, checksumSalt.btreeNode)
    // The consumer of the window gets a failure; until there is one, the rejection is nobody's.
    window.catch(ignore)
    return { sides, depth, window }
  }

  async #accept({ sides, depth, window: loading }: Reading): Promise<void> {
    const { reader, signal, sink } = this.#delta
    const window = await loading
    try {
      signal?.throwIfAborted()
      for (let i = 0; i < sides.length; i++) {
        const side = sides[i]
        // In order of keys, a leaf of one tree is mostly followed by the other tree's leaf of the same range.
        const other = sides[i + 1] === side ? undefined : sides[i + 1]
        const areTwins = other !== undefined && this.#areOnlyOnes(depth)
        const leaf = side.take(window, i, depth)
        if (!leaf) continue
        if (this.#isAlone) {
          side.addExtents(window.words, leaf, 0, leaf.entries, this.extents)
          if (sink) side.tell(window.words, leaf, sink)
          continue
        }
        if (this.#record) {
          await this.#takeRecorded(this.#record, window, leaf)
          continue
        }
        const twin = other?.take(window, ++i, depth)
        if (twin && this.#mayDrop(window.words, leaf)) {
          const [base, target] = side === this.#base ? [leaf, twin] : [twin, leaf]
          this.#addDifferences(window, base, target, areTwins)
        } else {
          side.addMappings(window.words, leaf, 0, leaf.entries)
          if (other && twin) other.addMappings(window.words, twin, 0, twin.entries)
        }
      }
    } finally {
      reader.release(window)
    }
    const [baseLeaves, targetLeaves] = [this.#base.leafDepth, this.#target.leafDepth]
    if (this.#level && baseLeaves !== undefined && targetLeaves !== undefined && baseLeaves !== targetLeaves) {
      const { baseRoot, targetRoot } = this.#delta
      throw damaged(reader.path, targetRoot, `the trees below it and below block ${baseRoot} have leaves at odd depths`)
    }
  }

  /** Whether equal mappings count as unchanged in the whole range of a leaf. */
  #mayDrop(words: Uint32Array, leaf: NodeShape): boolean {
    return leaf.entries > 0 && keyAt(words, leaf, leaf.entries - 1) < this.#delta.baseEndBlock
  }

  /**
   * Whether the next subtrees of both trees have one range, and all before them has been compared. If they are leaves,
   * what they say of that range is all there is to say.
   */
  #areOnlyOnes(depth: number): boolean {
    const low = this.#base.mappingHorizon
    if (this.#delta.sink || low !== this.#target.mappingHorizon) return false
    const [base, target] = [this.#base.queue(depth), this.#target.queue(depth)]
    if (base.lows[base.head] !== low || target.lows[target.head] !== low) return false
    if (base.highs[base.head] !== target.highs[target.head]) return false
    const [before, targetBefore] = [this.#base.mappings, this.#target.mappings]
    this.#compareBelow(low, before, targetBefore)
    return before.head === before.tail && targetBefore.head === targetBefore.tail
  }

  /**
   * Adds two leaves' mappings without those that both have: rule 1 for mappings. Most leaves differ in an entry or two,
   * and comparing them in place costs a fraction of adding all of them. Where both have a block in different places,
   * the target's mapping alone says all there is to say.
   *
   * @param isAll what differs goes into the answer at once: see #areOnlyOnes
   */
  #addDifferences(window: BlockWindow, baseLeaf: NodeShape, targetLeaf: NodeShape, isAll: boolean): void {
    const { words } = window
    const [base, target] = [this.#base, this.#target]
    const add = (side: Frontier, leaf: NodeShape, from: number, to: number) => {
      if (from === to) return
      if (isAll) side.addExtents(words, leaf, from, to, this.extents)
      else side.addMappings(words, leaf, from, to)
    }
    let b = 0
    let t = 0
    let alike = 0
    while (b < baseLeaf.entries && t < targetLeaf.entries) {
      // Entries under the same keys: first the equal ones, which are dropped, then those with other values.
      if (alike === 0) alike = sameKeys(window, baseLeaf, b, targetLeaf, t)
      const { same, moved, renewed } = compareValues(window, baseLeaf.values / 2 + b, targetLeaf.values / 2 + t, alike)
      add(target, targetLeaf, t + same, t + moved)
      base.countMappings(words, baseLeaf, b + same, b + moved)
      if (moved < renewed) {
        for (const [side, leaf, at] of [[base, baseLeaf, b] as const, [target, targetLeaf, t] as const]) {
          if (isAll) side.countMappings(words, leaf, at + moved, at + renewed)
          else side.addMappings(words, leaf, at + moved, at + renewed)
        }
      }
      b += renewed
      t += renewed
      alike -= renewed
      if (renewed > 0) continue

      // Entries that only one of them has.
      const [baseKey, targetKey] = [keyAt(words, baseLeaf, b), keyAt(words, targetLeaf, t)]
      const [fromB, fromT] = [b, t]
      while (b < baseLeaf.entries && keyAt(words, baseLeaf, b) < targetKey) b++
      while (t < targetLeaf.entries && keyAt(words, targetLeaf, t) < baseKey) t++
      add(base, baseLeaf, fromB, b)
      add(target, targetLeaf, fromT, t)
    }
    add(base, baseLeaf, b, baseLeaf.entries)
    add(target, targetLeaf, t, targetLeaf.entries)
  }

  async #heightOfFirst({ head, blocks, lows, highs }: SubtreeQueue): Promise<number> {
    const { reader, signal } = this.#delta
    return heightBelow(reader, blocks[head], { low: lows[head], high: highs[head] }, U64_SIZE, signal)
  }
}

/** How many entries from `i` and `j` on have the same keys. */
function sameKeys({ doubles, words }: BlockWindow, one: NodeShape, i: number, other: NodeShape, j: number): number {
  const most = Math.min(one.entries - i, other.entries - j)
  const [first, firstOther] = [keyAt(words, one, i), keyAt(words, other, j)]
  if (first !== firstOther) return 0
  // Keys ascend: without gaps, those after the same key are the same.
  const [last, lastOther] = [keyAt(words, one, i + most - 1), keyAt(words, other, j + most - 1)]
  if (last === lastOther && last - first === most - 1) return most
  const [at, otherAt] = [one.keys / 2 + i, other.keys / 2 + j]
  let same = 1
  // (None but the first key is 0. Where a library has denormal numbers taken for 0, nothing is the same.)
  while (same < most && doubles[at + same] === doubles[otherAt + same] && doubles[at + same] !== 0) same++
  return same
}

/**
 * Compares mappings of the same blocks: up to `same` they are equal, from there to `moved` they have other data blocks,
 * from there to `renewed` other times only.
 *
 * @param at where the first one's value is in `doubles`; likewise `other`
 */
function compareValues({ doubles, words }: BlockWindow, at: number, other: number, count: number) {
  const apart = other - at
  const end = at + count
  let i = at
  for (; i < end; i++) {
    const value = doubles[i]
    if (value === doubles[i + apart] && value !== 0) continue
    // A 0 may differ from another in its bits, and what is no number is not equal to itself.
    const [word, otherWord] = [2 * i, 2 * (i + apart)]
    if (words[word] !== words[otherWord] || words[word + 1] !== words[otherWord + 1]) break
  }
  const same = i - at
  while (i < end && isMoved(words, 2 * i, 2 * (i + apart))) i++
  const moved = i - at
  while (i < end && !isMoved(words, 2 * i, 2 * (i + apart)) && words[2 * i] !== words[2 * (i + apart)]) i++
  return { same, moved, renewed: i - at }
}

/** Whether two mappings, which begin at these words, have different data blocks, whatever their times. */
function isMoved(words: Uint32Array, one: number, other: number): boolean {
  // data block << 24 | time (dm-thin-metadata.c, pack_block_time)
  return words[one] >>> 24 !== words[other] >>> 24 || words[one + 1] !== words[other + 1]
}

function queuedBlocks({ blocks, head, tail }: SubtreeQueue): Set<number> {
  return new Set(blocks.subarray(head, tail))
}

/** How many waiting subtrees begin below `bound`; counts no further than `most`. */
function countBelow({ lows, asked, tail }: SubtreeQueue, bound: number, most: number): number {
  let i = asked
  while (i < tail && i - asked < most && lows[i] < bound) i++
  return i - asked
}

/** The lowest key of the next waiting subtree, if that is below `bound`; otherwise Infinity. */
function nextLow({ lows, asked, tail }: SubtreeQueue, bound: number): number {
  return asked < tail && lows[asked] < bound ? lows[asked] : Infinity
}

function keep(queue: SubtreeQueue, from: number, to: number): void {
  queue.blocks[to] = queue.blocks[from]
  queue.lows[to] = queue.lows[from]
  queue.highs[to] = queue.highs[from]
}

/** How many data blocks a tree maps compared with another: `3 data blocks more than`. */
function inWords(more: number): string {
  if (more === 0) return 'as many data blocks as'
  const blocks = Math.abs(more)
  return `${blocks} data block${blocks === 1 ? '' : 's'} ${more < 0 ? 'less' : 'more'} than`
}

function ignore(): void {}
