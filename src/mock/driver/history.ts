/**
 * The volumes of the mock driver and what was written to them: a seeded history of whole blocks, kept as a map from
 * block to the write that filled it. Snapshots share nothing and copy that map: volumes are small, and a wrong answer
 * must not come from cleverness here.
 *
 * What a block holds follows from the number of its write, so that a history needs no memory for data.
 */
import { Random } from '../../random.ts'

/** Bytes. */
export const BLOCK_BYTES = 16 * 1024

/** Bytes of a new volume: 16 MiB. */
export const CAPACITY_BYTES = 1024 * BLOCK_BYTES

/** Write number of blocks that were overwritten with zeroes: allocated, and reading as zeroes. */
const ZEROES = 0

/**
 * Blocks that hold something, each with the number of the write that filled it. What is not in it was never
 * written, or discarded.
 */
export type Blocks = ReadonlyMap<number, number>

export interface Snapshot {
  readonly id: string
  readonly volume: string
  /** Bytes. */
  readonly capacityBytes: number
  readonly blocks: Blocks
  /** Its turn among all snapshots: later ones are greater. */
  readonly sequence: number
  /** As CreateSnapshot named it. */
  readonly name: string
  readonly createdAt: Date
  /** Whether changes of its volume are tracked: deltas with it are refused otherwise. */
  readonly tracked: boolean
  /** False while it is still being made. */
  readonly ready: boolean
}

interface Volume {
  readonly id: string
  readonly blocks: Map<number, number>
  capacityBytes: number
  readonly tracked: boolean
}

/** Bytes `[offset, offset + size)` of a volume. */
export type Tuple = readonly [offset: number, size: number]

export interface HistoryOptions {
  readonly seed: number
  /** Bytes by which the first volume grows before its last snapshot. */
  readonly growBytes?: number
  /** Nothing is written to the first volume between its first two snapshots. */
  readonly idleNight?: boolean
}

/** Thrown where a volume or snapshot is asked for that there is not. */
export class NoSuchThing extends Error {}

export class History {
  readonly #random: Random
  readonly #volumes = new Map<string, Volume>()
  readonly #snapshots = new Map<string, Snapshot>()
  #writes = ZEROES
  #sequence = 0

  constructor({ seed, growBytes = 0, idleNight = false }: HistoryOptions) {
    this.#random = new Random(seed)
    this.#begin(seed, growBytes, !idleNight)
  }

  /** All of them, oldest first. */
  get snapshots(): readonly Snapshot[] {
    return [...this.#snapshots.values()]
  }

  snapshot(id: string): Snapshot | undefined {
    return this.#snapshots.get(id)
  }

  hasVolume(id: string): boolean {
    return this.#volumes.has(id)
  }

  /**
   * A snapshot of a volume as it is, after a little more was written to it: there is always something to back up.
   *
   * @throws NoSuchThing
   */
  take(volumeId: string, name: string, { write = true, ready = true } = {}): Snapshot {
    const volume = this.#volumes.get(volumeId)
    if (volume === undefined) throw new NoSuchThing(`there is no volume ${volumeId}`)
    if (write) this.#work(volume)
    const sequence = ++this.#sequence
    const snapshot: Snapshot = {
      id: `${volumeId}-snap-${String(sequence).padStart(4, '0')}`,
      volume: volumeId,
      capacityBytes: volume.capacityBytes,
      blocks: new Map(volume.blocks),
      sequence,
      name,
      // Seconds apart, whatever the clock says: oldest first has to show.
      createdAt: new Date(Date.UTC(2026, 0, 1) + sequence * 60_000),
      tracked: volume.tracked,
      ready
    }
    this.#snapshots.set(snapshot.id, snapshot)
    return snapshot
  }

  /** Forgets a snapshot; whether there was one. */
  delete(id: string): boolean {
    return this.#snapshots.delete(id)
  }

  /**
   * What was there before the first question: four snapshots of one volume, three of another, and some that not
   * everything can be asked of.
   */
  #begin(seed: number, growBytes: number, write: boolean): void {
    const add = (id: string, tracked = true): Volume => {
      const volume = { id: `${id}-${seed}`, blocks: new Map<number, number>(), capacityBytes: CAPACITY_BYTES, tracked }
      this.#volumes.set(volume.id, volume)
      return volume
    }
    const [first, second, untracked] = [add('orders'), add('photos'), add('scratch', false)]
    this.#fill(first)
    this.take(first.id, 'monday')
    this.take(first.id, 'tuesday', { write })
    this.take(first.id, 'wednesday')
    first.capacityBytes += growBytes
    this.take(first.id, 'thursday')
    this.#fill(second)
    for (const night of ['monday', 'tuesday']) this.take(second.id, night)
    this.#fill(untracked)
    for (const night of ['monday', 'tuesday']) this.take(untracked.id, night)
    // Nothing was written that day: a delta may be empty.
    this.take(second.id, 'wednesday', { write: false })
    this.take(second.id, 'thursday', { ready: false })
  }

