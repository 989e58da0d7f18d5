/**
 * A thin pool of the kernel's that is led through a life (test/simulation/kernel/pool-life.ts), by calls rather than programs: many of them.
 * Its data is on the disk, which takes no discards, or in memory, which does.
 */
import { closeSync, constants, openSync, readSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DeviceMapper, type TableRow } from '../../native/device-mapper.ts'
import { DATA_BLOCKS, METADATA_BLOCKS, type PoolStep, VOLUME_BLOCKS } from '../simulation/kernel/pool-life.ts'
import { discard } from './discard.ts'
import { alignedBuffer, run, sectorBytes, zeroStart } from './dmsetup.ts'

const BLOCK_BYTES = 65536
const METADATA_BLOCK_BYTES = 4096
const POOL = 'lived'
const DATA_BYTES = DATA_BLOCKS * BLOCK_BYTES
/** On the disk, behind the metadata; bytes. */
const SPARE_AT = 16 * 2 ** 20
const DATA_AT = 2 * SPARE_AT

const row = (bytes: number, targetType: string, params: string): TableRow => ({
  startSector: 0,
  lengthSectors: bytes / sectorBytes,
  targetType,
  params
})

export class KernelPool {
  readonly metadata = `/dev/mapper/${POOL}-metadata`
  /** Of the same size, for metadata of another origin. */
  readonly spare = `/dev/mapper/${POOL}-spare`
  readonly #deviceMapper = new DeviceMapper()
  /** Open files of active devices, by id. */
  readonly #files = new Map<number, number>()
  readonly #buffer = alignedBuffer(BLOCK_BYTES)
  /** The superblock before a step; undefined where nobody compares. */
  #before: Buffer | undefined
  #hasCommitted = false
  #isMade = false
  #isActive = false
  #memory = ''
  #data = ''

