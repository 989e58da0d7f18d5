/**
 * The agent of a machine with a tracked volume: the product's own code of src/agent/era, with the scheduler in place of processes, threads,
 * clocks and the kernel. Its helpers are processes that outlive it: the watchdog of a suspension, the keeper of a metadata snapshot.
 */
import pino from 'pino'
import type { DeviceMapper, DeviceNumber, DeviceReference, TableRow } from '../../../native/device-mapper.ts'
import { nodeName } from '../../../native/device.ts'
import { Catalog } from '../../../src/agent/catalog/catalog.ts'
import type { CatalogDatabase } from '../../../src/agent/catalog/database.ts'
import type { BoundaryMachine, WatchdogOf } from '../../../src/agent/era/boundary/boundary-machine.ts'
import type { WatchdogStart } from '../../../src/agent/era/boundary/watchdog.ts'
import type { LowerSnapshotting } from '../../../src/agent/era/boundary/lower-snapshot.ts'
import { EraVolumes } from '../../../src/agent/era/era-volumes.ts'
import { EraHistoryRecords } from '../../../src/agent/era/history/history-record.ts'
import { readHistory } from '../../../src/agent/era/history/history-reading.ts'
import { LOOK_BYTES } from '../../../src/devicemapper/block-device.ts'
import type { OpenMedium } from '../../../src/devicemapper/metadata-medium.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { BLOCK_BYTES } from '../metadata/blocks.ts'
import { Refused } from '../kernel/refused.ts'
import { runOn } from './agent.ts'
import { DeviceMedium } from './devices.ts'
import { type EraDevice, type EraMachine } from './era-machine.ts'
import type { SimulatedKeepers } from './keepers.ts'

const logger = pino({ level: 'silent' })

/** A call that the kernel carries out in turns of its own. Nobody hears of its end who is dead by then. */
export async function kernelCall<T>(machine: EraMachine, owner: string, act: () => T | Promise<T>): Promise<T> {
  const { scheduler } = machine
  const begun = await scheduler.io(owner, () => {
    const result = (async () => act())()
    // (Whoever waits for it may not have begun to.)
    result.catch(() => undefined)
    return { result }
  })
  const ended = await begun.result.then(
    (value) => () => value,
    (error: unknown) => () => {
      throw error instanceof Refused ? new DeltamapperError('DM_CALL_FAILED', error.message, 'ask again') : error
    }
  )
  return scheduler.io(owner, ended)
}

/** The calls of device-mapper that a process makes. */
export function portOf(machine: EraMachine, owner: string): DeviceMapper {
  const call = <T>(act: () => T | Promise<T>) => kernelCall(machine, owner, act)
  const existing = (reference: DeviceReference) => machine.existing(reference)
  const infoOf = (device: EraDevice) => machine.info(device)
  const port = {
    info: (reference: DeviceReference) =>
      machine.scheduler.io(owner, () => {
        const device = machine.find(reference)
        return device && infoOf(device)
      }),
    table: (reference: DeviceReference) =>
      machine.scheduler.io(owner, () => {
        const { live } = existing(reference)
        return live ? [live.row] : []
      }),
    deps: (reference: DeviceReference) =>
      machine.scheduler.io(owner, () => machine.below(existing(reference)).map(({ number }) => number)),
    status: (reference: DeviceReference) =>
      call(async () => {
        const device = existing(reference)
        const params = await machine.status(device)
        return [{ ...device.live!.row, params }]
      }),
    create: (name: string, { uuid, table }: { uuid: string; table: TableRow[] }) =>
      call(async () => {
        const device = machine.create(name, uuid, table[0])
        await machine.resume(device)
        return infoOf(device)
      }),
    reload: (reference: DeviceReference, table: TableRow[]) =>
      call(() => {
        machine.load(existing(reference), table[0])
      }),
    clear: (reference: DeviceReference) =>
      call(() => {
        delete existing(reference).loaded
      }),
    suspend: (reference: DeviceReference) => call(() => machine.suspend(existing(reference))),
    resume: (reference: DeviceReference) => call(() => machine.resume(existing(reference))),
    remove: (reference: DeviceReference) => call(() => machine.remove(existing(reference)))
  }
  return port as unknown as DeviceMapper
}

export function openerOf(machine: EraMachine, owner: string): OpenMedium {
  return (path) =>
    machine.scheduler.io(owner, () => {
      const device = at(machine, path)
      if (!device?.disk) throw new DeltamapperError('DM_READ_FAILED', `cannot open ${path}`, 'check the path')
      device.openCount++
      return new DeviceMedium(machine.scheduler, owner, device, device.disk)
    })
}