  /** The first load: runs of blocks, the first and the last block of the volume among them. */
  #fill(volume: Volume): void {
    const last = volume.capacityBytes / BLOCK_BYTES - 1
    for (const block of [0, last]) this.#write(volume, block)
    for (let run = 0; run < 48; run++) this.#run(volume, (block) => this.#write(volume, block))
  }

  /** A day's work: writes to new and to used places, discards, zeroes, and the same block twice. */
  #work(volume: Volume): void {
    const random = this.#random
    const used = [...volume.blocks.keys()]
    for (let run = 0; run < 24; run++) this.#run(volume, (block) => this.#write(volume, block))
    for (let turn = 0; turn < 8; turn++) {
      this.#write(volume, random.pick(used))
      volume.blocks.delete(random.pick(used))
      volume.blocks.set(random.pick(used), ZEROES)
    }
  }

  #run(volume: Volume, touch: (block: number) => void): void {
    const blocks = volume.capacityBytes / BLOCK_BYTES
    const start = this.#random.integer(0, blocks - 1)
    const end = Math.min(start + this.#random.integer(1, 6), blocks)
    for (let block = start; block < end; block++) touch(block)
  }

  #write(volume: Volume, block: number): void {
    volume.blocks.set(block, ++this.#writes)
  }
}

/** Whether a snapshot may be compared with another: older, and of the same volume. */
export function comparable(base: Snapshot, target: Snapshot): boolean {
  return base.volume === target.volume && base.sequence <= target.sequence
}

/** Blocks of a snapshot that were written and not discarded since, ascending. */
export function allocatedBlocks({ blocks }: Snapshot): number[] {
  return [...blocks.keys()].sort((one, other) => one - other)
}

/** Blocks in which two snapshots differ, ascending; also those that the target has no more. */
export function changedBlocks(base: Snapshot, target: Snapshot): number[] {
  const all = new Set([...base.blocks.keys(), ...target.blocks.keys()])
  return [...all]
    .filter((block) => base.blocks.get(block) !== target.blocks.get(block))
    .sort((one, other) => one - other)
}

/** Ascending blocks as byte ranges, those that touch as one. */
export function merged(blocks: readonly number[], blockBytes = BLOCK_BYTES): Tuple[] {
  const tuples: [number, number][] = []
  for (const block of blocks) {
    const last = tuples.at(-1)
    const offset = block * blockBytes
    if (last !== undefined && last[0] + last[1] === offset) last[1] += blockBytes
    else tuples.push([offset, blockBytes])
  }
  return tuples
}

/** What the write of that number put into a block. */
export function contentOf(write: number): Buffer {
  const content = Buffer.alloc(BLOCK_BYTES)
  if (write === ZEROES) return content
  const random = new Random(write * 7919)
  for (let at = 0; at < BLOCK_BYTES; at += 4) content.writeUInt32LE(random.uint32(), at)
  return content
}
