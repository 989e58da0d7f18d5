/**
 * A simulated machine with the disks of an owned pool: device-mapper as the agent and others use it, the pool's target behind its device
 * (kernel/thin-pool.ts), and what its volumes' users write. What a table reaches when it is loaded, resumed and removed is as in dm-ioctl.c
 * and dm-thin.c. Each device's calls go one after the other; what was begun is ended by the kernel, whoever has died.
 */
import type { DeviceInfo, DeviceNumber, DeviceReference, TableRow } from '../../../native/device-mapper.ts'
import { parsePoolTable, parseThinTable } from '../../../src/devicemapper/thin/table.ts'
import { DataDevice, ThinPool } from '../kernel/thin-pool.ts'
import { Refused } from '../kernel/refused.ts'
import { MetadataDisk } from '../metadata/disk.ts'
import { referredTo } from './devices.ts'
import type { Scheduler } from './scheduler.ts'

export const BLOCK_SECTORS = 128
export const BLOCK_BYTES = BLOCK_SECTORS * 512
const METADATA_BLOCKS = 512
const DATA_BLOCKS = 80

/** A pool that is active, of one or two tables (the live one, and one that is loaded). */
class PoolTarget {
  readonly pool: ThinPool
  /** It takes no changes: a commit has failed, or its metadata need a check. */
  isReadOnly: boolean

  constructor(pool: ThinPool, isReadOnly: boolean) {
    this.pool = pool
    this.isReadOnly = isReadOnly
  }
}

interface Table {
  readonly row: TableRow
  readonly target?: PoolTarget
  /** Of a thin device. */
  readonly thin?: { readonly pool: OwnedDevice; readonly id: number }
  readonly readOnly: boolean
}

export interface OwnedDevice {
  name: string
  readonly uuid: string
  readonly number: DeviceNumber
  /** The turn at which it was made. */
  readonly since: number
  live?: Table
  loaded?: Table
  isSuspended: boolean
  /** By users: mounts, readers. */
  openCount: number
  readonly disk?: MetadataDisk
  readonly data?: DataDevice
  /** What waits for the resume. */
  waiting: (() => void)[]
  /** The calls before this one. */
  work: Promise<unknown>
}

/** A thin device as it was created. */
export interface Born {
  readonly content: Int32Array
  /** What tells its origin from all others; undefined for a volume. */
  readonly origin: string | undefined
  /** Since which turn somebody could write to what it was taken of, at that moment; Infinity where nobody could. */
  readonly writableSince: number
}

const notTaken = { origin: undefined, writableSince: Infinity }

export class OwnedMachine {
  readonly scheduler: Scheduler
  readonly devices = new Set<OwnedDevice>()
  readonly metadata = new MetadataDisk(METADATA_BLOCKS)
  readonly data = new DataDevice(DATA_BLOCKS)
  /** What messages have created, by what tells thin devices apart. */
  readonly born = new Map<string, Born>()
  boot = 1
  /** The next commit fails. */
  commitFails = false
  /** The pool's metadata need a check, whoever activates it. */
  needsCheck = false
  #numbers = 0
  #version = 0

  constructor(scheduler: Scheduler) {
    this.scheduler = scheduler
    this.bootUp()
  }

  get kernel(): string {
    return `kernel ${this.boot}`
  }

  /** The devices that are there by themselves: the pool's disks, and a volume of LVM's. */
  bootUp(): void {
    const sectors = { meta: METADATA_BLOCKS * 8, data: DATA_BLOCKS * BLOCK_SECTORS, lvm: 4096 }
    for (const [name, uuid, length, parts] of [
      ['disk-meta', 'PART-meta', sectors.meta, { disk: this.metadata }],
      ['disk-data', 'PART-data', sectors.data, { data: this.data }],
      ['vg-lv', 'LVM-volume', sectors.lvm, {}]
    ] as const) {
      const device = this.#add(name, uuid, parts)
      device.live = { row: row(length, 'linear', '8:0 0'), readOnly: false }
    }
  }

  /** What was not flushed is lost, or not; every device and every process is gone. */
  powerCut(): void {
    this.scheduler.kill(this.kernel)
    this.metadata.crash(this.scheduler.random)
    this.data.crash(this.scheduler.random)
    this.devices.clear()
    this.boot++
    this.bootUp()
  }

  find(reference: DeviceReference): OwnedDevice | undefined {
    return referredTo(this.devices, reference)
  }

  existing(reference: DeviceReference): OwnedDevice {
    const device = this.find(reference)
    if (device) return device
    throw new Refused('ENXIO', `there is no device ${JSON.stringify(reference)}`)
  }

  at(path: string): OwnedDevice | undefined {
    return [...this.devices].find(({ name }) => path === `/dev/mapper/${name}`)
  }