function at(machine: EraMachine, path: string): EraDevice | undefined {
  return [...machine.devices].find(({ name }) => path === `/dev/mapper/${nodeName(name)}`)
}

/** The process that owns a suspension, as watchdog-process.ts has it. */
class WatchdogProcess {
  readonly owner: string
  readonly agent: string
  readonly gone = new AbortController()
  readonly #machine: EraMachine
  readonly #port: DeviceMapper
  readonly #start: WatchdogStart
  #since: number | undefined
  #ending: Promise<void> | undefined
  #ended: { ms: number; held: boolean } | undefined
  #suspending: Promise<unknown> = Promise.resolve()

  constructor(machine: EraMachine, owner: string, agent: string, start: WatchdogStart) {
    this.owner = owner
    this.agent = agent
    this.#machine = machine
    this.#port = portOf(machine, owner)
    this.#start = start
  }

  async suspend(): Promise<number> {
    const { scheduler } = this.#machine
    this.#since = scheduler.now
    scheduler.after(this.owner, this.#start.deadlineMs, () => void this.#release(false))
    const call = this.#port.suspend(this.#start.device)
    this.#suspending = call.catch(() => undefined)
    try {
      await call
      return scheduler.now - this.#since
    } catch (error) {
      await this.#release(false)
      throw error
    }
  }

  async resume(): Promise<{ ms: number; held: boolean }> {
    await this.#release(true)
    return this.#ended ?? { ms: 0, held: false }
  }

  /** Its agent is gone, or has let it go. */
  async disconnect(): Promise<void> {
    await this.#release(false)
    this.die()
  }

  die(): void {
    this.gone.abort(new DeltamapperError('DM_CALL_STUCK', 'the watchdog is gone', 'ask again'))
  }

  #release(inTime: boolean): Promise<void> {
    const since = this.#since
    if (since === undefined) return Promise.resolve()
    return (this.#ending ??= (async () => {
      const { device } = this.#start
      const info = await this.#port.info(device)
      const held = inTime && info?.suspended === true
      if (info?.hasInactiveTable) await this.#port.clear(device)
      if (info) await this.#port.resume(device)
      await this.#suspending
      this.#ended = { ms: this.#machine.scheduler.now - since, held }
    })())
  }
}

export class Watchdogs {
  readonly #machine: EraMachine
  #all: WatchdogProcess[] = []
  #started = 0

  constructor(machine: EraMachine) {
    this.#machine = machine
  }

  get alive(): readonly WatchdogProcess[] {
    return (this.#all = this.#all.filter(({ gone }) => !gone.signal.aborted))
  }

  agentDied(agent: string): void {
    for (const each of this.alive) if (each.agent === agent) void each.disconnect().catch(() => undefined)
  }

  killAll(): void {
    for (const each of this.alive) this.kill(each)
  }

  kill(process: WatchdogProcess): void {
    this.#machine.scheduler.kill(process.owner)
    process.die()
  }

  /** As an agent has them. */
  start(agent: string, start: WatchdogStart): Promise<WatchdogOf> {
    return this.#machine.scheduler.io(agent, () => {
      const process = new WatchdogProcess(this.#machine, `watchdog ${++this.#started}`, agent, start)
      this.#all.push(process)
      const { signal } = process.gone
      const ask = async <T>(question: () => Promise<T>): Promise<T> => {
        signal.throwIfAborted()
        const lost = new Promise<never>((_, reject) => {
          signal.addEventListener('abort', () => reject(signal.reason as Error))
        })
        // (When the question has been answered, nobody waits for this any more.)
        lost.catch(() => undefined)
        return kernelCall(this.#machine, agent, () => Promise.race([question(), lost]))
      }
      return {
        lost: signal,
        suspend: () => ask(() => process.suspend()),
        resume: () => ask(() => process.resume()),
        end: () => kernelCall(this.#machine, agent, () => process.disconnect()),
        kill: () =>
          this.#machine.scheduler.io(agent, () => {
            this.kill(process)
            return true
          })
      }
    })
  }
}

