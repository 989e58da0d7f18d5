/**
 * A pool of device-mapper's alone, for a workload: every thin is active, because its size is written down nowhere else.
 */
import { DeviceMapper } from '../../native/device-mapper.ts'
import { createDevice, createLinear, sectorBytes, thinPoolTable, zeroStart } from './dmsetup.ts'
import { blockBytes, mappedBlocks, poolFullness, type ThinFacts, thinRow, type WorkloadPool } from './workload-pool.ts'

const mebibyte = 2 ** 20

export class DmsetupPool implements WorkloadPool {
  readonly kind = 'dmsetup'
  readonly source = 'work-pool'
  readonly poolDevice = 'work-pool'
  readonly metadataDevice = '/dev/mapper/work-metadata'
  readonly sizeUnit = sectorBytes
  readonly noise
  readonly #deviceMapper: DeviceMapper
  readonly #thins = new Map<string, { thinId: number; sizeBytes: number }>()

  private constructor(deviceMapper: DeviceMapper) {
    this.#deviceMapper = deviceMapper
    const message = (text: string) => ['dmsetup', 'message', this.poolDevice, '0', text]
    this.noise = {
      path: '/dev/mapper/work-noise',
      sizeBytes: 32 * mebibyte,
      commands: [message('create_snap 90001 90000'), message('delete 90001')],
      commandsApart: 200
    }
  }

  static async create(disk: string, zeroesNewBlocks: boolean): Promise<DmsetupPool> {
    const deviceMapper = new DeviceMapper()
    const pool = new DmsetupPool(deviceMapper)
    const dataBytes = 640 * mebibyte
    const metadataDevice = createLinear('work-metadata', disk, 0, 16 * mebibyte)
    const dataDevice = createLinear('work-data', disk, 16 * mebibyte, dataBytes)
    zeroStart(metadataDevice)
    const features = zeroesNewBlocks ? [] : ['skip_block_zeroing']
    createDevice(pool.poolDevice, thinPoolTable({ metadataDevice, dataDevice, dataBytes, blockBytes, features }))
    await deviceMapper.message(pool.poolDevice, 'create_thin 90000')
    await deviceMapper.create('work-noise', { table: [thinRow(pool.noise.sizeBytes, pool.poolDevice, 90000)] })
    return pool
  }

  async createVolume(name: string, sizeBytes: number): Promise<void> {
    const thinId = this.#freeId()
    await this.#deviceMapper.message(this.poolDevice, `create_thin ${thinId}`)
    await this.#activate(name, thinId, sizeBytes)
  }

  async snapshot(origin: string, name: string): Promise<void> {
    const thinId = this.#freeId()
    const { thinId: originId, sizeBytes } = this.#thin(origin)
    await this.#deviceMapper.suspend(origin)
    try {
      await this.#deviceMapper.message(this.poolDevice, `create_snap ${thinId} ${originId}`)
    } finally {
      await this.#deviceMapper.resume(origin)
    }
    await this.#activate(name, thinId, sizeBytes)
  }

  async remove(name: string): Promise<void> {
    await this.#deviceMapper.remove(name)
    await this.#deviceMapper.message(this.poolDevice, `delete ${this.#thin(name).thinId}`)
    this.#thins.delete(name)
  }

  async rename(name: string, newName: string): Promise<void> {
    await this.#deviceMapper.rename(name, newName)
    this.#thins.set(newName, this.#thin(name))
    this.#thins.delete(name)
  }

  async resize(name: string, sizeBytes: number): Promise<void> {
    const thin = this.#thin(name)
    await this.#deviceMapper.suspend(name)
    await this.#deviceMapper.reload(name, [thinRow(sizeBytes, this.poolDevice, thin.thinId)])
    await this.#deviceMapper.resume(name)
    thin.sizeBytes = sizeBytes
  }

  async facts(): Promise<Map<string, ThinFacts>> {
    return new Map([...this.#thins].map(([name, facts]) => [name, { ...facts }]))
  }

  async withDevice<T>(name: string, use: (path: string) => T | Promise<T>): Promise<T> {
    return use(this.volumePath(name))
  }

  volumePath(name: string): string {
    return `/dev/mapper/${name}`
  }

  async fullness(): Promise<number> {
    return poolFullness(this.#deviceMapper, this.poolDevice)
  }

  async mappedBlocks(path: string): Promise<number> {
    return mappedBlocks(this.#deviceMapper, path)
  }

  async close(): Promise<void> {
    for (const name of [...this.#thins.keys(), 'work-noise', this.poolDevice, 'work-metadata', 'work-data']) {
      await this.#deviceMapper.remove(name)
    }
    await this.#deviceMapper.close()
  }

  async #activate(name: string, thinId: number, sizeBytes: number): Promise<void> {
    await this.#deviceMapper.create(name, { table: [thinRow(sizeBytes, this.poolDevice, thinId)] })
    this.#thins.set(name, { thinId, sizeBytes })
  }

  /** The lowest that is free: ids are used again as soon as possible. */
  #freeId(): number {
    const used = new Set([...this.#thins.values()].map(({ thinId }) => thinId))
    let id = 0
    while (used.has(id)) id++
    return id
  }

  #thin(name: string): { thinId: number; sizeBytes: number } {
    const thin = this.#thins.get(name)
    if (thin === undefined) throw new Error(`no thin ${name}`)
    return thin
  }
}
