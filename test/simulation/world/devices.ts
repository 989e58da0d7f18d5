/**
 * The device-mapper of a simulated machine: names, UUIDs, numbers and tables, behind the methods that native/ offers. What stands behind a
 * pool's device is a simulated pool, behind a metadata device its disk.
 */
import type { DeviceInfo, DeviceNumber, DeviceReference, TableRow } from '../../../native/device-mapper.ts'
import { nodeName } from '../../../native/device.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import type { MetadataMedium, OpenMedium } from '../../../src/devicemapper/metadata-medium.ts'
import type { ReadRuns } from '../../../src/devicemapper/read-runs.ts'
import { BLOCK_BYTES } from '../metadata/blocks.ts'
import type { MetadataDisk } from '../metadata/disk.ts'
import type { ThinPool } from '../kernel/thin-pool.ts'
import type { Scheduler } from './scheduler.ts'

export interface Device {
  name: string
  readonly uuid: string
  readonly number: DeviceNumber
  table: TableRow
  readOnly: boolean
  openCount: number
  readonly disk?: MetadataDisk
  readonly pool?: () => ThinPool
}

/** The one that a name, UUID or number means. */
export function referredTo<T extends Pick<Device, 'name' | 'uuid' | 'number'>>(
  devices: Iterable<T>,
  reference: DeviceReference
): T | undefined {
  for (const device of devices) {
    if (typeof reference === 'string') {
      if (device.name === reference) return device
    } else if ('uuid' in reference) {
      if (device.uuid === reference.uuid) return device
    } else if (device.number.minor === reference.minor && device.number.major === reference.major) return device
  }
  return undefined
}

export class Devices {
  readonly #devices = new Set<Device>()
  readonly #scheduler: Scheduler

  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler
  }

  find(reference: DeviceReference): Device | undefined {
    return referredTo(this.#devices, reference)
  }

  /** The lowest numbers are given out again, and not always in the same order. */
  add(device: Omit<Device, 'number' | 'openCount'>): Device {
    const used = new Set([...this.#devices].map(({ number }) => number.minor))
    const free = Array.from({ length: used.size + 2 }, (_, minor) => minor).filter((minor) => !used.has(minor))
    const { random } = this.#scheduler
    const added = {
      ...device,
      openCount: 0,
      number: { major: 254, minor: random.chance(0.5) ? free[0] : random.pick(free) }
    }
    this.#devices.add(added)
    return added
  }

  remove(device: Device): void {
    this.#devices.delete(device)
  }

  clear(): void {
    this.#devices.clear()
  }

  info(device: Device): DeviceInfo {
    return {
      ...{ name: device.name, uuid: device.uuid, ...device.number, readOnly: device.readOnly },
      ...{ suspended: false, hasLiveTable: true, hasInactiveTable: false, openCount: device.openCount },
      ...{ eventNumber: 0, targetCount: 1, removeDeferred: false, internallySuspended: false }
    }
  }

  /** The calls that an agent makes, each answered at its turn. */
  portOf(owner: string) {
    const ask = <T>(act: () => T): Promise<T> => this.#scheduler.io(owner, act)
    const existing = (reference: DeviceReference): Device => {
      const device = this.find(reference)
      if (device) return device
      throw new DeltamapperError('DM_NO_SUCH_DEVICE', `there is no device ${JSON.stringify(reference)}`, 'ask again')
    }
    return {
      info: (reference: DeviceReference) =>
        ask(() => {
          const device = this.find(reference)
          return device && this.info(device)
        }),
      table: (reference: DeviceReference): Promise<readonly TableRow[]> => ask(() => [existing(reference).table]),
      status: (reference: DeviceReference): Promise<readonly TableRow[]> =>
        ask(() => {
          const { table, pool } = existing(reference)
          return [{ ...table, params: pool?.().status ?? '0 -' }]
        })
    }
  }

  /** Opens metadata devices by their nodes. What is open cannot be removed. */
  openFor(owner: string): OpenMedium {
    return (path) =>
      this.#scheduler.io(owner, () => {
        const device = [...this.#devices].find(({ name }) => path === `/dev/mapper/${nodeName(name)}`)
        if (!device?.disk) {
          throw new DeltamapperError('DM_READ_FAILED', `cannot open ${path}: ENOENT`, 'check the path')
        }
        device.openCount++
        return new DeviceMedium(this.#scheduler, owner, device, device.disk)
      })
  }
}

type OpenDevice = Pick<Device, 'number' | 'openCount'>

export class DeviceMedium implements MetadataMedium {
  readonly sizeBytes: number
  readonly device: DeviceNumber
  readonly isDirect = true
  readonly descriptor = -1
  readonly #scheduler: Scheduler
  readonly #owner: string
  readonly #open: OpenDevice
  readonly #disk: MetadataDisk

  constructor(scheduler: Scheduler, owner: string, device: OpenDevice, disk: MetadataDisk) {
    this.#scheduler = scheduler
    this.#owner = owner
    this.#open = device
    this.#disk = disk
    this.device = device.number
    this.sizeBytes = disk.blocks * BLOCK_BYTES
  }

  /** The runs of a window are read in any order, and not at the same moment. */
  async readRuns(into: Uint8Array, { count, starts, lengths, positions }: ReadRuns): Promise<undefined> {
    const read = async (run: number) =>
      this.#scheduler.io(this.#owner, () => this.readNow(into, starts[run], lengths[run], positions[run]), true)
    await Promise.all(Array.from({ length: count }, (_, run) => read(run)))
  }

  readNow(into: Uint8Array, start: number, bytes: number, position: number): number {
    for (let at = 0; at < bytes; at += BLOCK_BYTES) {
      into.set(this.#disk.readAround((position + at) / BLOCK_BYTES), start + at)
    }
    return bytes
  }

  async close(): Promise<void> {
    this.#open.openCount--
  }
}
