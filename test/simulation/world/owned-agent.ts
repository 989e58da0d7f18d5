/**
 * The agent of a machine with an owned pool: the product's own code of src/agent/owned-pools, with the scheduler in place of the kernel,
 * clocks and helper processes. Its calls of device-mapper can fail, hang, and be ended by the death of whoever makes them.
 */
import pino from 'pino'
import type { Call } from '../../../native/call.ts'
import { diedError, failedError, stuckError } from '../../../native/device-mapper-error.ts'
import type { DeviceMapper, DeviceReference, TableRow } from '../../../native/device-mapper.ts'
import { Catalog } from '../../../src/agent/catalog/catalog.ts'
import type { CatalogDatabase } from '../../../src/agent/catalog/database.ts'
import { OwnedPools } from '../../../src/agent/owned-pools/owned-pools.ts'
import type { PoolMachine } from '../../../src/devicemapper/thin/pool-machine.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { constants } from 'node:os'
import { Refused } from '../kernel/refused.ts'
import { BLOCK_BYTES as METADATA_BLOCK_BYTES } from '../metadata/blocks.ts'
import { runOn } from './agent.ts'
import { DeviceMedium } from './devices.ts'
import { BLOCK_BYTES, type OwnedDevice, type OwnedMachine } from './owned-machine.ts'

const logger = pino({ level: 'silent' })

/** How long a call may take that sets no time of its own, in milliseconds. */
const DEADLINE_MS = 10_000
/** How long a call hangs that is to. */
const HANG_MS = 90_000

/** What becomes of a call that changes something. */
export type CallFault = 'refused' | 'helper dies before' | 'helper dies after' | 'hangs'

/** What is to go wrong, and what nobody may do. */
export interface Ill {
  /** Of the calls to come: the first, the second, … */
  readonly faults: (CallFault | undefined)[]
  /** Told when an agent changes a device that is not its own. */
  readonly onForeign: (what: string) => void
}

interface Options {
  readonly deadlineMs?: number
}

/** The calls of device-mapper that an agent makes. */
function portOf(machine: OwnedMachine, owner: string, ill: Ill): DeviceMapper {
  const { scheduler } = machine
  const ask = <T>(act: () => T): Promise<T> => scheduler.io(owner, act)
  const refused = (call: Call, error: unknown): Error => {
    if (!(error instanceof Refused)) return error as Error
    const reason = error.errno === 'ENXIO' ? 'missing' : 'refused'
    return failedError(call, { reason, errno: constants.errno[error.errno], said: [error.message] })
  }

  /** One that changes something: the kernel carries it out in turns of its own. */
  const change = async <T>(call: Call, act: () => Promise<T>, { deadlineMs = DEADLINE_MS }: Options = {}) => {
    const fault = ill.faults.shift()
    const begun = await ask(() => {
      if (fault === 'helper dies before') throw diedError(call, 'killed')
      if (fault === 'refused') throw refused(call, new Refused('EIO', 'the simulation wants it so'))
      const running = (async () => {
        if (fault === 'hangs') {
          await new Promise<void>((resolve) => void scheduler.after(machine.kernel, HANG_MS, resolve))
        }
        // It has to come to the kernel first.
        await scheduler.io(machine.kernel, () => undefined)
        return act()
      })()
      running.catch(() => undefined)
      return { running }
    })
    const late = new Promise<never>((_, reject) => {
      if (fault !== 'hangs') return
      scheduler.after(owner, deadlineMs, () => {
        reject(stuckError(call, deadlineMs, 1))
      })
    })
    late.catch(() => undefined)
    const ended = await Promise.race([begun.running, late]).then(
      (value) => () => value,
      (error: unknown) => () => {
        throw refused(call, error)
      }
    )
    return ask(() => {
      if (fault === 'helper dies after') throw diedError(call, 'killed')
      return ended()
    })
  }

  const query = <T>(call: Call['call'], device: DeviceReference, act: (device: OwnedDevice) => T | Promise<T>) =>
    ask(() => {
      const asked = { call, device } as Call
      try {
        return { answer: act(machine.existing(device)) }
      } catch (error) {
        throw refused(asked, error)
      }
    }).then(({ answer }) => answer)

  /** @throws Refused where it is gone */
  const own = (reference: DeviceReference, what: string): OwnedDevice => {
    const device = machine.existing(reference)
    if (!device.uuid.startsWith('DELTAMAPPER-')) ill.onForeign(`${what} of ${device.name}, which is not ours`)
    return device
  }

  const port = {
    list: () => ask(() => [...machine.devices].map(({ name, number }) => ({ name, ...number }))),
    info: (device: DeviceReference) =>
      ask(() => {
        const found = machine.find(device)
        return found && machine.info(found)
      }),
    table: (device: DeviceReference) => query('table', device, ({ live }) => (live ? [live.row] : [])),
    status: (device: DeviceReference) =>
      query('status', device, async (found) => {
        const params = await machine.status(found)
        return found.live ? [{ ...found.live.row, params }] : []
      }),
    message: (device: DeviceReference, text: string, options?: Options) =>
      change(
        { call: 'message', device, sector: 0, text },
        async () => machine.message(own(device, `message ${text}`), text),
        options
      ),
    create: (
      name: string,
      { uuid, table, readOnly = false, ...options }: Options & { uuid: string; table: TableRow[]; readOnly?: boolean }
    ) =>
      change(
        { call: 'create', device: name, uuid, table, readOnly },
        async () => {
          const device = machine.create(name, uuid)
          try {
            await scheduler.io(machine.kernel, () => undefined)
            machine.load(device, table[0], readOnly)
            await scheduler.io(machine.kernel, () => undefined)
            await machine.resume(device)
          } catch (error) {
            // (libdevmapper takes back what it has made.)
            await machine.remove(device)
            throw error
          }
          return machine.info(device)
        },
        options
      ),
    reload: (device: DeviceReference, table: TableRow[], { readOnly = false }: { readOnly?: boolean } = {}) =>
      change({ call: 'reload', device, table, readOnly }, async () => {
        machine.load(own(device, 'reload'), table[0], readOnly)
      }),
    clear: (device: DeviceReference) =>
      change({ call: 'clear', device }, async () => {
        delete own(device, 'clear').loaded
      }),
    suspend: (device: DeviceReference, options?: Options) =>
      change(
        { call: 'suspend', device, lockfs: true, flush: true },
        async () => machine.suspend(own(device, 'suspend')),
        options
      ),
    resume: (device: DeviceReference, options?: Options) =>
      change(
        { call: 'resume', device, lockfs: true, flush: true },
        async () => machine.resume(own(device, 'resume')),
        options
      ),
    remove: (device: DeviceReference) =>
      change({ call: 'remove', device, deferred: false, retry: true }, async () => {
        await machine.remove(own(device, 'remove'))
        return 'removed'
      })
  }
  return port as unknown as DeviceMapper
}

