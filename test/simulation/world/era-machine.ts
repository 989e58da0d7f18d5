/**
 * A simulated machine with one tracked volume: its two devices over a data and a metadata device, what the kernel tells of them, and what
 * the volume holds. Behind the era device stands a simulated target (kernel/era-target.ts), behind a data device a version for each block.
 */
import type { DeviceInfo, DeviceNumber, DeviceReference, TableRow } from '../../../native/device-mapper.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { EraTarget, type EraMessage, type WorkerStep } from '../kernel/era-target.ts'
import { Refused } from '../kernel/refused.ts'
import { MetadataDisk } from '../metadata/disk.ts'
import { referredTo } from './devices.ts'
import type { Scheduler } from './scheduler.ts'

export const BLOCK_SECTORS = 8
export const BLOCK_BYTES = BLOCK_SECTORS * 512
const METADATA_BLOCKS = 400

/** What is loaded into a device; an era table has read its metadata by then. */
interface Table {
  readonly row: TableRow
  readonly target?: EraTarget
}

export interface EraDevice {
  readonly name: string
  readonly uuid: string
  readonly number: DeviceNumber
  /** No device ever had the same. */
  readonly instance: string
  live?: Table
  loaded?: Table
  isSuspended: boolean
  openCount: number
  /** Bytes; 0 lets no discard through. */
  discardLimit: number
  writtenSectors: number
  discards: number
  /** How often it was resumed. */
  resumes: number
  readonly disk?: MetadataDisk
  /** What waits for the resume. */
  waiting: (() => void)[]
}

export class EraMachine {
  readonly scheduler: Scheduler
  readonly devices = new Set<EraDevice>()
  readonly metadata = new MetadataDisk(METADATA_BLOCKS)
  /** By block, what the data device holds. */
  readonly content: Int32Array
  boot = 1
  #instances = 0
  #version = 0
  /** One thing at a time is done to the era device. */
  #work: Promise<void> = Promise.resolve()

  constructor(scheduler: Scheduler, blocks: number) {
    this.scheduler = scheduler
    this.content = new Int32Array(blocks)
    this.bootUp()
  }

  get kernel(): string {
    return `kernel ${this.boot}`
  }

  get blocks(): number {
    return this.content.length
  }

  /** The devices that are there by themselves. */
  bootUp(): void {
    for (const [name, blocks, disk] of [
      ['vg-data', this.blocks, undefined],
      ['vg-meta', METADATA_BLOCKS, this.metadata]
    ] as const) {
      const device = this.#add(`${name}`, `LVM-${name}`, disk)
      device.live = { row: row(blocks * BLOCK_SECTORS, 'linear', `8:0 ${name === 'vg-data' ? 0 : 2 ** 20}`) }
    }
  }

  /** What was not flushed is lost, or not; every device and every process is gone. */
  powerCut(): void {
    this.scheduler.kill(this.kernel)
    this.metadata.crash(this.scheduler.random)
    this.devices.clear()
    this.isClosing = false
    this.boot++
    this.#work = Promise.resolve()
    this.bootUp()
  }

  find(reference: DeviceReference): EraDevice | undefined {
    return referredTo(this.devices, reference)
  }

  /** The era device that the volume's users see. */
  get volume(): EraDevice | undefined {
    return [...this.devices].find(({ uuid }) => uuid.includes('era') && !uuid.includes('guard'))
  }

  get guard(): EraDevice | undefined {
    return [...this.devices].find(({ uuid }) => uuid.includes('guard'))
  }

  get data(): EraDevice {
    return this.existing('vg-data')
  }

  existing(reference: DeviceReference): EraDevice {
    const device = this.find(reference)
    if (device) return device
    throw new DeltamapperError('DM_NO_SUCH_DEVICE', `there is no device ${JSON.stringify(reference)}`, 'ask again')
  }

