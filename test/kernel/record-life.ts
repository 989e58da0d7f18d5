/**
 * A volume that is written, trimmed, resized, restored and merged at random, with snapshots that come and go, and the
 * base record of each snapshot. What each snapshot holds is read from its device, so what an answer has to be does not
 * depend on any metadata. Every snapshot is compared with all records made before it, whether their snapshots exist or
 * not.
 */
import { crc32c } from '@node-rs/crc32'
import { closeSync, constants, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BaseRecordReader } from '../../src/devicemapper/thin/base-record/reader.ts'
import { checkRecordable, checkWentOn } from '../../src/devicemapper/thin/base-record/trust.ts'
import { BaseRecordWriter } from '../../src/devicemapper/thin/base-record/writer.ts'
import { openPoolMetadata, type PoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { PatchedRecordSink, WholeRecordSink } from '../../src/devicemapper/thin/record-sinks.ts'
import { collectExtents } from '../support/collect-extents.ts'
import type { Random } from '../support/random.ts'
import { discard } from './discard.ts'
import {
  alignedBuffer,
  copyOut,
  createDevice,
  createLinear,
  reloadDevice,
  removeDevice,
  run,
  sectorBytes,
  sendMessage,
  thinPoolTable,
  thinTable,
  zeroStart
} from './dmsetup.ts'

const PAGE = 4096
const METADATA_BYTES = 4 * 2 ** 20
/** Snapshots that are in the pool at once. */
const MOST_LIVING = 6

export interface RecordTally {
  /** Pairs of a base and a target. */
  pairs: number
  /** Of them with a base that is gone. */
  gone: number
  /** Blocks that differ, that were reported, and that a living base's delta was compared on. */
  changed: number
  reported: number
  livingPairs: number
  patched: number
  readonly operations: Record<string, number>
}

export function noRecordTally(): RecordTally {
  return { pairs: 0, gone: 0, changed: 0, reported: 0, livingPairs: 0, patched: 0, operations: {} }
}

/** A snapshot that was recorded. It is in the pool as long as `thinId` is defined. */
interface Recorded {
  readonly number: number
  readonly sizeBytes: number
  /** What each of the life's blocks held: checksums, 0 where all is zero. */
  readonly content: Uint32Array
  readonly record: BaseRecordReader
  thinId: number | undefined
}

export interface RecordLifeOptions {
  readonly random: Random
  readonly blockBytes: number
  /** How many blocks of the volume are ever written. */
  readonly touched: number
  /** The volume is made with this size, and gets at most as large. A multiple of the block size. */
  readonly sizeBytes: number
}

export class RecordLife {
  readonly tally: RecordTally
  readonly #random: Random
  readonly #blockBytes: number
  readonly #mostBytes: number
  /** The virtual blocks that are ever written, ascending. */
  readonly #blocks: readonly number[]
  readonly #metadata: string
  readonly #table: string
  readonly #folder = mkdtempSync(join(tmpdir(), 'records-'))
  readonly #buffer: Uint8Array
  readonly #recorded: Recorded[] = []
  #volumeId = 0
  #sizeBytes: number
  #file = -1
  #writes = 1

  constructor({ random, blockBytes, touched, sizeBytes }: RecordLifeOptions, tally = noRecordTally()) {
    this.tally = tally
    this.#random = random
    this.#blockBytes = blockBytes
    this.#mostBytes = this.#sizeBytes = sizeBytes
    const most = sizeBytes / blockBytes
    // Some next to one another, the others anywhere.
    const chosen = new Set(Array.from({ length: Math.min(touched / 2, most) }, (_, i) => i))
    while (chosen.size < Math.min(touched, most)) chosen.add(random.integer(0, most - 1))
    this.#blocks = [...chosen].sort((a, b) => a - b)
    this.#buffer = alignedBuffer(Math.max(blockBytes, PAGE))
    this.#metadata = createLinear('records-metadata', '/dev/ubda', 0, METADATA_BYTES)
    // Everything written since a snapshot takes a block of its own.
    const dataBytes = (MOST_LIVING + 3) * this.#blocks.length * blockBytes
    const dataDevice = createLinear('records-data', '/dev/ubda', METADATA_BYTES, dataBytes)
    zeroStart(this.#metadata)
    const features = ['error_if_no_space']
    this.#table = thinPoolTable({ metadataDevice: this.#metadata, dataDevice, dataBytes, blockBytes, features })
    createDevice('records', this.#table)
    sendMessage('records', 'create_thin 0')
    this.#activate()
  }

  /** Lives until so many snapshots were recorded, and each was compared. @throws Error that says what was missed */
  async live(snapshots: number): Promise<void> {
    while (this.#recorded.length < snapshots) {
      for (let steps = this.#random.integer(1, 4); steps > 0; steps--) await this.#step()
      await this.#snapshot()
    }
  }

  async end(): Promise<void> {
    this.#deactivate()
    for (const name of ['records', 'records-data', 'records-metadata']) removeDevice(name)
    for (const { record } of this.#recorded) await record.close()
    rmSync(this.#folder, { recursive: true })
  }

  async #step(): Promise<void> {
    const random = this.#random
    const living = this.#recorded.filter(({ thinId }) => thinId !== undefined)
    const seldom = ['restore', 'merge', 'resize', 'reload', 'remove'] as const
    const step = random.chance(0.3) ? random.pick(seldom) : random.pick(['write', 'write', 'write', 'discard'] as const)
    const { operations } = this.tally
    operations[step] = (operations[step] ?? 0) + 1
    switch (step) {
      case 'write':
        for (let more = random.integer(1, 12); more > 0; more--) this.#write()
        break
      case 'discard':
        for (let more = random.integer(1, 3); more > 0; more--) this.#discard()
        break
      case 'remove':
        if (living.length > 0) this.#remove(random.pick(living))
        break
      case 'restore':
        if (living.length > 0) this.#restore(random.pick(living))
        break
      case 'merge':
        if (living.length > 0) this.#merge(random.pick(living))
        break
      case 'resize':
        this.#resize()
        break
      case 'reload':
        this.#deactivate()
        removeDevice('records')
        createDevice('records', this.#table)
        this.#activate()
        break
    }
  }

  #activate(): void {
    const device = createDevice('records-volume', thinTable('records', this.#volumeId, this.#sizeBytes))
    this.#file = openSync(device, constants.O_RDWR | constants.O_DIRECT)
  }

  #deactivate(): void {
    closeSync(this.#file)
    removeDevice('records-volume')
  }

  /** A page of a block, or all of it; no two writes are alike. */
  #write(): void {
    const at = this.#pick() * this.#blockBytes
    const pages = this.#blockBytes / PAGE
    const [page, count] = this.#random.chance(0.3) ? [0, pages] : [this.#random.integer(0, pages - 1), 1]
    const part = this.#buffer.subarray(0, count * PAGE).fill(1)
    const number = this.#writes++
    for (let i = 0; i < 4; i++) part[i] = (number >>> (8 * i)) & 255
    writeSync(this.#file, part, 0, part.length, at + page * PAGE)
  }

  /** Some blocks, or a range that is not aligned to any. */
  #discard(): void {
    const [first, last] = [this.#pick(), this.#pick()].sort((a, b) => a - b)
    const length = Math.min(last - first + 1, 5) * this.#blockBytes
    const shift = this.#random.chance(0.3) ? PAGE * this.#random.integer(0, this.#blockBytes / PAGE - 1) : 0
    const from = first * this.#blockBytes + shift
    discard(this.#file, from, Math.min(length, this.#sizeBytes - from))
  }

  /** A block within the volume's present size. */
  #pick(): number {
    return this.#random.pick(this.#blocks.filter((block) => (block + 1) * this.#blockBytes <= this.#sizeBytes))
  }

  #remove(snapshot: Recorded): void {
    sendMessage('records', `delete ${snapshot.thinId}`)
    snapshot.thinId = undefined
  }

  /** The volume is what a snapshot was, under its old id. */
  #restore({ thinId, sizeBytes }: Recorded): void {
    this.#deactivate()
    sendMessage('records', `delete ${this.#volumeId}`)
    sendMessage('records', `create_snap ${this.#volumeId} ${thinId}`)
    this.#sizeBytes = sizeBytes
    this.#activate()
  }

  /** The snapshot becomes the volume, as with lvconvert --merge. */
  #merge(snapshot: Recorded): void {
    this.#deactivate()
    sendMessage('records', `delete ${this.#volumeId}`)
    this.#volumeId = snapshot.thinId ?? -1
    snapshot.thinId = undefined
    this.#sizeBytes = snapshot.sizeBytes
    this.#activate()
  }

  #resize(): void {
    const isWhole = this.#sizeBytes === this.#mostBytes
    const most = this.#mostBytes / this.#blockBytes
    // Also in the middle of a block; the first blocks stay.
    const blocks = this.#random.integer(Math.min(8, most), most)
    const cut = this.#random.chance(0.5) ? sectorBytes * 8 : 0
    this.#sizeBytes = isWhole || this.#random.chance(0.5) ? blocks * this.#blockBytes - cut : this.#mostBytes
    reloadDevice('records-volume', thinTable('records', this.#volumeId, this.#sizeBytes))
  }

  /** Takes a snapshot, records it, and compares it with all that was recorded before. */
  async #snapshot(): Promise<void> {
    const living = this.#recorded.filter(({ thinId }) => thinId !== undefined)
    const used = new Set([this.#volumeId, ...living.map((each) => each.thinId)])
    let thinId = 0
    while (used.has(thinId)) thinId++
    run('dmsetup', ['suspend', 'records-volume'])
    sendMessage('records', `create_snap ${thinId} ${this.#volumeId}`)
    run('dmsetup', ['resume', 'records-volume'])
    const content = this.#read(thinId)
    // Of a copy, a block is read in a hundredth of the time, and each is read for every base.
    const copy = join(this.#folder, 'metadata')
    copyOut(this.#metadata, copy)
    const metadata = await openPoolMetadata(copy, { liveRoot: true })
    try {
      await this.#compare(metadata, thinId, content)
      const record = await this.#record(metadata, thinId, living.at(-1))
      this.#recorded.push({ number: this.#recorded.length, sizeBytes: this.#sizeBytes, content, record, thinId })
    } finally {
      await metadata.close()
    }
    if (living.length + 1 > MOST_LIVING) this.#remove(this.#random.pick(living))
  }

  /** What the kernel reads of a snapshot. */
  #read(thinId: number): Uint32Array {
    const device = createDevice('records-snapshot', thinTable('records', thinId, this.#sizeBytes), '--readonly')
    const file = openSync(device, constants.O_RDONLY | constants.O_DIRECT)
    const zeros = crc32c(new Uint8Array(this.#blockBytes))
    const content = new Uint32Array(this.#blocks.length)
    for (const [i, block] of this.#blocks.entries()) {
      const length = Math.min(this.#blockBytes, this.#sizeBytes - block * this.#blockBytes)
      if (length <= 0) break
      // A last block that the end cuts off counts as if zeros followed.
      this.#buffer.fill(0, length, this.#blockBytes)
      const read = readSync(file, this.#buffer, 0, length, block * this.#blockBytes)
      if (read !== length) throw new Error(`${read} bytes of ${length} of block ${block}`)
      const checksum = crc32c(this.#buffer.subarray(0, this.#blockBytes))
      content[i] = checksum === zeros ? 0 : checksum
    }
    closeSync(file)
    removeDevice('records-snapshot')
    return content
  }

  async #compare(metadata: PoolMetadata, thinId: number, content: Uint32Array): Promise<void> {
    const { tally } = this
    const now = await metadata.moment()
    const sizeBytes = this.#sizeBytes
    for (const base of this.#recorded) {
      checkWentOn(base.record.header, now, metadata.superblock)
      const changed = await collectExtents(
        await metadata.deltaFromRecord({ record: base.record, deviceId: thinId, sizeBytes })
      )
      this.#check(base, content, changed)
      tally.pairs++
      if (base.thinId === undefined) tally.gone++
      else {
        const question = { baseId: base.thinId, targetId: thinId, baseSizeBytes: base.sizeBytes, sizeBytes }
        const living = await collectExtents(await metadata.delta({ ...question, baseIsSnapshot: true }))
        if (JSON.stringify(living) !== JSON.stringify(changed)) {
          throw new Error(
            `${this.#pair(base)}: by the record ${JSON.stringify(changed)}, by the living base ${JSON.stringify(living)}`
          )
        }
        tally.livingPairs++
      }
    }
  }

  /** Nothing missed; nothing too much but what lies beyond the end of the base. */
  #check(base: Recorded, content: Uint32Array, changed: readonly (readonly [number, number])[]): void {
    const beyond = base.sizeBytes < this.#sizeBytes ? Math.floor(base.sizeBytes / this.#blockBytes) : Infinity
    let at = 0
    for (const [i, block] of this.#blocks.entries()) {
      const begin = block * this.#blockBytes
      if (begin >= this.#sizeBytes) break
      while (at < changed.length && changed[at][0] + changed[at][1] <= begin) at++
      const isReported = at < changed.length && changed[at][0] <= begin
      if (isReported) this.tally.reported++
      // A base that is cut off within this block is compared as far as it goes; so is the target.
      const isCut = (block + 1) * this.#blockBytes > Math.min(base.sizeBytes, this.#sizeBytes)
      const differs = block < beyond ? content[i] !== base.content[i] && !isCut : content[i] !== 0
      if (differs) this.tally.changed++
      if (differs && !isReported) throw new Error(`${this.#pair(base)}: block ${block} is missed`)
      if (isReported && !differs && block < beyond && !isCut) {
        throw new Error(`${this.#pair(base)}: block ${block} is reported, and is the same`)
      }
    }
  }

  #pair({ number, thinId }: Recorded): string {
    const state = thinId === undefined ? 'gone' : `thin device ${thinId}`
    return `base ${number} (${state}) and target ${this.#recorded.length}`
  }

  /** The record of a snapshot; where there is a living base, made of that one's too, which must come to the same. */
  async #record(metadata: PoolMetadata, thinId: number, base: Recorded | undefined): Promise<BaseRecordReader> {
    const sizeBytes = this.#sizeBytes
    const path = join(this.#folder, `${this.#recorded.length}.base`)
    const { details } = await metadata.device(thinId)
    const { dataBlockBytes, dataBlocks } = metadata.superblock
    const moment = await metadata.moment()
    checkRecordable(metadata.superblock, moment)
    const header = {
      pool: { identity: 'records', dataBlockBytes, dataBlocks, moment },
      device: { id: thinId, ...details, sizeBytes, identity: undefined, volume: undefined },
      handles: [`records/${this.#recorded.length}`],
      madeAt: 0
    }
    // Small frames, so that there are several, of either kind.
    const most = this.#random.chance(0.5) ? this.#random.integer(20, 60) : undefined
    const writer = await BaseRecordWriter.begin(path, header, most)
    await collectExtents(await metadata.allocated({ deviceId: thinId, sizeBytes, sink: new WholeRecordSink(writer) }))
    if (!(await writer.finish())) throw new Error(`the record of target ${this.#recorded.length} is not whole`)
    if (base?.thinId !== undefined) {
      const patched = await BaseRecordWriter.begin(`${path}.patched`, header, most)
      const sink = new PatchedRecordSink(patched, base.record)
      const question = { baseId: base.thinId, targetId: thinId, baseSizeBytes: base.sizeBytes, sizeBytes }
      await collectExtents(await metadata.delta({ ...question, sink }))
      await sink.finish()
      if (!(await patched.finish()) || !readFileSync(`${path}.patched`).equals(readFileSync(path))) {
        throw new Error(`${this.#pair(base)}: the patched record is not that of the target`)
      }
      rmSync(`${path}.patched`)
      this.tally.patched++
    }
    return BaseRecordReader.open(path)
  }
}
