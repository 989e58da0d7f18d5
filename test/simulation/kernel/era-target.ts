/**
 * dm-era as the kernel runs it (drivers/md/dm-era-target.c), in real metadata blocks: which blocks were written to in which era.
 *
 *     write ─▶ marked in this era? ─▶ below                                                              (era_map)
 *                   └ not yet: it waits for the worker, which marks it, commits, and lets it go below    (process_deferred_bios)
 *     message, status, suspend, resume ─▶ a call of the worker, which commits before it answers          (process_rpc_calls)
 *     each time the worker is at work ─▶ one step of digesting the oldest archived writeset              (process_old_eras)
 *
 * Loading a table reads the metadata; only `resume` has the target write. What a crash leaves is what was committed.
 */
import type { Random } from '../../support/random.ts'
import {
  arrayLength,
  elementAt,
  emptyArray,
  readArray,
  releaseArray,
  resizeArray,
  setElement
} from '../metadata/array.ts'
import type { HeldEraCopy, Writeset } from '../metadata/blocks.ts'
import { emptyTree, entriesOf, insert, releaseTree, remove, type TreeType } from '../metadata/btree.ts'
import type { MetadataDisk } from '../metadata/disk.ts'
import { decodeEraSuperblock, encodeEraSuperblock, type EraSuperblockFields } from '../metadata/era-superblock.ts'
import { MetadataStore } from '../metadata/store.ts'
import { Refused } from './refused.ts'

const writesets: TreeType = {
  valueBytes: 12,
  increment: (store, value) => store.metadata.add((value as Writeset).root, 1),
  decrement: (store, value) => releaseArray(store, (value as Writeset).root)
}

/** Bits that one step of a digest looks at (INSERTS_PER_STEP). */
const BITS_A_STEP = 100

/** How the worker goes on: writes of a commit, a step of its own, or nothing to do. `served` says that a call or write has been answered. */
export type WorkerStep = 'write' | 'flush' | 'superblock' | 'step' | 'idle'

export type EraMessage = 'checkpoint' | 'take_metadata_snap' | 'drop_metadata_snap'

/** Where a digest is: about to look for a writeset, copying its marks, or about to remove it. */
type Digest =
  | { readonly at: 'lookup' }
  | { readonly at: 'copy'; readonly era: number; readonly bits: number; readonly root: number; readonly from: number }
  | { readonly at: 'remove'; readonly era: number }

interface Call {
  readonly act: () => Generator<WorkerStep, void> | void
  readonly done: (error?: Refused) => void
}

interface Write {
  readonly block: number
  readonly go: () => void
}

/** What a table says. */
export interface EraTableOptions {
  readonly blockSectors: number
  /** Of the device, the last one perhaps a partial one. */
  readonly blocks: number
}

export class EraTarget {
  readonly disk: MetadataDisk
  readonly blockSectors: number
  /** Of the table; the metadata has as many from the first resume on. */
  readonly blocks: number
  currentEra = 0
  metadataSnapshot = 0
  /** No worker is at work: before the first resume, and while it is suspended. */
  isSuspended = true
  readonly #store: MetadataStore
  #knownBlocks = 0
  #current: Writeset = { bits: 0, root: 0 }
  /** What was marked in this era, and is on disk. */
  #marked = new Set<number>()
  /** The word of the bitset that was changed last, and is not in its array yet (struct dm_disk_bitset). */
  #word: { readonly index: number; bits: [low: number, high: number] } | undefined
  #writesetTreeRoot = 0
  #eraArrayRoot = 0
  #hasArchived = false
  #isResized = false
  #digest: Digest | undefined
  #deferred: Write[] = []
  #calls: Call[] = []
  #work: Generator<WorkerStep, void> | undefined
  /** The worker is to be at work once more. */
  #isQueued = false

  private constructor(disk: MetadataDisk, { blockSectors, blocks }: EraTableOptions, store: MetadataStore) {
    this.disk = disk
    this.blockSectors = blockSectors
    this.blocks = blocks
    this.#store = store
  }

