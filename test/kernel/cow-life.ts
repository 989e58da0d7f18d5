/**
 * Random lives of an LVM volume with classic snapshots (lvcreate -s -L), inside the kernel lab: writes of any size and place, raw or through ext4,
 * snapshots of several chunk sizes, writes into some of them, stores that overflow or get larger, restarts, merges, names given again.
 *
 * Each snapshot is backed up when it is taken: that copy is what an incremental restore begins with.
 */
import { closeSync, constants, fsyncSync, mkdirSync, openSync, readSync, writeFileSync, writeSync } from 'node:fs'
import { randomFillSync } from 'node:crypto'
import { join } from 'node:path'
import { tmpdir } from 'node:os'
import { DeltamapperError } from '../../src/errors.ts'
import type { Extent } from '../support/expected.ts'
import type { Random } from '../support/random.ts'
import { alignedBuffer, deviceBytes, run } from './dmsetup.ts'
import { lvm } from './lvm-setup.ts'

export const MEBIBYTE = 2 ** 20
const KIBIBYTE = 1024
const BLOCK_BYTES = 4 * KIBIBYTE
const MOST_WRITTEN = MEBIBYTE
/** Of so many pairs that are answered, one is restored. */
const RESTORED_EACH = 8
const buffer = alignedBuffer(MOST_WRITTEN)

export interface LifeSnapshot {
  readonly name: string
  readonly chunkBytes: number
  readonly readOnly: boolean
  /** What a backup copied when it was taken. */
  readonly backup: Buffer
  /** Its number in the order in which they were taken. */
  readonly order: number
  /** Somebody has written into it since. */
  isWritten: boolean
  /** The code that an answer about it has to be refused with; undefined where it has to be answered. */
  lost: string | undefined
}

/** How an incremental backup is asked for. @throws DeltamapperError */
export type AskPair = (base: LifeSnapshot, target: LifeSnapshot, life: CowLife) => Promise<Extent[]>

export interface LifeCounts {
  pairs: number
  /** Of which an increment was restored, and held byte by byte against the snapshot. Of the others, blocks were compared. */
  restored: number
  /** Of which the answer had to be exact, and was. */
  exact: number
  refused: Record<string, number>
  steps: Record<string, number>
}

export class CowLife {
  readonly group: string
  readonly origin: string
  readonly snapshots: LifeSnapshot[] = []
  readonly counts: LifeCounts = { pairs: 0, restored: 0, exact: 0, refused: {}, steps: {} }
  readonly #random: Random
  readonly #ext4: boolean
  /** Of the names of its snapshots. */
  readonly #prefix: string
  #mounted = false
  #taken = 0
  /** Content that was there before has come back: then a chunk that was written to may be as it was. */
  #contentsReturn = false

  /**
   * Makes the volume in a group that there is, unless it is there from an earlier life.
   *
   * @param group with 10 MiB to spare for each snapshot
   * @param options.taken how many snapshots an earlier life has taken; those that are left are still to be told
   */
  constructor(
    group: string,
    origin: string,
    random: Random,
    { ext4 = false, prefix = '', taken }: { ext4?: boolean; prefix?: string; taken?: number } = {}
  ) {
    this.#prefix = prefix
    this.group = group
    this.origin = origin
    this.#random = random
    this.#ext4 = ext4
    if (taken !== undefined) {
      this.#taken = taken
      this.#contentsReturn = true
      return
    }
    lvm('lvcreate', '--size', ext4 ? '8m' : '4m', '--wipesignatures', 'n', '--name', origin, group)
    if (!ext4) return
    this.#contentsReturn = true
    run('mkfs.ext4', ['-q', '-F', this.device()])
    this.#mount()
  }

  device(name = this.origin): string {
    return `/dev/${this.group}/${name}`
  }