/** What an agent asks of the machine. */
function surroundings(
  machine: EraMachine,
  owner: string,
  { keepers, watchdogs }: { keepers: SimulatedKeepers; watchdogs: Watchdogs }
): BoundaryMachine {
  const { scheduler } = machine
  const ask = <T>(act: () => T): Promise<T> => scheduler.io(owner, act)
  const of = (number: DeviceNumber) => machine.existing(number)
  return {
    clock: {
      now: () => scheduler.now,
      monotonic: () => scheduler.now,
      sleep: (ms) => new Promise((resolve) => void scheduler.after(owner, ms, resolve))
    },
    open: openerOf(machine, owner),
    bootId: () => ask(() => machine.kernel),
    counters: (number) => ask(() => ({ writtenSectors: of(number).writtenSectors, discards: of(number).discards })),
    instance: (number) => ask(() => of(number).instance),
    discardLimit: (number) => ask(() => of(number).discardLimit),
    refuseDiscards: (number) =>
      ask(() => {
        of(number).discardLimit = 0
      }),
    deviceAt: (path) => ask(() => at(machine, path)?.number),
    sizeOf: (number) => ask(() => (of(number).live?.row.lengthSectors ?? 0) * 512),
    claim: (path) =>
      ask(() => {
        const device = at(machine, path)
        if (!device) throw new DeltamapperError('DM_NO_SUCH_DEVICE', `there is no ${path}`, 'check it')
        if (machine.isClaimed(device)) throw new DeltamapperError('DM_DEVICE_BUSY', `${path} is in use`, 'wait')
        const close = async () => undefined
        return {
          ...{ path, number: device.number, sizeBytes: device.live!.row.lengthSectors * 512, close },
          content: async () => (device.disk?.read(0).some((byte) => byte !== 0) ? 'something' : undefined),
          zeroStart: () =>
            ask(() => {
              device.disk?.write(0, Buffer.alloc(BLOCK_BYTES))
              device.disk?.flush()
            }),
          [Symbol.asyncDispose]: close
        }
      }),
    head: () => ask(() => Buffer.from(machine.content.slice(0, LOOK_BYTES / BLOCK_BYTES).buffer)),
    writeBack: () => ask(() => undefined),
    identity: (_, __, number) => ask(() => `dm-uuid:${of(number).uuid}`),
    mergeable: () => ask(() => []),
    mountPoints: () => ask(() => []),
    countResumes: () => {
      const before = new Map([...machine.devices].map((device) => [device, device.resumes]))
      const of = (number: DeviceNumber) => {
        const device = machine.existing(number)
        return device.resumes - (before.get(device) ?? 0)
      }
      return { of, close: () => undefined }
    },
    neededPaths: () => ask(() => []),
    refuseSelfHosting: () => ask(() => undefined),
    startWatchdog: (start) => watchdogs.start(owner, start),
    keepers: keepers.of(owner)
  }
}

/** Snapshots of the data device, by name: what it held. */
export type LowerContents = Map<string, Int32Array>

function lowerSnapshots(machine: EraMachine, owner: string, taken: LowerContents): LowerSnapshotting {
  const remover = (name: string) => ({
    remove: () =>
      machine.scheduler.io(owner, () => {
        taken.delete(name)
      })
  })
  return {
    prepare: async (_, __, name) => ({
      lower: { kind: 'command', name },
      take: async () => {
        await machine.scheduler.io(owner, () => {
          taken.set(name, machine.content.slice())
        })
        // It takes its time.
        for (let i = 0; i < 3; i++) await machine.scheduler.io(owner, () => undefined)
      },
      ...remover(name)
    }),
    recorded: async (lower) => (lower.kind === 'command' ? remover(lower.name) : undefined),
    unfinished: async (_, name) => remover(name)
  }
}

export interface EraAgent {
  readonly owner: string
  readonly catalog: Catalog
  readonly volumes: EraVolumes
}

export function startEraAgent(
  owner: string,
  machine: EraMachine,
  database: CatalogDatabase,
  helpers: { keepers: SimulatedKeepers; watchdogs: Watchdogs; taken: LowerContents; trustRestarts: boolean }
): EraAgent {
  const catalog = new Catalog('/simulated/catalog', { run: runOn(database, machine.scheduler, owner) })
  const deviceMapper = portOf(machine, owner)
  const around = surroundings(machine, owner, helpers)
  const recorder = new EraHistoryRecords({
    ...{ catalog, deviceMapper, logger, machine: around },
    read: (reading, handOver) => readHistory(reading, handOver, around.open)
  })
  const volumes = new EraVolumes({
    ...{ catalog, deviceMapper, recorder, logger, lvmCommand: [], deadlineMs: 30_000, machine: around },
    ...{ lower: lowerSnapshots(machine, owner, helpers.taken), trustRestarts: helpers.trustRestarts }
  })
  void (async () => {
    await volumes.start()
    await recorder.recover((volume, work) => volumes.inTurn(volume, work))
  })().catch(() => undefined)
  return { owner, catalog, volumes }
}
