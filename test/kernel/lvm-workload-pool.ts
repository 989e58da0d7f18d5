/**
 * A pool of LVM's, for a workload: snapshots are inactive unless something is done to them.
 */
import { closeSync, openSync } from 'node:fs'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { zeroStart } from './dmsetup.ts'
import { createGroup, createPool, createSnapshot, createThin, lvm, prepareLvm, shrink } from './lvm-setup.ts'
import { mappedBlocks, poolFullness, type ThinFacts, thinRow, type WorkloadPool } from './workload-pool.ts'

const mebibyte = 2 ** 20
const group = 'work-vg'

export class LvmPool implements WorkloadPool {
  readonly kind = 'lvm'
  readonly source = group
  readonly poolDevice = 'work--vg-pool-tpool'
  readonly metadataDevice = '/dev/mapper/work--vg-pool_tmeta'
  readonly sizeUnit = mebibyte
  readonly noise
  readonly #deviceMapper = new DeviceMapper()
  /** By name: whether it is active. */
  readonly #active = new Map<string, boolean>()
  #facts: Map<string, ThinFacts> | undefined
  #borrowed = 0

  private constructor() {
    const words = (...command: string[]) => ['env', `LVM_SYSTEM_DIR=${process.env.LVM_SYSTEM_DIR}`, 'lvm', ...command]
    this.noise = {
      path: `/dev/mapper/work--vg-noise`,
      sizeBytes: 32 * mebibyte,
      commands: [
        words('lvcreate', '--snapshot', '--name', 'noise-now', `${group}/noise`, '--quiet'),
        words('lvremove', '--yes', '--quiet', `${group}/noise-now`)
      ],
      commandsApart: 4000
    }
  }

  static create(disk: string): LvmPool {
    prepareLvm()
    zeroStart(disk, mebibyte)
    createGroup(group, disk)
    createPool(group, 'pool', 512)
    createThin(group, 'pool', 'noise', 32)
    return new LvmPool()
  }

  async createVolume(name: string, sizeBytes: number): Promise<void> {
    createThin(group, 'pool', name, sizeBytes / mebibyte)
    this.#changed(name, true)
  }

  async snapshot(origin: string, name: string, active: boolean): Promise<void> {
    createSnapshot(group, origin, name, { active })
    this.#changed(name, active)
  }

  async remove(name: string): Promise<void> {
    lvm('lvremove', `${group}/${name}`)
    this.#changed(name, undefined)
  }

  async rename(name: string, newName: string): Promise<void> {
    lvm('lvrename', group, name, newName)
    const active = this.#active.get(name)
    this.#changed(name, undefined)
    this.#changed(newName, active)
  }

  async resize(name: string, sizeBytes: number): Promise<void> {
    const now = (await this.#factsOf(name)).sizeBytes
    if (sizeBytes > now) lvm('lvextend', '--size', `${sizeBytes}b`, `${group}/${name}`)
    else if (sizeBytes < now) shrink(`${group}/${name}`, `${sizeBytes}b`)
    this.#facts = undefined
  }

  async merge(snapshot: string, origin: string, whilePending?: () => Promise<void>): Promise<void> {
    if (whilePending !== undefined) {
      // A merge waits for as long as its origin is open.
      const open = openSync(this.volumePath(origin), 'r')
      try {
        lvm('lvconvert', '--merge', `${group}/${snapshot}`)
        await whilePending()
      } finally {
        closeSync(open)
      }
      // Twice: the first time it is activated in the size that it had.
      for (const active of ['n', 'y', 'n', 'y']) lvm('lvchange', '--activate', active, `${group}/${origin}`)
    } else lvm('lvconvert', '--merge', `${group}/${snapshot}`)
    this.#changed(snapshot, undefined)
  }

  async facts(): Promise<Map<string, ThinFacts>> {
    if (this.#facts === undefined) {
      const fields = ['lv_name', 'lv_uuid', 'origin_uuid', 'thin_id', 'lv_size'].join(',')
      const options = ['--reportformat', 'json', '--units', 'b', '--nosuffix', '--options', fields]
      const report = JSON.parse(lvm('lvs', ...options, group)) as { report: [{ lv: Record<string, string>[] }] }
      const rows = report.report[0].lv.filter((row) => row['thin_id'] !== '' && !row['lv_name']?.startsWith('noise'))
      this.#facts = new Map(
        rows.map(({ lv_name = '', lv_uuid = '', origin_uuid = '', thin_id, lv_size }) => [
          lv_name,
          {
            thinId: Number(thin_id),
            sizeBytes: Number(lv_size),
            uuid: lv_uuid,
            ...(origin_uuid !== '' && { originUuid: origin_uuid })
          }
        ])
      )
    }
    return this.#facts
  }

  /** Inactive snapshots by turns through LVM, and through a device of our own that LVM does not see: that takes a tenth of the time. */
  async withDevice<T>(name: string, use: (path: string) => T | Promise<T>): Promise<T> {
    if (this.#active.get(name)) return use(this.volumePath(name))
    if (this.#borrowed++ % 8 === 0) {
      lvm('lvchange', '--activate', 'y', '--ignoreactivationskip', `${group}/${name}`)
      try {
        return await use(this.volumePath(name))
      } finally {
        lvm('lvchange', '--activate', 'n', `${group}/${name}`)
      }
    }
    const { thinId, sizeBytes } = await this.#factsOf(name)
    await this.#deviceMapper.create('borrowed', { table: [thinRow(sizeBytes, this.poolDevice, thinId)] })
    try {
      return await use('/dev/mapper/borrowed')
    } finally {
      await this.#deviceMapper.remove('borrowed')
    }
  }

  volumePath(name: string): string {
    return `/dev/mapper/work--vg-${name.replaceAll('-', '--')}`
  }

  async fullness(): Promise<number> {
    return poolFullness(this.#deviceMapper, this.poolDevice)
  }

  async mappedBlocks(path: string): Promise<number> {
    return mappedBlocks(this.#deviceMapper, path)
  }

  async close(): Promise<void> {
    await this.#deviceMapper.close()
    lvm('vgremove', '--force', group)
  }

  #changed(name: string, active: boolean | undefined): void {
    if (active === undefined) this.#active.delete(name)
    else this.#active.set(name, active)
    this.#facts = undefined
  }

  async #factsOf(name: string): Promise<ThinFacts> {
    const facts = (await this.facts()).get(name)
    if (facts === undefined) throw new Error(`LVM has no thin ${name}`)
    return facts
  }
}
