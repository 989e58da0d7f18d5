/**
 * deltamapper.v1.Inventory: what a node has and can do, and what stands in the way. What the fields mean stands in
 * protos/deltamapper/v1/inventory.proto; here they are plain objects, 64-bit counts as numbers that are refused beyond
 * 2^53.
 *
 * It tells names of volumes and devices to whoever may open the socket, so the service is on unix sockets only.
 */
import { Client, credentials, type MethodDefinition, status } from '@grpc/grpc-js'
import type { sendUnaryData, ServerUnaryCall, ServiceDefinition } from '@grpc/grpc-js'
import { loadSync, type PackageDefinition } from '@grpc/proto-loader'
import type { Logger } from 'pino'
import { asDeltamapperError, DeltamapperError } from '../errors.ts'
import { parseConnectAddress } from './address.ts'
import { fromStatus, toStatus } from './status.ts'

export interface Problem {
  code: string
  message: string
  remedy: string
}

export type Severity = 'problem' | 'warning' | 'note'

export interface Finding {
  severity: Severity
  kind: string
  about: string
  what: string
  remedy: string
  /** Empty where there is none. */
  command: string
}

export interface NodeFacts {
  hostname: string
  operatingSystem: string
  kernel: string
  architecture: string
  virtualization: string
  memoryBytes: number
  processors: number
  problem?: Problem
}

export interface DeviceMapperFacts {
  libraryVersion: string
  driverVersion: string
  targets: { name: string; version: string }[]
  devices: number
  suspended: string[]
  problem?: Problem
}

export interface BlockDevice {
  path: string
  type: string
  sizeBytes: number
  fileSystem: string
  mountedAt: string
  model: string
}

export interface VolumeGroupFacts {
  name: string
  sizeBytes: number
  freeBytes: number
  missingDisks: number
  untracked: string[]
  problem?: Problem
}

export interface LvmFacts {
  command: string
  inUse: boolean
  groups: VolumeGroupFacts[]
  problem?: Problem
}

export interface LeaseFacts {
  device: string
  state: string
  purpose: string
  takenAtMs: number
  users: string[]
}

export interface EraHistoryFacts {
  volume: string
  snapshots: number
  removed: number
  supersets: number
  earlierHistories: number
  because: string
  oldestTakenAtMs?: number
  newestTakenAtMs?: number
  bitmapBytes: number
}

export interface TrackedVolumeFacts {
  name: string
  deviceName: string
  dataDevice: string
  active: boolean
  problem: string
  underWay: string
  metadataUsedBytes?: number
  metadataTotalBytes?: number
  heldMetadataSnapshot?: number
  heldByUs?: boolean
}

export interface CatalogFacts {
  path: string
  consulted: boolean
  sizeBytes?: number
  rows: { table: string; rows: number }[]
  leases: LeaseFacts[]
  disagreements: { kind: string; pool: string; what: string; remedy: string }[]
  eraHistories: EraHistoryFacts[]
  problem?: Problem
}

export interface PoolUsageFacts {
  blockBytes: number
  dataUsedBytes: number
  dataTotalBytes: number
  metadataUsedBytes: number
  metadataTotalBytes: number
}

export type AsBase = 'unchanged' | 'never-served' | 'unrecorded' | 'changed' | 'not-trackable' | 'unknown'

export interface ThinFacts {
  handle: string
  kind: 'volume' | 'snapshot' | 'unknown'
  thinId: number
  active: boolean
  sizeBytes: number
  mappedBytes?: number
  asBase: AsBase
  because: string
}

export interface MetadataSnapshotFacts {
  block: number
  whose: 'ours' | 'foreign' | 'unknown'
  ambiguous: boolean
  because: string
  snapshotsSince?: number
  transactionsSince?: string
  users: string[]
}

export interface PoolFacts {
  name: string
  kind: 'lvm' | 'own' | 'plain'
  deviceName: string
  state: 'read-write' | 'out-of-data-space' | 'read-only' | 'failed' | 'unknown' | 'inactive'
  needsCheck: boolean
  metadataDevice: string
  usage?: PoolUsageFacts
  whenFull: string
  discards: string
  transactionId: string
  devices?: number
  unnamedDevices?: number
  thins: ThinFacts[]
  metadataSnapshot?: MetadataSnapshotFacts
  problem?: Problem
}

export interface Examination {
  version: string
  seenBy: 'agent' | 'command'
  takenAtMs: number
  tookMs: number
  live: boolean
  node: NodeFacts
  deviceMapper: DeviceMapperFacts
  blockDevices: { devices: BlockDevice[]; problem?: Problem }
  lvm: LvmFacts
  catalog: CatalogFacts
  recordedPools: { name: string; folder: string }[]
  pools: PoolFacts[]
  trackedVolumes: TrackedVolumeFacts[]
  findings: Finding[]
}

