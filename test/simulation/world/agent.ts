/**
 * The agent of a simulated machine: the product's own way of a question from its handle to encoded messages, with the scheduler in place of
 * threads, clocks and devices.
 */
import pino from 'pino'
import { snapshotMetadataBackend } from '../../../src/agent/answers/backend.ts'
import type { CatalogRun } from '../../../src/agent/catalog/catalog-thread.ts'
import { type CatalogCalls, catalogCalls, runCall } from '../../../src/agent/catalog/calls.ts'
import { Catalog } from '../../../src/agent/catalog/catalog.ts'
import type { CatalogDatabase } from '../../../src/agent/catalog/database.ts'
import { parseLogicalVolumes } from '../../../src/agent/lvm/parse.ts'
import { catalogKnowledge } from '../../../src/agent/answers/served-target.ts'
import { Sources } from '../../../src/agent/answers/sources.ts'
import { answersWith } from '../../../src/agent/targets.ts'
import type { Plan } from '../../../src/agent/walks/plan.ts'
import { type ThinQuestion, walkMessages } from '../../../src/agent/walks/thin-walk.ts'
import type { RecordWanted } from '../../../src/agent/walks/record-keeping.ts'
import type { SeenDevices } from '../../../src/agent/walks/seen-devices.ts'
import type { Walkers } from '../../../src/agent/walks/walkers.ts'
import { noStatistics } from '../../../src/agent/walks/walk-messages.ts'
import type { OpenMedium } from '../../../src/devicemapper/metadata-medium.ts'
import type { SnapshotMetadataBackend } from '../../../src/grpc/snapshot-metadata.ts'
import type { Machine } from './machine.ts'
import type { Scheduler } from './scheduler.ts'

const logger = pino({ level: 'silent' })

/** The catalog's calls, each carried out at its turn. On disk when it is carried out, as the database promises. */
export function runOn(database: CatalogDatabase, scheduler: Scheduler, owner: string): () => CatalogRun {
  const calls = catalogCalls(database)
  return () => ({
    opening: Promise.resolve(database.opening),
    gone: Promise.resolve(),
    ended: false,
    stuck: false,
    call: (call, args) => scheduler.io(owner, () => (call === 'close' ? undefined : runCall(calls, call, args)))
  })
}

/** Walks without threads: one question is one chain of reads. */
function walkersOf(open: OpenMedium): Pick<Walkers, 'stream'> {
  async function* messages({ task, asides, explained }: Plan, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const request = { ...(task.request as ThinQuestion), direct: false }
    const aside = { signal, withdraw: () => undefined }
    const onSeen = async (seen: SeenDevices) =>
      (await asides?.['seen'](seen as never, aside)) as RecordWanted | undefined
    try {
      yield* walkMessages(request, noStatistics(), signal, { onSeen, open })
    } catch (error) {
      throw explained ? await explained(error) : error
    }
  }
  return {
    stream: (plan, signal) => ({ capacityBytes: plan.capacityBytes, messages: messages(plan, signal) })
  }
}

export interface AgentOptions {
  readonly strictBases: boolean
  /** Told how far a pool's clock had come when the agent looked. */
  readonly onClock: (clock: Parameters<CatalogCalls['poolClocks']['saw']>[0]) => void
}

export interface SimulatedAgent {
  readonly owner: string
  readonly backend: SnapshotMetadataBackend
  readonly catalog: Catalog
}

export function startAgent(
  owner: string,
  machine: Machine,
  database: CatalogDatabase,
  { strictBases, onClock }: AgentOptions
): SimulatedAgent {
  const { scheduler, devices } = machine
  const open = devices.openFor(owner)
  const run = runOn(database, scheduler, owner)
  const catalog = new Catalog('/simulated/catalog', {
    run: () => {
      const under = run()
      return {
        ...under,
        call: (name, args) => {
          if (name === 'poolClocks.saw') onClock(args[0] as Parameters<CatalogCalls['poolClocks']['saw']>[0])
          return under.call(name, args)
        }
      }
    }
  })
  // LVM says the same most of the time, and reading it is a tenth of a life.
  let said = { text: '', volumes: [] as ReturnType<typeof parseLogicalVolumes> }
  const report = () =>
    scheduler.io(owner, () => {
      const text = machine.report
      if (text !== said.text) said = { text, volumes: parseLogicalVolumes(text) }
      return said.volumes
    })
  const lvm = {
    allLogicalVolumes: report,
    logicalVolumes: async (group: string) => {
      const volumes = (await report()).filter(({ vgName }) => vgName === group)
      return volumes.length > 0 ? volumes : undefined
    },
    // No classic snapshots are simulated.
    snapshotLinks: async () => undefined
  }
  const sources = new Sources(new Map(), { deviceMapper: devices.portOf(owner), lvm })
  const knowledge = catalogKnowledge(catalog, logger, { strictBases, open, now: () => scheduler.now })
  return { owner, catalog, backend: snapshotMetadataBackend(sources, walkersOf(open), answersWith({ knowledge })) }
}