  info(device: OwnedDevice): DeviceInfo {
    return {
      ...{ name: device.name, uuid: device.uuid, ...device.number },
      ...{ readOnly: device.live?.readOnly ?? false, suspended: device.isSuspended },
      ...{ hasLiveTable: device.live !== undefined, hasInactiveTable: device.loaded !== undefined },
      ...{ openCount: device.openCount + this.#above(device), eventNumber: 0, targetCount: 1 },
      ...{ removeDeferred: false, internallySuspended: false }
    }
  }

  /** The pool's target; undefined while it is not active. */
  get target(): PoolTarget | undefined {
    for (const { live } of this.devices) if (live?.target) return live.target
    return undefined
  }

  get poolDevice(): OwnedDevice | undefined {
    return [...this.devices].find(({ live }) => live?.target)
  }

  /** Active thin devices. */
  get thins(): (OwnedDevice & { live: Table & { thin: NonNullable<Table['thin']> } })[] {
    return [...this.devices].filter(
      (device): device is OwnedDevice & { live: Table & { thin: NonNullable<Table['thin']> } } =>
        device.live?.thin !== undefined
    )
  }

  /** Whether a table stands on it. */
  isClaimed(device: OwnedDevice): boolean {
    return this.#above(device) > 0
  }

  /** What a thin device holds. */
  contentOf(id: number): Int32Array {
    const pool = this.target?.pool
    return Int32Array.from({ length: DATA_BLOCKS }, (_, block) => pool?.read(id, block) ?? 0)
  }

  // Writes

  write(device: OwnedDevice, block: number): void {
    const { live } = device
    if (!live?.thin || live.readOnly || (block + 1) * BLOCK_SECTORS > live.row.lengthSectors) return
    if (device.isSuspended) {
      device.waiting.push(() => {
        this.write(device, block)
      })
      return
    }
    const { thin } = live
    const target = thin.pool.live?.target
    if (!target || target.isReadOnly || !target.pool.has(thin.id)) return
    const version = ++this.#version
    // (While a commit is written, changes wait for it.)
    if (target.pool.isCommitting) void this.#inTurn(thin.pool, async () => this.write(device, block))
    else target.pool.write(thin.id, block, version)
  }

  // Device-mapper, in somebody's name

  create(name: string, uuid: string): OwnedDevice {
    if (this.find(name) || (uuid !== '' && this.find({ uuid }))) throw new Refused('EBUSY', `there is a device ${name}`)
    return this.#add(name, uuid, {})
  }

  load(device: OwnedDevice, table: TableRow, readOnly = false): void {
    device.loaded = { row: table, readOnly, ...this.#targetOf(device, table) }
  }

  async suspend(device: OwnedDevice): Promise<void> {
    await this.#inTurn(device, async () => {
      if (device.isSuspended || !device.live) throw new Refused('EINVAL', `${device.name} is suspended already`)
      device.isSuspended = true
    })
  }

