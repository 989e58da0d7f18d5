/**
 * A thin pool of LVM's whose metadata is put back to what it was before: the state that a power cut leaves behind
 * (metadata as on disk, data as they are), or a copy from an earlier moment. What each snapshot holds is read from its
 * device, so what an answer has to be does not depend on any metadata.
 */
import { crc32c } from '@node-rs/crc32'
import { closeSync, constants, copyFileSync, openSync, readdirSync, readSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { BaseRecordReader } from '../../src/devicemapper/thin/base-record/reader.ts'
import { newcomers } from '../../src/devicemapper/thin/base-record/pool-moment.ts'
import { checkWentOn } from '../../src/devicemapper/thin/base-record/trust.ts'
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { DeltamapperError } from '../../src/errors.ts'
import type { SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { collectExtents } from '../support/collect-extents.ts'
import type { Extent } from '../support/expected.ts'
import type { Random } from '../support/random.ts'
import { answerTo } from './ask.ts'
import { discard } from './discard.ts'
import { alignedBuffer, createDevice, removeDevice, run, sectorBytes, thinTable } from './dmsetup.ts'
import { createThin, lvm } from './lvm-setup.ts'

const BLOCK = 65_536
const BLOCKS = 96
const SIZE = BLOCKS * BLOCK
/** How many snapshots that are gone are asked about after each time, the newest ones. */
const MOST_ASKED = 3
/** Metadata on its way from or to the disk, past the page cache. */
let metadataBuffer: Uint8Array | undefined

/** What came of it all. */
export interface PutBackTally {
  cuts: number
  rollbacks: number
  /** Answers of the agent that had every block that differs, and by code those that it refused. */
  right: number
  readonly refused: Record<string, number>
  /** What the records alone would have said of the same: refused by them, right, or too little, of that with a witness. */
  readonly alone: { noticed: number; right: number; wrong: number; wrongWithWitness: { cut: number; rollback: number } }
}

export function noPutBackTally(): PutBackTally {
  const alone = { noticed: 0, right: 0, wrong: 0, wrongWithWitness: { cut: 0, rollback: 0 } }
  return { cuts: 0, rollbacks: 0, right: 0, refused: {}, alone }
}

/** A snapshot that was served. */
export interface Served {
  readonly name: string
  /** What it held then: a checksum of each block. */
  readonly content: Uint32Array
  /** A copy of its record; undefined if there is none. */
  readonly record: string | undefined
  isThere: boolean
}

/** A pool at one moment: its metadata, and LVM's of the group in a file. */
interface Copy {
  readonly metadata: Uint8Array
  readonly group: string | undefined
}

export interface PutBackOptions {
  readonly group: string
  readonly pool: string
  /** Whether the pool passes discards on to its data device. */
  readonly passdown: boolean
  /** Where the agent keeps its records, and a folder for copies of them; without it, records are asked nothing. */
  readonly records: string
  readonly copies?: string
  /** The pool is there already, and these were served. */
  readonly before?: readonly Served[]
  /** Names of snapshots begin so; the pool's name by default. */
  readonly prefix?: string
}

export class PutBackLife {
  readonly #options: PutBackOptions
  readonly #random: Random
  readonly #tally: PutBackTally
  readonly #volume: string
  readonly #buffer = alignedBuffer(BLOCK)
  readonly served: Served[] = []
  readonly #seen = new Set<string>()
  readonly #prefix: string
  #snapshots = 0
  #writes = 1
  #kind: 'cut' | 'rollback' = 'cut'

  constructor(options: PutBackOptions, random: Random, tally: PutBackTally) {
    this.#options = options
    this.#random = random
    this.#tally = tally
    const { group, pool, passdown, before, prefix = pool } = options
    this.#prefix = prefix
    this.#volume = `/dev/${group}/${pool}-data`
    if (before) {
      this.served.push(...before)
      return
    }
    const discards = passdown ? 'passdown' : 'nopassdown'
    lvm(
      'lvcreate',
      '--type',
      'thin-pool',
      '--size',
      '48m',
      '--chunksize',
      '64k',
      '--discards',
      discards,
      '--name',
      pool,
      group
    )
    createThin(group, pool, `${pool}-data`, SIZE / 2 ** 20)
  }

  /** One base that goes, one cut or rollback, and all that is asked afterwards. @throws Error that says what was missed */
  async round(client: SnapshotMetadataClient, kind: 'cut' | 'rollback'): Promise<void> {
    const random = this.#random
    this.#kind = kind
    this.write(random.integer(4, 24))
    const base = this.served.findLast(({ isThere }) => isThere) ?? (await this.snapshot(client))
    this.write(random.integer(1, 12))
    const target = await this.snapshot(client, base)
    let copy: Copy | undefined
    let isSeen = false
    const copyNow = () => (copy ??= this.#copy(true))
    if (kind === 'rollback' && random.chance(0.3)) copyNow()
    this.remove(base)
    // Only what no snapshot shares is discarded below as well, and given out anew.
    if (random.chance(0.7)) this.remove(target)
    if (kind === 'cut') {
      this.discard(random.integer(1, 40))
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, random.chance(0.3) ? 0 : random.integer(0, 1000))
      copy = this.#copy(false)
      this.#tally.cuts++
    } else {
      if (random.chance(0.5)) copyNow()
      this.write(random.integer(1, 24))
      if (random.chance(0.3)) this.discard(random.integer(1, 10))
      if (random.chance(0.3)) this.remove(await this.snapshot(client, target.isThere ? target : undefined))
      copyNow()
      // Whether the agent looks at the pool before it goes back: it does every 10 seconds, and for each question.
      isSeen = random.chance(0.5)
      if (isSeen) this.remove(await this.snapshot(client))
      this.write(random.integer(1, 24))
      // A pool that is loaded anew gives out the lowest blocks first: those that were freed.
      if (random.chance(0.5)) {
        for (const state of ['n', 'y']) lvm('vgchange', '--activate', state, this.#options.group)
        this.write(random.integer(12, 48))
      }
      this.#tally.rollbacks++
    }
    if (!this.#putBack(copy!)) return
    if (random.chance(0.5)) this.write(random.integer(1, 6))
    await this.askAll(client, { isLvmBack: copy!.group !== undefined, isSeen })
    const [last, ...others] = this.served.filter(({ isThere }) => isThere).toReversed()
    if (others.length > 0) lvm('lvremove', '--force', ...others.map((each) => this.#handle(each)))
    for (const each of this.served) each.isThere = each === last
  }

  /** A snapshot that was read and served. */
  async snapshot(client: SnapshotMetadataClient, base?: Served): Promise<Served> {
    const { name, content } = await this.#take()
    const question = { ...(base && { base: this.#handle(base) }), target: `${this.#options.group}/${name}` }
    // After a rollback its base may not count any more.
    await answerTo(client, question).catch(() => answerTo(client, { target: question.target }))
    const served = { name, content, record: this.#newRecord(name), isThere: true }
    this.served.push(served)
    return served
  }

  async #take(): Promise<{ name: string; content: Uint32Array }> {
    const { group } = this.#options
    const name = `${this.#prefix}-s${this.#snapshots++}`
    lvm(
      'lvcreate',
      '--snapshot',
      '--permission',
      'r',
      '--setactivationskip',
      'y',
      '--name',
      name,
      this.#volume.slice(5)
    )
    const metadata = await openPoolMetadata(`/dev/mapper/${this.#mapped('tmeta')}`, { liveRoot: true })
    let newest = { id: -1, time: -1 }
    for await (const { id, details } of metadata.devices()) {
      if (details.creationTime > newest.time) newest = { id, time: details.creationTime }
    }
    await metadata.close()
    return { name, content: this.#read(newest.id, group) }
  }

  #handle({ name }: Served): string {
    return `${this.#options.group}/${name}`
  }

  /** A copy of the record that the agent has made last. */
  #newRecord(name: string): string | undefined {
    const { records, copies } = this.#options
    if (copies === undefined) return undefined
    const made = readdirSync(records).filter((each) => each.endsWith('.base') && !this.#seen.has(each))
    for (const each of made) this.#seen.add(each)
    const record = made.at(-1)
    if (record === undefined) return undefined
    const copy = join(copies, `${name}.base`)
    copyFileSync(join(records, record), copy)
    return copy
  }

  remove(snapshot: Served): void {
    lvm('lvremove', '--force', this.#handle(snapshot))
    snapshot.isThere = false
  }

  write(count: number): void {
    const file = openSync(this.#volume, constants.O_RDWR | constants.O_DIRECT)
    for (let i = 0; i < count; i++) {
      const isWhole = this.#random.chance(0.5)
      const part = this.#buffer.subarray(0, isWhole ? BLOCK : 4096).fill(1)
      new DataView(part.buffer, part.byteOffset).setUint32(0, this.#writes++)
      writeSync(file, part, 0, part.length, this.#random.integer(0, BLOCKS - 1) * BLOCK)
    }
    closeSync(file)
  }

  discard(count: number): void {
    const file = openSync(this.#volume, constants.O_RDWR | constants.O_DIRECT)
    for (let i = 0; i < count; i++) discard(file, this.#random.integer(0, BLOCKS - 1) * BLOCK, BLOCK)
    closeSync(file)
  }

  #read(thinId: number, group: string): Uint32Array {
    const name = `${this.#options.pool}-read`
    const device = createDevice(name, thinTable(`${group}-${this.#options.pool}-tpool`, thinId, SIZE), '--readonly')
    const file = openSync(device, constants.O_RDONLY | constants.O_DIRECT)
    const content = Uint32Array.from({ length: BLOCKS }, (_, block) => {
      if (readSync(file, this.#buffer, 0, BLOCK, block * BLOCK) !== BLOCK) throw new Error(`block ${block} is cut off`)
      return crc32c(this.#buffer.subarray(0, BLOCK))
    })
    closeSync(file)
    removeDevice(name)
    return content
  }

  #mapped(part: 'tmeta' | 'tpool'): string {
    const { group, pool } = this.#options
    return part === 'tmeta' ? `${group}-${pool}_tmeta` : `${group}-${pool}-tpool`
  }

  /** The pool's metadata as they are on disk. */
  #copy(withGroup: boolean): Copy {
    const { group, copies = '' } = this.#options
    const file = withGroup ? join(copies, 'group') : undefined
    if (file !== undefined) lvm('vgcfgbackup', '--file', file, group)
    return { metadata: this.#onDisk(), group: file }
  }

  #onDisk(table = this.#metadataTable()): Uint8Array {
    return withDevice(table, constants.O_RDONLY, (descriptor, bytes) => {
      metadataBuffer ??= alignedBuffer(bytes)
      if (readSync(descriptor, metadataBuffer, 0, bytes, 0) !== bytes) throw new Error('the metadata is cut off')
      return Buffer.from(metadataBuffer)
    })
  }

  #metadataTable(): string {
    return run('dmsetup', ['table', this.#mapped('tmeta')]).trim()
  }

  /** Ends the pool, puts the copy in its place, and starts it. @returns false if the kernel will not have it */
  #putBack({ metadata, group: file }: Copy): boolean {
    const { group } = this.#options
    const table = this.#metadataTable()
    lvm('vgchange', '--activate', 'n', group)
    const whole = { metadata: this.#onDisk(table), group: undefined }
    const put = (copy: Copy) => {
      withDevice(table, constants.O_RDWR, (descriptor, bytes) => {
        metadataBuffer?.set(copy.metadata)
        writeSync(descriptor, metadataBuffer!, 0, bytes, 0)
      })
      if (copy.group !== undefined) lvm('vgcfgrestore', '--force', '--file', copy.group, group)
      lvm('vgchange', '--activate', 'y', group)
    }
    try {
      put({ metadata, group: file })
    } catch (error) {
      if (file !== undefined) throw error
      // Read while it was being written: thin_check refuses it.
      put(whole)
      return false
    }
    return true
  }

  /** @param at whether LVM's volumes are those of the copy, and the agent had seen the pool since it was made */
  async askAll(client: SnapshotMetadataClient, at: { isLvmBack: boolean; isSeen: boolean }): Promise<void> {
    const { name, content } = await this.#take()
    const target = `${this.#options.group}/${name}`
    // Of LVM's volumes, a rollback brings some back.
    const unnoticed = new Set<Served>()
    if (at.isLvmBack) {
      const there = new Set(lvm('lvs', '--noheadings', '--options', 'lv_name', this.#options.group).split(/\s+/))
      for (const base of this.served) {
        // Its blocks were given out anew, and nothing tells so (docs/guarantees.md).
        if (!at.isSeen && !base.isThere && there.has(base.name)) unnoticed.add(base)
        base.isThere = there.has(base.name)
      }
    }
    for (const base of this.served.slice(-MOST_ASKED)) {
      if (unnoticed.has(base)) continue
      try {
        const missed = missedBlocks(await answerTo(client, { base: this.#handle(base), target }), base.content, content)
        if (missed.length > 0) throw new Error(`${base.name} and ${name}: the agent misses blocks ${missed.join(', ')}`)
        this.#tally.right++
      } catch (error) {
        if (!(error instanceof DeltamapperError)) throw error
        if (error.status !== 'FAILED_PRECONDITION' && error.code !== 'DM_SNAPSHOT_NOT_FOUND') throw error
        this.#tally.refused[error.code] = (this.#tally.refused[error.code] ?? 0) + 1
      }
      if (!base.isThere && base.record !== undefined) await this.#alone(base, base.record, content)
    }
    await answerTo(client, { target })
    this.served.push({ name, content, record: this.#newRecord(name), isThere: true })
  }

  /** What the record by itself would have said, if nobody knew that the pool was activated anew. */
  async #alone(base: Served, path: string, content: Uint32Array): Promise<void> {
    const { alone } = this.#tally
    const record = await BaseRecordReader.open(path)
    const metadata = await openPoolMetadata(`/dev/mapper/${this.#mapped('tmeta')}`, { liveRoot: true })
    try {
      const now = await metadata.moment()
      checkWentOn(record.header, now, metadata.superblock)
      let newest = { id: -1, time: -1 }
      for await (const { id, details } of metadata.devices()) {
        if (details.creationTime > newest.time) newest = { id, time: details.creationTime }
      }
      const answer = await metadata.deltaFromRecord({ record, deviceId: newest.id, sizeBytes: SIZE })
      if (missedBlocks(await collectExtents(answer), base.content, content).length === 0) alone.right++
      else {
        alone.wrong++
        // A device of the record's list that is there as it was.
        const { devices } = record.header.pool.moment
        const all = devices.length / 16
        const lost = [...newcomers(now, { ...now, devices })].length
        if (lost < all) alone.wrongWithWitness[this.#kind]++
      }
    } catch (error) {
      if (!(error instanceof DeltamapperError) || !error.code.startsWith('DM_BASE_RECORD_')) throw error
      alone.noticed++
    } finally {
      await metadata.close()
      await record.close()
    }
  }
}

/** Blocks that differ, and are in no extent. */
function missedBlocks(extents: readonly Extent[], before: Uint32Array, now: Uint32Array): number[] {
  const missed: number[] = []
  for (let block = 0; block < BLOCKS; block++) {
    const at = block * BLOCK
    const isReported = extents.some(([offset, size]) => offset <= at && at < offset + size)
    if (before[block] !== now[block] && !isReported) missed.push(block)
  }
  return missed
}

/** Makes a device of a table for as long as `use` takes. */
function withDevice<Result>(table: string, flags: number, use: (descriptor: number, bytes: number) => Result): Result {
  const device = createDevice('put-back', table)
  const descriptor = openSync(device, flags | constants.O_DIRECT | (flags === constants.O_RDWR ? constants.O_SYNC : 0))
  try {
    return use(descriptor, Number(table.split(' ')[1]) * sectorBytes)
  } finally {
    closeSync(descriptor)
    removeDevice('put-back')
  }
}