  /** A table is loaded: blank metadata is formatted (era_ctr). @throws Refused for metadata that is damaged, or of other block size */
  static load(disk: MetadataDisk, table: EraTableOptions): EraTarget {
    const first = disk.read(0)
    if (first.every((byte) => byte === 0)) return EraTarget.#format(disk, table)
    let superblock: EraSuperblockFields
    try {
      superblock = decodeEraSuperblock(first, 0)
    } catch (error) {
      throw new Refused('EINVAL', (error as Error).message)
    }
    if (superblock.blockSectors !== table.blockSectors) throw new Refused('EINVAL', 'changing the data block size')
    const store = MetadataStore.open(disk, superblock.spaceMap)
    readEras(store, superblock)
    const target = new EraTarget(disk, table, store)
    target.currentEra = superblock.currentEra
    target.metadataSnapshot = superblock.metadataSnapshot
    target.#knownBlocks = superblock.blocks
    target.#current = superblock.current
    target.#writesetTreeRoot = superblock.writesetTreeRoot
    target.#eraArrayRoot = superblock.eraArrayRoot
    target.#hasArchived = true
    if (superblock.current.root !== 0) readArray(store, superblock.current.root)
    if (superblock.metadataSnapshot !== 0) {
      const fields = decodeEraSuperblock(disk.read(superblock.metadataSnapshot), superblock.metadataSnapshot)
      store.keepHeld(superblock.metadataSnapshot, { kind: 'held era', fields })
      readEras(store, fields)
    }
    return target
  }