  info(device: EraDevice): DeviceInfo {
    return {
      ...{ name: device.name, uuid: device.uuid, ...device.number, readOnly: false, suspended: device.isSuspended },
      ...{ hasLiveTable: device.live !== undefined, hasInactiveTable: device.loaded !== undefined },
      ...{ openCount: device.openCount + this.#above(device), eventNumber: 0, targetCount: 1 },
      ...{ removeDeferred: false, internallySuspended: false }
    }
  }

  // Writes

  /** Nobody is to mount the volume any more. */
  isClosing = false

  /** The volume is unmounted: what was written has come through by then. */
  async unmount(): Promise<void> {
    this.isClosing = true
    await this.#exclusively(async () => undefined)
    if (this.volume) this.volume.openCount = 0
  }

  /** A write to the volume, which is mounted for it: it waits while that is suspended, and for its mark. */
  write(block: number): void {
    const device = this.volume
    if (!device?.live || this.isClosing) return
    device.openCount = 1
    if (device.isSuspended)
      return void device.waiting.push(() => {
        this.write(block)
      })
    const { target } = device.live
    const go = () => {
      device.writtenSectors += BLOCK_SECTORS
      this.#count(this.guard)
      this.writeBeneath(block)
    }
    if (!target) return go()
    target.write(block, go)
    void this.#exclusively(() => this.#worker(target))
  }

  /** A write to the data device, past everything that stands on it. */
  writeBeneath(block: number): void {
    this.#count(this.data)
    this.content[block] = ++this.#version
  }

  /** The same where no kernel of ours counts. */
  writeUncounted(block: number): void {
    this.content[block] = ++this.#version
  }

  /** A discard of the volume, of which dm-era marks the first block only. */
  discard(first: number, count: number): void {
    const [device, guard] = [this.volume, this.guard]
    if (!device?.live || device.isSuspended || device.discardLimit === 0 || !guard || guard.discardLimit === 0) return
    const { target } = device.live
    const go = () => {
      for (const each of [device, guard, this.data]) each.discards++
      this.content.fill(0, first, Math.min(first + count, this.blocks))
    }
    if (!target) return go()
    target.write(first, go)
    void this.#exclusively(() => this.#worker(target))
  }

  #count(device: EraDevice | undefined): void {
    if (device) device.writtenSectors += BLOCK_SECTORS
  }

  // Device-mapper, in somebody's name

  create(name: string, uuid: string, table: TableRow): EraDevice {
    if (this.find(name)) throw new DeltamapperError('DM_NAME_TAKEN', `there is a device ${name}`, 'take another name')
    const loaded = this.#loaded(table)
    const device = this.#add(name, uuid)
    device.loaded = loaded
    return device
  }

  load(device: EraDevice, table: TableRow): void {
    device.loaded = this.#loaded(table)
  }