/** What answers. */
export interface InventoryBackend {
  examine(): Promise<Examination>
}

export const inventoryName = 'deltamapper.v1.Inventory'

/** Everything inventory.proto declares, for server reflection. */
export const inventoryPackage: PackageDefinition = loadSync('deltamapper/v1/inventory.proto', {
  includeDirs: [`${import.meta.dirname}/protos`],
  longs: String,
  defaults: true,
  arrays: true
})

const loaded = inventoryPackage[inventoryName] as unknown as Record<string, MethodDefinition<object, object>>

const examine = loaded['Examine']

/** Lists of many thousand snapshots come in one message. */
const maximumMessageBytes = 64 * 1024 * 1024

export class InventoryService {
  static readonly definition: ServiceDefinition = { Examine: examine }

  readonly implementation: {
    Examine: (call: ServerUnaryCall<object, object>, respond: sendUnaryData<object>) => void
  }

  constructor(backend: InventoryBackend, logger: Logger) {
    this.implementation = {
      Examine: (_call, respond) => {
        const begin = performance.now()
        backend.examine().then(
          (examination) => {
            const findings = examination.findings.length
            logger.info({ method: 'Examine', status: 'OK', findings, durationMs: since(begin) }, 'inventory call')
            respond(null, examination)
          },
          (thrown: unknown) => {
            const error = asDeltamapperError(thrown)
            logger.error(
              { method: 'Examine', status: error.status, err: error, durationMs: since(begin) },
              'inventory call'
            )
            respond(toStatus(error), null)
          }
        )
      }
    }
  }
}

/**
 * Asks the agent at an address.
 *
 * @throws the server's error; DM_UNREACHABLE when nothing answers; DM_SERVER_FAILED when it has no such service;
 *   DM_DEADLINE_EXCEEDED; DM_CONFIG_INVALID for what is no address
 */
export async function askInventory(
  address: string,
  { deadlineMs, signal }: { deadlineMs: number; signal?: AbortSignal }
): Promise<Examination> {
  const parsed = parseConnectAddress(address)
  if (parsed.kind !== 'unix') {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `${parsed.text} is no unix socket, and an agent gives its inventory on those only`,
      'name its socket, as in unix:///run/deltamapper/agent.sock'
    )
  }
  const client = new Client(`unix:${parsed.path}`, credentials.createInsecure(), {
    'grpc.max_receive_message_length': maximumMessageBytes,
    'grpc.enable_retries': 0,
    'grpc.use_local_subchannel_pool': 1,
    'grpc.enable_http_proxy': 0,
    'grpc.enable_channelz': 0
  })
  try {
    const answer = await new Promise<object>((resolve, reject) => {
      const call = client.makeUnaryRequest(
        examine.path,
        examine.requestSerialize,
        examine.responseDeserialize,
        {},
        { deadline: Date.now() + deadlineMs },
        (error, response) => {
          if (!error) resolve(response!)
          else if (signal?.aborted) reject(signal.reason as Error)
          else if (error.code === status.UNIMPLEMENTED) reject(noInventory(parsed.text))
          else reject(fromStatus(error, parsed.text))
        }
      )
      const cancel = () => call.cancel()
      signal?.addEventListener('abort', cancel, { once: true })
      if (signal?.aborted) cancel()
    })
    return fromWire(answer) as Examination
  } finally {
    client.close()
  }
}

/** No error of ours has this status: it is another server, or an older agent. */
function noInventory(address: string): DeltamapperError {
  return new DeltamapperError(
    'DM_SERVER_FAILED',
    `${address} gives no inventory`,
    'name the unix socket of a deltamapper agent, and update it if it is older than this command'
  )
}

const counts = [
  ...['block', 'rows', 'snapshotsSince', 'snapshots', 'removed', 'supersets', 'earlierHistories'],
  'heldMetadataSnapshot'
]
const isCount = (key: string) => /(?:Bytes|Ms)$/.test(key) || counts.includes(key)

/**
 * What proto-loader makes of a message, as an object of ours: counts are numbers, and what is not there is left out.
 */
function fromWire(value: unknown, key = ''): unknown {
  if (Array.isArray(value)) return value.map((each) => fromWire(each, key))
  if (typeof value === 'string' && isCount(key)) {
    if (Number.isSafeInteger(Number(value))) return Number(value)
    throw new DeltamapperError(
      'DM_ANSWER_INVALID',
      `the answer has a count of ${value}, beyond 2^53`,
      'update deltamapper'
    )
  }
  if (typeof value !== 'object' || value === null) return value
  const entries = Object.entries(value).filter(([, each]) => each !== null)
  return Object.fromEntries(entries.map(([name, each]) => [name, fromWire(each, name)]))
}

function since(begin: number): number {
  return Math.round((performance.now() - begin) * 100) / 100
}