  /** Puts a loaded table in place, and lets go on what waited. */
  async resume(device: OwnedDevice): Promise<void> {
    await this.#inTurn(device, async () => {
      if (device.loaded) {
        device.live = device.loaded
        delete device.loaded
      }
      if (!device.live) throw new Refused('EINVAL', `${device.name} has no table`)
      device.isSuspended = false
      for (const each of device.waiting.splice(0)) each()
    })
  }

  async remove(device: OwnedDevice): Promise<void> {
    await this.#inTurn(device, async () => {
      if (device.openCount > 0 || this.isClaimed(device)) throw new Refused('EBUSY', `${device.name} is in use`)
      // What a pool has not committed, it commits when it goes (pool_postsuspend).
      if (device.live?.target) await this.#commit(device.live.target)
      this.devices.delete(device)
    })
  }

  async message(device: OwnedDevice, text: string): Promise<void> {
    await this.#inTurn(device, async () => {
      const target = device.live?.target
      if (!target) throw new Refused('EINVAL', `${device.name} is no pool`)
      if (target.isReadOnly) throw new Refused('EOPNOTSUPP', 'the pool is read-only')
      const { pool } = target
      const [word, ...numbers] = text.split(' ')
      const [a, b] = numbers.map(Number)
      if (word === 'create_thin') pool.createThin(a)
      else if (word === 'create_snap') this.#snapshot(pool, a, b)
      else if (word === 'delete') {
        if (this.thins.some(({ live }) => live.thin.id === a)) throw new Refused('EBUSY', `thin device ${a} is active`)
        pool.delete(a)
      } else if (word === 'set_transaction_id') pool.setTransactionId(a, b)
      else throw new Refused('EINVAL', text)
      if (word === 'create_thin') {
        this.born.set(identityOf(pool, a), { content: new Int32Array(DATA_BLOCKS), ...notTaken })
      }
      await this.#commit(target)
    })
  }

  /** (pool_status commits first.) */
  async status(device: OwnedDevice): Promise<string> {
    const target = device.live?.target
    if (!target) return '0 -'
    await this.#inTurn(device, () => this.#commit(target))
    const line = target.pool.status
    return target.isReadOnly ? line.replace(' rw ', ' ro ').replace('no_space - ', 'no_space needs_check ') : line
  }

  /** The pool commits by itself, once a second. */
  async commit(): Promise<void> {
    const device = this.poolDevice
    if (device) await this.#inTurn(device, () => this.#commit(device.live!.target!))
  }

  #snapshot(pool: ThinPool, id: number, origin: number): void {
    const writable = this.thins.filter(
      ({ live, isSuspended }) => live.thin.id === origin && !live.readOnly && !isSuspended
    )
    const writableSince = Math.min(...writable.map(({ since }) => since))
    const of = identityOf(pool, origin)
    pool.createSnap(id, origin)
    const content = Int32Array.from({ length: DATA_BLOCKS }, (_, block) => pool.read(id, block))
    this.born.set(identityOf(pool, id), {
      content,
      origin: of,
      writableSince
    })
  }

  /** One write after the other. Where it fails, the pool is what it was, and takes no changes any more. */
  async #commit(target: PoolTarget): Promise<void> {
    const { pool } = target
    if (!pool.isDirty || target.isReadOnly) return
    if (this.commitFails) {
      this.commitFails = false
      this.needsCheck = true
      const device = this.poolDevice
      if (!device?.live) return
      // What was in memory is gone (abort_transaction).
      device.live = { ...device.live, target: new PoolTarget(ThinPool.load(this.metadata, this.data), true) }
      return
    }
    for (;;) {
      const step = pool.stepCommit(this.scheduler.random)
      if (step === 'done') return
      await this.scheduler.io(this.kernel, () => undefined)
    }
  }

  /** A call waits for those before it, of whoever. */
  #inTurn<T>(device: OwnedDevice, act: () => Promise<T>): Promise<T> {
    const before = device.work
    const run = (async () => {
      await before
      return act()
    })()
    device.work = run.catch(() => undefined)
    return run
  }

  /** What a table leads to. @throws Refused where it leads to nothing */
  #targetOf(device: OwnedDevice, { targetType, params }: TableRow): Pick<Table, 'target' | 'thin'> {
    if (targetType === 'thin-pool') {
      const { metadataDevice, dataDevice } = parsePoolTable(params)
      const known = device.live?.target ?? device.loaded?.target
      if (known) return { target: known }
      const [{ disk }, { data }] = [this.existing(metadataDevice), this.existing(dataDevice)]
      if (!disk || !data) throw new Refused('EINVAL', 'no disks of a pool')
      if ([metadataDevice, dataDevice].some((each) => this.isClaimed(this.existing(each)))) {
        throw new Refused('EBUSY', 'the disks are in use')
      }
      const isBlank = disk.read(0).every((byte) => byte === 0)
      const pool = isBlank ? ThinPool.format(disk, data, BLOCK_SECTORS) : ThinPool.load(disk, data)
      return { target: new PoolTarget(pool, !isBlank && this.needsCheck) }
    }
    if (targetType !== 'thin') return {}
    const parsed = parseThinTable(params)
    if (!parsed) throw new Refused('EINVAL', params)
    const { poolDevice, deviceId: id } = parsed
    const pool = this.existing(poolDevice)
    if (!pool.live?.target?.pool.has(id)) throw new Refused('ENODATA', `no thin device ${id}`)
    return { thin: { pool, id } }
  }

  #above(device: OwnedDevice): number {
    let count = 0
    for (const { live, loaded } of this.devices) {
      for (const table of [live, loaded]) {
        if (table?.thin?.pool === device) count++
        if (table?.target && (device.disk ?? device.data)) count++
      }
    }
    return count
  }

  #add(name: string, uuid: string, parts: Pick<OwnedDevice, 'disk' | 'data'>): OwnedDevice {
    const device: OwnedDevice = {
      ...{ name, uuid, number: { major: 254, minor: this.#numbers++ }, isSuspended: false, openCount: 0 },
      ...{ waiting: [], work: Promise.resolve(), since: this.scheduler.turn, ...parts }
    }
    this.devices.add(device)
    return device
  }
}

/** What tells a thin device from all others. */
function identityOf(pool: ThinPool, id: number): string {
  const { creationTime, transactionId } = pool.detailsOf(id)
  return `${id}/${creationTime}/${transactionId}`
}

export function row(lengthSectors: number, targetType: string, params: string): TableRow {
  return { startSector: 0, lengthSectors, targetType, params }
}