  /** Puts a loaded table in place, if there is one, and lets writes in again. */
  async resume(device: EraDevice): Promise<void> {
    await this.#exclusively(async () => {
      if (device.loaded) {
        if (device.live && !device.isSuspended) await this.#suspended(device)
        device.live = device.loaded
        delete device.loaded
        // It is taken from the devices below.
        device.discardLimit = this.#below(device).at(-1)?.discardLimit ?? 2 ** 32
        device.isSuspended = true
      }
      const { live } = device
      if (!live || !device.isSuspended) return
      if (live.target) await this.#steps(live.target.resuming(this.scheduler.random))
      device.isSuspended = false
      device.resumes++
      for (const each of device.waiting.splice(0)) each()
    })
  }

  async suspend(device: EraDevice): Promise<void> {
    await this.#exclusively(async () => {
      if (!device.isSuspended && device.live) await this.#suspended(device)
    })
  }

  async #suspended(device: EraDevice): Promise<void> {
    device.isSuspended = true
    const { target } = device.live!
    // What is in flight comes through first.
    if (target) {
      await this.#worker(target)
      await this.#steps(target.suspending(this.scheduler.random))
    }
  }

  async remove(device: EraDevice): Promise<void> {
    if (device.openCount + this.#above(device) > 0) throw new DeltamapperError('DM_DEVICE_BUSY', 'in use', 'ask again')
    if (device.live && !device.isSuspended) await this.suspend(device)
    this.devices.delete(device)
    for (const each of device.waiting.splice(0)) each()
  }

  /** @throws Refused */
  async message(device: EraDevice, text: string): Promise<void> {
    await this.#onceResumed(device)
    const { target } = device.live ?? {}
    if (!target) throw new Refused('EINVAL', 'no such target')
    let error: Refused | undefined
    await this.#exclusively(async () => {
      target.message(
        text as EraMessage,
        (refusal) => {
          error = refusal
        },
        this.scheduler.random
      )
      await this.#worker(target)
    })
    if (error) throw error
  }

  async status(device: EraDevice): Promise<string> {
    await this.#onceResumed(device)
    const { target } = device.live ?? {}
    let line = ''
    if (target) {
      await this.#exclusively(async () => {
        target.status((said) => {
          line = said
        })
        await this.#worker(target)
      })
    }
    return line
  }

  /** Whoever asks a suspended era device waits. */
  #onceResumed(device: EraDevice): Promise<void> {
    if (!device.isSuspended) return Promise.resolve()
    return new Promise((resolve) => {
      device.waiting.push(resolve)
    })
  }

  async #exclusively(work: () => Promise<void>): Promise<void> {
    const before = this.#work
    const done = Promise.withResolvers<void>()
    this.#work = done.promise
    await before
    try {
      await work()
    } finally {
      done.resolve()
    }
  }

  async #worker(target: EraTarget): Promise<void> {
    for (;;) {
      const step = await this.scheduler.io(this.kernel, () => target.step(this.scheduler.random))
      if (step === 'idle') return
    }
  }

  async #steps(steps: Generator<WorkerStep, void>): Promise<void> {
    for (;;) {
      const { done } = await this.scheduler.io(this.kernel, () => steps.next())
      if (done) return
    }
  }

  #loaded(table: TableRow): Table {
    if (table.targetType !== 'era') return { row: table }
    const blocks = Math.ceil(table.lengthSectors / BLOCK_SECTORS)
    return { row: table, target: EraTarget.load(this.metadata, { blockSectors: BLOCK_SECTORS, blocks }) }
  }

  #add(name: string, uuid: string, disk?: MetadataDisk): EraDevice {
    const used = new Set([...this.devices].map(({ number }) => number.minor))
    const minor = Array.from({ length: used.size + 1 }, (_, i) => i).find((each) => !used.has(each))!
    const device: EraDevice = {
      ...{ name, uuid, number: { major: 254, minor }, instance: `${++this.#instances}`, isSuspended: false },
      ...{ openCount: 0, discardLimit: 2 ** 32, writtenSectors: 0, discards: 0, resumes: 0, waiting: [] },
      ...(disk && { disk })
    }
    this.devices.add(device)
    return device
  }

  /** By the numbers in its live table. */
  #below(device: EraDevice): EraDevice[] {
    return devicesIn(device.live?.row).flatMap((number) => this.find(number) ?? [])
  }

  below(device: EraDevice): EraDevice[] {
    return this.#below(device)
  }

  /** Something stands on it, and keeps others from claiming it; whoever just has it open does not. */
  isClaimed(device: EraDevice): boolean {
    return this.#above(device) > 0
  }

  #above(device: EraDevice): number {
    const stands = (row: TableRow | undefined) =>
      devicesIn(row).some(({ major, minor }) => major === device.number.major && minor === device.number.minor)
    return [...this.devices].filter(({ live, loaded }) => stands(live?.row) || stands(loaded?.row)).length
  }
}

function devicesIn(table: TableRow | undefined): DeviceNumber[] {
  const words = (table?.params ?? '').split(' ').filter((word) => /^254:\d+$/.test(word))
  return words.map((word) => ({ major: 254, minor: Number(word.split(':')[1]) }))
}

export function row(lengthSectors: number, targetType: string, params: string): TableRow {
  return { startSector: 0, lengthSectors, targetType, params }
}