  static #format(disk: MetadataDisk, table: EraTableOptions): EraTarget {
    const store = MetadataStore.format(disk)
    const target = new EraTarget(disk, table, store)
    target.#writesetTreeRoot = emptyTree(store, writesets)
    target.#eraArrayRoot = emptyArray(store)
    // (The space map's own commit is left out here: format_metadata.)
    for (const block of store.unwritten) disk.write(block, store.encode(block)!)
    disk.flush()
    disk.write(0, encodeEraSuperblock(0, target.#superblock()))
    disk.flush()
    store.written()
    return target
  }

  /**
   * The kernel leaves elements behind where a shorter array ends with the block before theirs (shrink in dm-array.c).
   * The tools of version 0.9.0 refuse those.
   */
  get hasElementsLeft(): boolean {
    return arrayLength(this.#store, this.#eraArrayRoot) > this.#knownBlocks
  }

  // What is done to the device

  /** The table goes live: the metadata gets its size, and a new era begins. It can be written to when this is over. */
  *resuming(random?: Random): Generator<WorkerStep, void> {
    if (!this.#isResized) {
      this.#eraArrayRoot = resizeArray(this.#store, this.#eraArrayRoot, this.#knownBlocks, this.blocks, 4)
      this.#knownBlocks = this.blocks
      this.#marked.clear()
      yield* this.#commit(random)
      this.#isResized = true
    }
    this.isSuspended = false
    yield* this.#served(() => this.#rollOver(), random)
  }

  /** Its writes have come through, and no more are let in. The writeset is archived (era_postsuspend). */
  *suspending(random?: Random): Generator<WorkerStep, void> {
    yield* this.#served(() => this.#archive(), random)
    // Until it is stopped, the worker may go on with digesting.
    while (random?.chance(0.5) === true && this.#isQueued) yield* this.#once(random)
    this.isSuspended = true
    if (this.#isQueued) yield* this.#once(random)
    yield* this.#commit(random)
  }

  resume(): void {
    drain(this.resuming())
  }

  suspend(): void {
    drain(this.suspending())
  }

  /** @param done told when it is committed, or of what the kernel has against it */
  message(text: EraMessage, done: (error?: Refused) => void = () => undefined, random?: Random): void {
    const acts: Record<EraMessage, Call['act']> = {
      checkpoint: () => this.#rollOver(),
      take_metadata_snap: () => this.#takeSnapshot(random),
      drop_metadata_snap: () => this.#dropSnapshot()
    }
    this.#call(acts[text], done)
  }

  /** @param done told the status line, as it is before the worker commits what it has done since the last time */
  status(done: (line: string) => void): void {
    let line = ''
    const act = () => {
      const { metadata } = this.#store
      const total = metadata.counts.length
      const snapshot = this.metadataSnapshot === 0 ? '-' : this.metadataSnapshot
      // What was given back since the last commit is not free yet (sm_metadata_get_nr_free).
      line = `8 ${metadata.committedAllocated + metadata.taken}/${total} ${this.currentEra} ${snapshot}`
    }
    this.#call(act, () => {
      done(line)
    })
  }

  /** A write, or whatever else is marked as one, that begins in a block. @param go lets it go below */
  write(block: number, go: () => void): void {
    if (this.#marked.has(block)) return go()
    this.#deferred.push({ block, go })
    this.#isQueued = true
  }

  /** Nothing waits for the worker, and it has nothing of its own to do. */
  get isIdle(): boolean {
    return this.#work === undefined && !this.#isQueued
  }

  /** The next step of the worker. */
  step(random?: Random): WorkerStep {
    if (this.#work === undefined) {
      if (!this.#isQueued) return 'idle'
      this.#work = this.#once(random)
    }
    const { value, done } = this.#work.next()
    if (!done) return value
    this.#work = undefined
    return 'step'
  }

  /** The worker does all that it has to. */
  runWorker(): void {
    while (this.step() !== 'idle');
  }

  get freeMetadata(): number {
    return this.#store.metadata.free
  }

  /** The era of a block's last write, as the metadata has it; 0 for never. */
  lastEra(block: number): number {
    const digested = elementAt(this.#store, this.#eraArrayRoot, block, 4)[0]
    const archived = [...entriesOf(this.#store, this.#writesetTreeRoot)]
      .filter(([, writeset]) => block < (writeset as Writeset).bits && this.#hasBit((writeset as Writeset).root, block))
      .map(([era]) => era)
    return this.#marked.has(block) ? this.currentEra : Math.max(digested, ...archived)
  }

  /** Writes a block that was changed before its time: dm-bufio may, whenever it wants to. */
  writeBack(random: Random): void {
    const unwritten = this.#store.unwritten
    if (unwritten.length === 0) return
    const block = random.pick(unwritten)
    const bytes = this.#store.encode(block)
    if (bytes) this.disk.write(block, bytes)
  }

  // The worker

  #call(act: Call['act'], done: Call['done']): void {
    this.#calls.unshift({ act, done })
    this.#isQueued = true
  }

  /** A call, and the worker until it is answered. */
  *#served(act: Call['act'], random: Random | undefined): Generator<WorkerStep, void> {
    let isDone = false
    this.#call(act, () => {
      isDone = true
    })
    while (!isDone) {
      const work = this.#work ?? this.#once(random)
      this.#work = undefined
      yield* work
    }
  }

  /** Once through all that there is to do (do_work). */
  *#once(random: Random | undefined): Generator<WorkerStep, void> {
    this.#isQueued = false
    if (this.#hasArchived) {
      this.#hasArchived = false
      this.#digest ??= { at: 'lookup' }
    }
    this.#digestStep()
    yield* this.#processWrites(random)
    yield* this.#processCalls(random)
  }

  *#processWrites(random: Random | undefined): Generator<WorkerStep, void> {
    const writes = this.#deferred.splice(0)
    const unmarked = writes.filter(({ block }) => !this.#marked.has(block))
    for (const { block } of unmarked) this.#setBit(block)
    if (unmarked.length > 0) yield* this.#commit(random)
    for (const { block, go } of writes) {
      this.#marked.add(block)
      go()
    }
  }

  /** The last one that came is the first. */
  *#processCalls(random: Random | undefined): Generator<WorkerStep, void> {
    const answered: { done: Call['done']; error: Refused | undefined }[] = []
    for (const { act, done } of this.#calls.splice(0)) {
      let error: Refused | undefined
      try {
        yield* act() ?? []
      } catch (thrown) {
        if (!(thrown instanceof Refused)) throw thrown
        error = thrown
      }
      answered.push({ done, error })
    }
    if (answered.length > 0) yield* this.#commit(random)
    for (const { done, error } of answered) done(error)
  }

  #digestStep(): void {
    const digest = this.#digest
    if (digest === undefined) return
    const store = this.#store
    switch (digest.at) {
      case 'lookup': {
        const [oldest] = entriesOf(store, this.#writesetTreeRoot)
        const [era, writeset] = (oldest as typeof oldest | undefined) ?? []
        if (era === undefined) {
          this.#digest = undefined
          return
        }
        const { bits, root } = writeset as Writeset
        this.#digest = { at: 'copy', era, bits: Math.min(bits, this.#knownBlocks), root, from: 0 }
        break
      }
      case 'copy': {
        const { era, bits, root, from } = digest
        const end = Math.min(from + BITS_A_STEP, bits)
        for (let block = from; block < end; block++) {
          if (!this.#hasBit(root, block)) continue
          this.#eraArrayRoot = setElement(store, this.#eraArrayRoot, block, [era, 0], 4)
        }
        this.#digest = end === bits ? { at: 'remove', era } : { ...digest, from: end }
        break
      }
      case 'remove':
        this.#writesetTreeRoot = remove(store, this.#writesetTreeRoot, digest.era, writesets)
        this.#digest = { at: 'lookup' }
    }
    this.#isQueued = true
  }

  // Eras

  #rollOver(): void {
    if (this.#current.root !== 0) this.#archive()
    const store = this.#store
    const root = resizeArray(store, emptyArray(store), 0, Math.ceil(this.#knownBlocks / 64), 8)
    this.#current = { bits: this.#knownBlocks, root }
    this.#marked = new Set()
    this.currentEra++
  }

  #archive(): void {
    this.#flushWord()
    const writeset = { ...this.#current }
    this.#writesetTreeRoot = insert(this.#store, this.#writesetTreeRoot, this.currentEra, writeset, writesets)
    this.#current.root = 0
    this.#hasArchived = true
  }

  *#takeSnapshot(random: Random | undefined): Generator<WorkerStep, void> {
    if (this.metadataSnapshot !== 0) throw new Refused('EINVAL', 'metadata snapshot already exists')
    this.#rollOver()
    yield* this.#commit(random)
    const { metadata } = this.#store
    metadata.add(0, 1)
    const block = this.#store.allocate({ kind: 'held era', fields: this.#superblock() })
    metadata.add(0, -1)
    metadata.add(this.#writesetTreeRoot, 1)
    metadata.add(this.#eraArrayRoot, 1)
    this.metadataSnapshot = block
  }

  #dropSnapshot(): void {
    const block = this.metadataSnapshot
    if (block === 0) throw new Refused('EINVAL', 'no snap to drop')
    const { writesetTreeRoot, eraArrayRoot } = this.#store.held<HeldEraCopy>(block, 'held era')
    this.metadataSnapshot = 0
    releaseTree(this.#store, writesetTreeRoot, writesets)
    releaseArray(this.#store, eraArrayRoot)
    this.#store.release(block)
  }

  // Marks

  #setBit(block: number): void {
    const index = block >>> 6
    if (this.#word?.index !== index) {
      this.#flushWord()
      this.#word = { index, bits: [...elementAt(this.#store, this.#current.root, index, 8)] }
    }
    this.#word.bits[(block >>> 5) & 1] |= 1 << (block & 31)
  }

  #flushWord(): void {
    if (!this.#word) return
    const { index, bits } = this.#word
    this.#current.root = setElement(this.#store, this.#current.root, index, bits, 8)
    this.#word = undefined
  }

  #hasBit(root: number, block: number): boolean {
    const word = elementAt(this.#store, root, block >>> 6, 8)[(block >>> 5) & 1]
    return ((word >>> (block & 31)) & 1) === 1
  }

  *#commit(random: Random | undefined): Generator<WorkerStep, void> {
    const store = this.#store
    if (this.#current.root !== 0) this.#flushWord()
    store.flushSpaceMaps()
    const blocks = random ? random.shuffle(store.unwritten) : store.unwritten
    const superblock = encodeEraSuperblock(0, this.#superblock())
    store.committed()
    for (const block of blocks) {
      const bytes = store.encode(block)
      if (!bytes) continue
      this.disk.write(block, bytes)
      yield 'write'
    }
    this.disk.flush()
    yield 'flush'
    this.disk.write(0, superblock)
    yield 'superblock'
    this.disk.flush()
  }

  #superblock(): EraSuperblockFields {
    const { counts, allocated, indexRoot: bitmapRoot, referenceCountRoot } = this.#store.metadata
    const { blockSectors, currentEra, metadataSnapshot } = this
    return {
      ...{ spaceMap: { blocks: counts.length, allocated, bitmapRoot, referenceCountRoot } },
      ...{ blockSectors, blocks: this.#knownBlocks, currentEra, current: { ...this.#current } },
      ...{ writesetTreeRoot: this.#writesetTreeRoot, eraArrayRoot: this.#eraArrayRoot, metadataSnapshot }
    }
  }
}

function readEras(store: MetadataStore, { writesetTreeRoot, eraArrayRoot }: EraSuperblockFields): void {
  store.readTree(writesetTreeRoot, (writeset) => {
    readArray(store, (writeset as Writeset).root)
  })
  readArray(store, eraArrayRoot)
}

function drain(steps: Generator<WorkerStep, void>): void {
  for (let each = steps.next(); !each.done; each = steps.next());
}