  get #mountPoint(): string {
    return join(tmpdir(), `life-${this.group}-${this.origin}`)
  }

  /** So many snapshots, with writes and events in between. */
  live(snapshots: number): void {
    for (let i = 0; i < snapshots; i++) {
      this.write()
      this.take()
      this.write()
      this.event()
    }
    this.write()
  }

  write(): void {
    for (let i = this.#random.integer(1, 6); i > 0; i--) {
      if (this.#mounted) {
        const bytes = Buffer.alloc(this.#random.pick([700, 5000, 60_000, 300_000]))
        writeFileSync(join(this.#mountPoint, `file-${this.#random.integer(0, 5)}`), randomFillSync(bytes))
      } else writeSomewhere(this.device(), this.#random)
    }
    if (this.#mounted) run('sync', ['-f', this.#mountPoint])
    const writable = this.snapshots.filter(({ readOnly, lost }) => !readOnly && lost === undefined)
    if (writable.length === 0 || !this.#random.chance(0.4)) return
    const snapshot = this.#random.pick(writable)
    snapshot.isWritten = true
    try {
      writeSomewhere(this.device(snapshot.name), this.#random)
    } catch (error) {
      // Its store is full by now, or was before the kernel was killed.
      this.#lookForOverflow()
      if (snapshot.lost === undefined) throw error
    }
    this.#step('written into')
    this.#lookForOverflow()
  }

  /** @param store size of its store; by default as large as it can need */
  take({
    name = `${this.#prefix}s${this.#taken}`,
    mebibytes = Math.ceil(deviceBytes(this.device()) / MEBIBYTE) + 3,
    readOnly = this.#random.chance(0.7)
  } = {}): LifeSnapshot {
    const chunk = this.#random.pick([4, 4, 4, 8, 64, 512])
    lvm(
      ...['lvcreate', '--snapshot', '--size', `${mebibytes}m`, '--chunksize', `${chunk}k`],
      ...['--permission', readOnly ? 'r' : 'rw', '--name', name, `${this.group}/${this.origin}`]
    )
    const snapshot: LifeSnapshot = {
      ...{ name, chunkBytes: chunk * KIBIBYTE, readOnly, order: this.#taken++ },
      ...{ backup: contentOf(this.device(name)), isWritten: false, lost: undefined }
    }
    this.snapshots.push(snapshot)
    this.#step('taken')
    return snapshot
  }

  /** Something other than a write. */
  event(): void {
    const event = this.#random.pick(['nothing', 'restart', 'extend', 'overflow', 'remove', 'grow'] as const)
    const [first] = this.snapshots
    if (event === 'restart') this.restart()
    if (event === 'extend') this.extend()
    if (event === 'overflow' && !this.#ext4 && !this.snapshots.some(({ lost }) => lost !== undefined)) this.overflow()
    if (event === 'remove' && this.snapshots.length > 3) this.remove(first)
    if (event === 'grow') this.grow()
    this.#step(event)
  }

  /** As after an orderly reboot. */
  restart(): void {
    this.#unmount()
    this.#activate('n')
    this.#activate('y')
    this.#mount()
  }

  /** An origin that is not active can get larger, with snapshots of its old size. */
  grow(): void {
    this.#unmount()
    this.#activate('n')
    lvm('lvextend', '--size', '+1m', `${this.group}/${this.origin}`)
    this.#activate('y')
    this.#mount()
  }

  /** Of the volume, and with it of its snapshots. */
  #activate(yes: 'y' | 'n'): void {
    lvm('lvchange', '--activate', yes, `${this.group}/${this.origin}`)
  }

  /** A snapshot of which the store is too small for what is written then. */
  overflow(): void {
    const name = `${this.#prefix}over${this.#taken}`
    const snapshot = this.take({ name, mebibytes: 2 })
    for (let at = 0; at < 3 * MEBIBYTE; at += MEBIBYTE) writeBytes(this.device(), at, MEBIBYTE)
    this.#lookForOverflow()
    if (snapshot.lost === undefined) this.#step('has not overflowed')
  }

  /** A snapshot of which the store would be too small, and gets larger in time. */
  extend(): void {
    const snapshot = this.take({ mebibytes: 2 })
    if (!this.#mounted) writeSomewhere(this.device(), this.#random, BLOCK_BYTES)
    lvm('lvextend', '--size', '+10m', `${this.group}/${snapshot.name}`)
    this.write()
  }

  remove(snapshot: LifeSnapshot): void {
    lvm('lvremove', `${this.group}/${snapshot.name}`)
    this.snapshots.splice(this.snapshots.indexOf(snapshot), 1)
  }

  /** Snapshots that the volume can be put back to. (With what is written into one, its file system is none any more.) */
  get mergeable(): LifeSnapshot[] {
    return this.snapshots.filter(({ lost, isWritten }) => lost === undefined && !(this.#ext4 && isWritten))
  }

  /** Puts the volume back to what a snapshot holds; the snapshot is gone then. */
  merge(snapshot: LifeSnapshot): void {
    this.#unmount()
    lvm('lvconvert', '--merge', '--interval', '1', `${this.group}/${snapshot.name}`)
    this.snapshots.splice(this.snapshots.indexOf(snapshot), 1)
    this.#contentsReturn = true
    this.#step('merged')
    this.#lookForOverflow()
    this.#mount()
  }

  /**
   * Asks about every pair, all at once, and holds what a restore of each would be against the snapshot. @throws Error that
   * says which was wrong
   */
  async check(ask: AskPair): Promise<void> {
    this.#lookForOverflow()
    const pairs = this.snapshots.flatMap((target) =>
      this.snapshots.filter(({ order }) => order < target.order).map((base) => ({ base, target }))
    )
    const asked = pairs.map(async ({ base, target }) => {
      const answer = await ask(base, target, this).catch((error: unknown) => {
        if (error instanceof DeltamapperError) return error
        throw error
      })
      return { base, target, answer }
    })
    let content: { readonly of: LifeSnapshot; readonly bytes: Buffer } | undefined
    for (const { base, target, answer } of await Promise.all(asked)) {
      if (content?.of !== target) content = { of: target, bytes: this.#contentOf(target) }
      this.counts.pairs++
      const fault = this.#fault(base, target, content.bytes, answer)
      if (fault !== undefined) throw new Error(`${base.name} → ${target.name}: ${fault}`)
    }
  }

  /** Until it is called again. Nothing of a snapshot that is lost. */
  #contentOf({ name, lost }: LifeSnapshot): Buffer {
    return lost === undefined ? contentOf(this.device(name), scratch('content')) : Buffer.alloc(0)
  }

  /** Takes all of it away. */
  end(): void {
    this.#unmount()
    lvm('lvremove', '--force', `${this.group}/${this.origin}`)
  }

  #fault(
    base: LifeSnapshot,
    target: LifeSnapshot,
    content: Buffer,
    answer: Extent[] | DeltamapperError
  ): string | undefined {
    const due = base.lost ?? target.lost
    if (answer instanceof DeltamapperError) {
      this.counts.refused[answer.code] = (this.counts.refused[answer.code] ?? 0) + 1
      return answer.code === due ? undefined : `refused with ${answer.line} where ${due ?? 'an answer'} is due`
    }
    if (due !== undefined) return `answered where ${due} is due`
    // A restore is right when each block that differs is in the answer. Some are made all the same.
    const differing = differingBlocks(base.backup, content)
    const reported = new Set(answer.flatMap((extent) => wholeBlocks(extent)))
    const missing = differing.find((block) => !reported.has(block))
    if (missing !== undefined) return `block ${missing} differs, and is not in the answer`
    if (this.counts.pairs % RESTORED_EACH === 1) {
      this.counts.restored++
      const wrong = firstDifference(restored(base.backup, content, answer), content)
      if (wrong >= 0) return `a restore is wrong at byte ${wrong}`
    }
    return this.#notExact(base, target, answer, differing)
  }

  /** Where nobody could write into either, and nothing has come back, the answer is the chunks that differ. */
  #notExact(base: LifeSnapshot, target: LifeSnapshot, answer: Extent[], differing: number[]): string | undefined {
    const { chunkBytes } = base
    const sameSize = base.backup.length === target.backup.length
    const isExact = base.readOnly && target.readOnly && !this.#contentsReturn && chunkBytes === target.chunkBytes
    if (!isExact || !sameSize) return undefined
    this.counts.exact++
    const wanted = [...new Set(differing.map((block) => Math.floor((block * BLOCK_BYTES) / chunkBytes)))]
    const found = chunksOf(answer, chunkBytes)
    return found.join() === wanted.join() ? undefined : `chunks ${found.join()} were reported, ${wanted.join()} differ`
  }

  #lookForOverflow(): void {
    for (const snapshot of this.snapshots) {
      const name = `${this.group}-${snapshot.name.replaceAll('-', '--')}`
      const said = run('dmsetup', ['status', '--noflush', name]).trim()
      if (/ (Invalid|Overflow)$/.test(said)) snapshot.lost = 'DM_COW_INVALID'
    }
  }

  #mount(): void {
    if (!this.#ext4) return
    mkdirSync(this.#mountPoint, { recursive: true })
    run('mount', [this.device(), this.#mountPoint])
    this.#mounted = true
  }

  #unmount(): void {
    if (this.#mounted) run('umount', [this.#mountPoint])
    this.#mounted = false
  }

  #step(name: string): void {
    this.counts.steps[name] = (this.counts.steps[name] ?? 0) + 1
  }
}

/** Writes what was nowhere before, past the page cache. */
function writeSomewhere(device: string, random: Random, most = MOST_WRITTEN): void {
  const size = deviceBytes(device)
  const sectors = random.pick([1, 8, 64, most / 512].filter((each) => each * 512 <= most))
  const bytes = Math.min(512 * random.integer(1, sectors), size)
  writeBytes(device, 512 * random.integer(0, (size - bytes) / 512), bytes)
}

function writeBytes(device: string, at: number, bytes: number): void {
  randomFillSync(buffer, 0, bytes)
  const file = openSync(device, constants.O_WRONLY | constants.O_DIRECT)
  try {
    writeSync(file, buffer, 0, bytes, at)
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
}

const scratches = new Map<string, Buffer>()

/**
 * Memory for something that is made again and again. (A page that a program touches for the first time is dear in the
 * kernel lab, and is a mapping of its own on the host, which has room for 65,530.)
 */
function scratch(use: string): (bytes: number) => Buffer {
  return (bytes) => {
    const kept = scratches.get(use)
    const memory = kept && kept.length >= bytes ? kept : Buffer.alloc(bytes)
    scratches.set(use, memory)
    return memory.subarray(0, bytes)
  }
}

/** All that a device holds, read around the page cache. @param memory where it is to be */
export function contentOf(device: string, memory: (bytes: number) => Buffer = (bytes) => Buffer.alloc(bytes)): Buffer {
  const content = memory(deviceBytes(device))
  const file = openSync(device, constants.O_RDONLY | constants.O_DIRECT)
  try {
    for (let at = 0; at < content.length;) {
      const read = readSync(file, buffer, 0, Math.min(buffer.length, content.length - at), at)
      content.set(buffer.subarray(0, read), at)
      at += read
    }
  } finally {
    closeSync(file)
  }
  return content
}

/** A backup of the base with what an answer says copied from the target. */
function restored(backup: Buffer, content: Buffer, answer: readonly Extent[]): Buffer {
  const volume = scratch('restored')(content.length).fill(0)
  backup.copy(volume)
  for (const [offset, size] of answer) content.copy(volume, offset, offset, offset + size)
  return volume
}

/** The first byte that differs, to a block; -1 where none does. */
function firstDifference(one: Buffer, other: Buffer): number {
  const [block] = differingBlocks(one, other)
  return block === undefined ? -1 : block * BLOCK_BYTES
}

/** Blocks of the second in which the first is another, or has ended. */
function differingBlocks(one: Buffer, other: Buffer): number[] {
  const blocks: number[] = []
  for (let at = 0; at < other.length; at += BLOCK_BYTES) {
    const end = at + BLOCK_BYTES
    if (end > one.length || one.compare(other, at, end, at, end) !== 0) blocks.push(at / BLOCK_BYTES)
  }
  return blocks
}

/** Blocks all of which an extent has. */
function wholeBlocks([offset, size]: Extent): number[] {
  const first = Math.ceil(offset / BLOCK_BYTES)
  const end = Math.floor((offset + size) / BLOCK_BYTES)
  return Array.from({ length: Math.max(end - first, 0) }, (_, i) => first + i)
}

function chunksOf(extents: readonly Extent[], chunkBytes: number): number[] {
  return extents.flatMap(([offset, size]) =>
    Array.from({ length: Math.ceil(size / chunkBytes) }, (_, i) => offset / chunkBytes + i)
  )
}