/** What an agent asks of the machine beside device-mapper. */
function surroundings(machine: OwnedMachine, owner: string): PoolMachine {
  const { scheduler } = machine
  const ask = <T>(act: () => T): Promise<T> => scheduler.io(owner, act)
  return {
    clock: {
      now: () => scheduler.now,
      monotonic: () => scheduler.now,
      sleep: (ms) => new Promise((resolve) => void scheduler.after(owner, ms, resolve))
    },
    open: (path) =>
      ask(() => {
        const device = machine.at(path)
        if (!device?.disk) throw new DeltamapperError('DM_READ_FAILED', `cannot open ${path}`, 'check the path')
        device.openCount++
        return new DeviceMedium(scheduler, owner, device, device.disk)
      }),
    sizeOf: (number) => ask(() => (machine.existing(number).live?.row.lengthSectors ?? 0) * 512),
    claim: (path, { writable = false } = {}) =>
      ask(() => {
        const device = machine.at(path)
        if (!device?.live) throw new DeltamapperError('DM_NO_SUCH_DEVICE', `there is no ${path}`, 'check it')
        if (machine.isClaimed(device)) throw new DeltamapperError('DM_DEVICE_BUSY', `${path} is in use`, 'wait')
        const { disk, data, number } = device
        const close = async () => undefined
        return {
          ...{ path, number, sizeBytes: device.live.row.lengthSectors * 512, close },
          content: () =>
            ask(() => {
              const isBlank = disk ? disk.read(0).every((byte) => byte === 0) : (data?.read(0) ?? 0) === 0
              return isBlank ? undefined : 'something'
            }),
          zeroStart: (bytes: number) =>
            ask(() => {
              if (!writable) throw new Error(`${path} was opened to be read`)
              for (let at = 0; at < bytes; at += METADATA_BLOCK_BYTES) {
                disk?.write(at / METADATA_BLOCK_BYTES, Buffer.alloc(METADATA_BLOCK_BYTES))
              }
              for (let at = 0; at < bytes; at += BLOCK_BYTES) data?.write(at / BLOCK_BYTES, 0)
              disk?.flush()
              data?.flush()
            }),
          [Symbol.asyncDispose]: close
        }
      })
  }
}

export interface OwnedAgent {
  readonly owner: string
  readonly pools: OwnedPools
}

export function startOwnedAgent(owner: string, machine: OwnedMachine, database: CatalogDatabase, ill: Ill): OwnedAgent {
  const catalog = new Catalog('/simulated/catalog', { run: runOn(database, machine.scheduler, owner) })
  const deviceMapper = portOf(machine, owner, ill)
  const pools = new OwnedPools({ catalog, deviceMapper, logger, machine: surroundings(machine, owner) })
  return { owner, pools }
}
