/**
 * Random pools with a history that a real kernel wrote down: trees that grew, split, shrank and merged the way dm-thin does it, in
 * metadata full of stale blocks. Runs inside the kernel lab (test/lab/kernel-pools.ts starts it):
 *
 *   node test/kernel/random-pool.ts --seed S --count N --out FOLDER [--steps K]
 *
 * Pool number i is made from seed S + i, in FOLDER/<S + i>/: metadata.img, and history.json (KernelPoolHistory below).
 *
 * The data device is dm-zero: data is thrown away, so that volumes can be huge and only metadata costs anything. There is one
 * process per dmsetup call, and starting one is slow here: volumes stay active, and writes and snapshots need no more than they must.
 */
import { closeSync, constants, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { Random } from '../support/random.ts'
import {
  alignedBuffer,
  copyOut,
  createDevice,
  createLinear,
  kernelRelease,
  reloadDevice,
  run,
  sectorBytes,
  sendMessage,
  thinPoolTable,
  thinTable
} from './dmsetup.ts'

const kibibyte = 1024
const mebibyte = 2 ** 20

/** A thin device as the history left it. */
export interface KernelThin {
  thin_id: number
  /** The size of its table, or of its origin's when the snapshot was taken. Mappings may lie beyond (it may have shrunk). */
  size_bytes: number
  /** The thin device it is a snapshot of, which may be gone by now. */
  origin?: number
}

export interface KernelPoolHistory {
  seed: number
  kernel: string
  data_block_size_bytes: number
  /** Whether a metadata snapshot is held. */
  metadata_snapshot: boolean
  /** What is in the metadata snapshot where one is held, else what is in the pool. */
  devices: KernelThin[]
  /** What is in the pool at the end. */
  live_devices: KernelThin[]
  /** What was done, for a person who looks into a failure. */
  steps: string[]
}

/** Each pool has its own piece of the disk. */
const metadataRoom = 32 * mebibyte

/** What is written: it does not matter. */
const buffer = alignedBuffer(4096)

class RandomPool {
  readonly #seed: number
  readonly #random: Random
  readonly #blockBytes: number
  readonly #metadataBytes: number
  readonly #thins = new Map<number, KernelThin>()
  /** Open file descriptors of the active thin devices, by thin id. */
  readonly #active = new Map<number, number>()
  readonly #steps: string[] = []
  #freedIds: number[] = []

  constructor(seed: number, metadataOffset: number) {
    this.#seed = seed
    this.#random = new Random(seed)
    const random = this.#random
    this.#blockBytes = random.pick([64, 64, 64, 128, 192, 256, 448, 512, 1024]) * kibibyte
    this.#metadataBytes = random.pick([8, 16, 32]) * mebibyte
    const metadataDevice = createLinear('metadata', '/dev/ubda', metadataOffset, this.#metadataBytes)
    const dataBytes = random.pick([2 ** 17, 2 ** 18, 2 ** 20]) * this.#blockBytes
    const features = ['skip_block_zeroing', 'no_discard_passdown']
    const pool = { metadataDevice, dataDevice: '/dev/mapper/zero', dataBytes, blockBytes: this.#blockBytes, features }
    createDevice('pool', thinPoolTable(pool))
    this.#say(`${this.#blockBytes / kibibyte} KiB blocks, ${this.#metadataBytes / mebibyte} MiB of metadata`)
  }

  /** Lives through `steps` random steps and writes what they left into `folder`. */
  record(steps: number, folder: string): void {
    const random = this.#random
    for (let volumes = random.integer(1, 3); volumes > 0; volumes--) this.#createVolume()
    if (random.chance(0.1)) this.#fillDensely()
    for (let step = 0; step < steps; step++) this.#step()
    const held = random.chance(0.75)
    const devices = this.#snapshotOfDevices()
    if (held) {
      sendMessage('pool', 'reserve_metadata_snap')
      this.#say('metadata snapshot')
      for (let step = 0; step < steps / 4; step++) this.#step()
      this.#write(this.#anyActive())
    }
    const names = [...this.#active].map(([id, file]) => {
      closeSync(file)
      return `thin-${id}`
    })
    run('dmsetup', ['remove', ...names, 'pool'])
    copyOut('/dev/mapper/metadata', join(folder, 'metadata.img'))
    run('dmsetup', ['remove', 'metadata'])
    const history: KernelPoolHistory = {
      seed: this.#seed,
      kernel: kernelRelease(),
      data_block_size_bytes: this.#blockBytes,
      metadata_snapshot: held,
      devices,
      live_devices: this.#snapshotOfDevices(),
      steps: this.#steps
    }
    writeFileSync(join(folder, 'history.json'), `${JSON.stringify(history, null, 1)}\n`)
  }

  #step(): void {
    const dice = this.#random.fraction()
    if (dice < 0.5) this.#write(this.#anyActive())
    else if (dice < 0.62) this.#discard(this.#anyActive())
    else if (dice < 0.84) this.#snapshot()
    else if (dice < 0.9) this.#resize(this.#anyActive())
    else if (dice < 0.94) this.#createVolume()
    else this.#delete()
  }

  #createVolume(): void {
    const id = this.#freeId()
    sendMessage('pool', `create_thin ${id}`)
    const size_bytes = this.#randomSize()
    this.#thins.set(id, { thin_id: id, size_bytes })
    this.#activate(id)
    this.#say(`create ${id}, ${size_bytes} bytes`)
    this.#write(id)
  }

  /** Mostly sizes that the writes can fill; some within a few blocks, some up to 4 PiB; seldom a whole number of blocks. */
  #randomSize(): number {
    const random = this.#random
    const dice = random.fraction()
    if (dice < 0.25) return this.#magnitude(2 ** 40) * 8 * sectorBytes
    const blocks = dice < 0.35 ? random.integer(1, 16) : 256 * this.#magnitude(64)
    const missing = random.chance(0.7) ? random.integer(0, this.#blockBytes / sectorBytes - 8) : 0
    return blocks * this.#blockBytes - missing * sectorBytes
  }

  #activate(id: number): void {
    const { size_bytes } = this.#thin(id)
    const device = createDevice(`thin-${id}`, thinTable('pool', id, size_bytes))
    this.#active.set(id, openSync(device, constants.O_RDWR | constants.O_DIRECT))
  }

  /** Of a volume or of another snapshot. Nothing is in flight, so that the origin need not be suspended. */
  #snapshot(): void {
    const origin = this.#random.pick([...this.#thins.values()])
    const id = this.#freeId()
    sendMessage('pool', `create_snap ${id} ${origin.thin_id}`)
    this.#thins.set(id, { thin_id: id, size_bytes: origin.size_bytes, origin: origin.thin_id })
    this.#say(`snapshot ${id} of ${origin.thin_id}`)
    // Some snapshots are written to as well.
    if (this.#random.chance(0.15)) this.#activate(id)
  }

  #delete(): void {
    const candidates = [...this.#thins.keys()].filter((id) => this.#active.size > 1 || !this.#active.has(id))
    if (candidates.length === 0) return
    const id = this.#random.pick(candidates)
    const file = this.#active.get(id)
    if (file !== undefined) {
      closeSync(file)
      run('dmsetup', ['remove', `thin-${id}`])
      this.#active.delete(id)
    }
    sendMessage('pool', `delete ${id}`)
    this.#thins.delete(id)
    this.#freedIds.push(id)
    this.#say(`delete ${id}`)
  }

  #resize(id: number): void {
    const thin = this.#thin(id)
    const sectors = thin.size_bytes / sectorBytes
    const changed = this.#random.chance(0.5)
      ? this.#magnitude(sectors)
      : Math.min(2 ** 43, sectors + this.#magnitude(sectors))
    thin.size_bytes = Math.max(8, changed) * sectorBytes
    reloadDevice(`thin-${id}`, thinTable('pool', id, thin.size_bytes))
    this.#say(`resize ${id} to ${thin.size_bytes} bytes`)
  }

  /** One sector in a block maps or unshares the whole block. */
  #write(id: number): void {
    const random = this.#random
    const kind = random.pick(['one', 'scattered', 'scattered', 'run', 'run', 'clusters', 'strided', 'end'] as const)
    const blocks = Math.ceil(this.#thin(id).size_bytes / this.#blockBytes)
    const written: number[] = []
    const window = Math.min(blocks, this.#magnitude(2 ** 40))
    const from = random.integer(0, blocks - window)
    switch (kind) {
      case 'one':
        written.push(random.integer(0, blocks - 1))
        break
      case 'scattered':
        for (let count = this.#magnitude(1500); count > 0; count--) written.push(from + random.integer(0, window - 1))
        break
      case 'run':
        for (let block = 0, end = Math.min(window, this.#magnitude(6000)); block < end; block++)
          written.push(from + block)
        break
      case 'clusters':
        for (let clusters = this.#magnitude(40); clusters > 0; clusters--) {
          const start = from + random.integer(0, window - 1)
          for (let block = start, end = start + this.#magnitude(60); block < end; block++) written.push(block)
        }
        break
      case 'strided': {
        const stride = random.integer(2, 9)
        for (let count = this.#magnitude(1500), block = from; count > 0; count--, block += stride) written.push(block)
        break
      }
      case 'end':
        for (let block = Math.max(0, blocks - this.#magnitude(50)); block < blocks; block++) written.push(block)
        break
    }
    this.#say(`write ${kind} to ${id}: ${written.length} blocks from block ${written[0]}`)
    this.#writeBlocks(id, written)
  }

  #writeBlocks(id: number, blocks: Iterable<number>): void {
    const file = this.#file(id)
    const { size_bytes } = this.#thin(id)
    for (const block of blocks) {
      const at = block * this.#blockBytes
      if (at < size_bytes) writeSync(file, buffer, 0, sectorBytes, at)
    }
  }

  /** Enough neighbours for trees of three levels, the way a volume is filled for the first time: in order, or in strides. */
  #fillDensely(): void {
    const id = this.#freeId()
    sendMessage('pool', `create_thin ${id}`)
    const count = 70_000
    this.#thins.set(id, { thin_id: id, size_bytes: count * this.#blockBytes * 2 - 3 * sectorBytes })
    this.#activate(id)
    const stride = this.#random.pick([1, 1, 7])
    this.#say(`fill ${id}: ${count} blocks, stride ${stride}`)
    this.#writeBlocks(id, denseBlocks(count, stride))
  }

  #discard(id: number): void {
    const { size_bytes } = this.#thin(id)
    const sectors = size_bytes / sectorBytes
    // Long ranges are cut into pieces of 16 GiB, each of which takes its time.
    const length = Math.min(sectors, this.#magnitude(2 ** 28))
    const start = this.#random.chance(0.4) ? 0 : this.#random.integer(0, sectors - length)
    run('blkdiscard', ['-o', String(start * sectorBytes), '-l', String(length * sectorBytes), `/dev/mapper/thin-${id}`])
    this.#say(`discard in ${id}: ${length * sectorBytes} bytes from ${start * sectorBytes}`)
  }

  /** A new thin id: low ones, the highest plus one, and freed ones are as LVM has them; some are large. */
  #freeId(): number {
    const random = this.#random
    const candidates = [this.#freedIds.pop(), Math.max(-1, ...this.#thins.keys()) + 1, random.integer(0, 2 ** 24 - 1)]
    const free = candidates.filter((id) => id !== undefined && id < 2 ** 24 && !this.#thins.has(id))
    const [first, second] = free
    if (first === undefined) return this.#freeId()
    return second !== undefined && random.chance(0.2) ? random.pick(free as number[]) : first
  }

  #anyActive(): number {
    return this.#random.pick([...this.#active.keys()])
  }

  #thin(id: number): KernelThin {
    const thin = this.#thins.get(id)
    if (thin === undefined) throw new Error(`no thin device ${id}`)
    return thin
  }

  #file(id: number): number {
    const file = this.#active.get(id)
    if (file === undefined) throw new Error(`thin device ${id} is not active`)
    return file
  }

  #snapshotOfDevices(): KernelThin[] {
    return [...this.#thins.values()].map((each) => ({ ...each })).sort((a, b) => a.thin_id - b.thin_id)
  }

  /** From 1 to `limit`: each power of two is as likely as any other. */
  #magnitude(limit: number): number {
    return Math.max(1, Math.min(limit, Math.floor(2 ** (this.#random.fraction() * Math.log2(limit + 1)))))
  }

  #say(step: string): void {
    this.#steps.push(step)
  }
}

function* denseBlocks(count: number, stride: number): Generator<number> {
  for (let phase = 0; phase < stride; phase++) for (let block = phase; block < count; block += stride) yield block
}

const { values: options } = parseArgs({
  options: {
    seed: { type: 'string' },
    count: { type: 'string', default: '1' },
    steps: { type: 'string', default: '24' },
    out: { type: 'string' }
  }
})
if (options.seed === undefined || options.out === undefined) {
  throw new Error('usage: random-pool.ts --seed S --out FOLDER [--count N] [--steps K] (inside the kernel lab)')
}
const dataDeviceBytes = 2 ** 40
createDevice('zero', `0 ${dataDeviceBytes / sectorBytes} zero`)
const seeds = Array.from({ length: Number(options.count) }, (_, index) => Number(options.seed) + index)
for (const [index, seed] of seeds.entries()) {
  const folder = join(options.out, String(seed))
  mkdirSync(folder, { recursive: true })
  try {
    new RandomPool(seed, index * metadataRoom).record(Number(options.steps), folder)
  } catch (error) {
    throw new Error(`the pool of seed ${seed} failed`, { cause: error })
  }
}