  /** An empty pool, in place of the one before. */
  async format({ takesDiscards }: { takesDiscards: boolean }): Promise<void> {
    if (this.#isMade) await this.deactivate()
    else await this.#makeParts()
    this.#data = takesDiscards ? this.#memory : `/dev/mapper/${POOL}-data`
    if (takesDiscards) run('blkdiscard', [this.#memory])
    zeroStart(this.metadata)
    await this.#activate()
  }

  async #makeParts(): Promise<void> {
    const disk = '/dev/ubda'
    for (const [part, at] of [
      ['metadata', 0],
      ['spare', SPARE_AT]
    ] as const) {
      const table = row(METADATA_BLOCKS * METADATA_BLOCK_BYTES, 'linear', `${disk} ${at / sectorBytes}`)
      await this.#deviceMapper.create(`${POOL}-${part}`, { table: [table] })
    }
    const data = row(DATA_BYTES, 'linear', `${disk} ${DATA_AT / sectorBytes}`)
    await this.#deviceMapper.create(`${POOL}-data`, { table: [data] })
    const file = join(tmpdir(), `${POOL}-data`)
    writeFileSync(file, '')
    truncateSync(file, DATA_BYTES)
    this.#memory = run('losetup', ['--find', '--show', file]).trim()
    // It is there as long as the device is.
    rmSync(file)
    this.#isMade = true
  }

  /**
   * @param before the superblock that is expected on disk until the step itself commits
   * @returns whether the kernel has committed before that, as it does once a second
   */
  async doAndCompare(step: PoolStep, version: number, before: Buffer): Promise<boolean> {
    this.#hasCommitted = false
    this.#before = before
    await this.do(step, version)
    this.#before = undefined
    return this.#hasCommitted
  }

  #compare(): void {
    if (this.#before && !this.superblock().equals(this.#before)) this.#hasCommitted = true
    this.#before = undefined
  }

  async do(step: PoolStep, version: number): Promise<void> {
    switch (step.kind) {
      case 'create':
        return this.#message(`create_thin ${step.id}`)
      case 'snapshot':
        // As tools should: an origin in use is suspended.
        if (this.#files.has(step.of)) await this.#deviceMapper.suspend(thin(step.of), { lockfs: false })
        await this.#message(`create_snap ${step.id} ${step.of}`)
        if (this.#files.has(step.of)) await this.#deviceMapper.resume(thin(step.of))
        return undefined
      case 'delete':
        await this.#close(step.id)
        return this.#message(`delete ${step.id}`)
      case 'write': {
        const file = await this.#open(step.id)
        const numbers = new Float64Array(this.#buffer.buffer)
        // A part of a block has it mapped, or copied, as the whole does; by another way through the kernel.
        const bytes = step.blocks.length > 3 ? METADATA_BLOCK_BYTES : BLOCK_BYTES
        step.blocks.forEach((block, i) => {
          numbers.fill(version + i)
          writeSync(file, this.#buffer, 0, bytes, block * BLOCK_BYTES)
        })
        return undefined
      }
      case 'discard':
        discard(await this.#open(step.id), step.first * BLOCK_BYTES, step.count * BLOCK_BYTES)
        return undefined
      case 'reserve':
      case 'release':
        return this.#message(`${step.kind}_metadata_snap`)
      case 'transaction': {
        const [row] = await this.#deviceMapper.status(POOL)
        const [now = ''] = row?.params.split(' ') ?? []
        return this.#message(`set_transaction_id ${now} ${Number(now) + 1}`)
      }
      case 'commit':
        await this.status()
        return undefined
      case 'reload':
        await this.deactivate()
        return this.#activate()
    }
  }

  /** The pool's status after a commit. */
  async status(): Promise<string> {
    this.#compare()
    const [status] = await this.#deviceMapper.status(POOL, { flush: true })
    return status?.params.trim() ?? ''
  }

  /** The superblock on disk. */
  superblock(): Buffer {
    const file = openSync(this.metadata, constants.O_RDONLY | constants.O_DIRECT)
    try {
      readSync(file, this.#buffer, 0, METADATA_BLOCK_BYTES, 0)
      return Buffer.from(this.#buffer.subarray(0, METADATA_BLOCK_BYTES))
    } finally {
      closeSync(file)
    }
  }

  /** The version that each block of a device begins with. */
  async content(id: number): Promise<number[]> {
    const file = await this.#open(id)
    return Array.from({ length: VOLUME_BLOCKS }, (_, block) => {
      readSync(file, this.#buffer, 0, METADATA_BLOCK_BYTES, block * BLOCK_BYTES)
      return new Float64Array(this.#buffer.buffer)[0] ?? NaN
    })
  }

  /** As it goes when a machine is shut down. */
  async deactivate(): Promise<void> {
    if (!this.#isActive) return
    for (const id of [...this.#files.keys()]) await this.#close(id)
    this.#compare()
    await this.#deviceMapper.remove(POOL, { retry: true })
    this.#isActive = false
  }

  async close(): Promise<void> {
    if (this.#isMade) {
      await this.deactivate()
      for (const each of ['data', 'spare', 'metadata'])
        await this.#deviceMapper.remove(`${POOL}-${each}`, { retry: true })
      run('losetup', ['--detach', this.#memory])
    }
    await this.#deviceMapper.close()
  }

  async #activate(): Promise<void> {
    const table = row(DATA_BYTES, 'thin-pool', `${this.metadata} ${this.#data} 128 0 1 skip_block_zeroing`)
    await this.#deviceMapper.create(POOL, { table: [table] })
    this.#isActive = true
  }

  async #open(id: number): Promise<number> {
    const known = this.#files.get(id)
    if (known !== undefined) return known
    const table = row(VOLUME_BLOCKS * BLOCK_BYTES, 'thin', `/dev/mapper/${POOL} ${id}`)
    await this.#deviceMapper.create(thin(id), { table: [table] })
    const file = openSync(`/dev/mapper/${thin(id)}`, constants.O_RDWR | constants.O_DIRECT)
    this.#files.set(id, file)
    return file
  }

  async #close(id: number): Promise<void> {
    const file = this.#files.get(id)
    if (file === undefined) return
    closeSync(file)
    this.#files.delete(id)
    await this.#deviceMapper.remove(thin(id), { retry: true })
  }

  async #message(text: string): Promise<void> {
    this.#compare()
    await this.#deviceMapper.message(POOL, text)
  }
}

function thin(id: number): string {
  return `${POOL}-${id}`
}
