/**
 * deltamapper.v1.Admin: the pools that an agent makes and drives itself, and the volumes that it has dm-era track.
 * Unary calls between plain objects; what they mean stands in protos/deltamapper/v1/admin.proto.
 *
 * 64-bit fields cross as strings and become what they are counted in: byte counts and times are numbers, refused beyond
 * 2^53; transaction ids are bigints. Who calls is decided by who may open the socket, so the service is on unix sockets
 * only.
 */
import type { MethodDefinition, sendUnaryData, ServerUnaryCall, ServiceDefinition } from '@grpc/grpc-js'
import { loadSync, type PackageDefinition } from '@grpc/proto-loader'
import type { Logger } from 'pino'
import { asDeltamapperError, DeltamapperError } from '../errors.ts'
import { toStatus } from './status.ts'

export type PoolState =
  'inactive' | 'read-write' | 'out-of-data-space' | 'read-only' | 'failed' | 'unknown' | 'unspecified'
export type WhenFull = 'error' | 'queue' | 'unspecified'
export type VolumeKind = 'volume' | 'snapshot' | 'unspecified'

export interface Pool {
  name: string
  deviceName: string
  metadataDevice: string
  dataDevice: string
  blockBytes: number
  lowWaterBytes: number
  whenFull: WhenFull
  state: PoolState
  problem: string
  transactionId: bigint
  /** Left out where the state is not known. */
  usage?: PoolUsage
  volumes: number
  snapshots: number
  underWay: string
  createdAtMs: number
}

export interface PoolUsage {
  dataUsedBytes: number
  dataTotalBytes: number
  metadataUsedBytes: number
  metadataTotalBytes: number
  transactionId: bigint
  /** Metadata block. */
  heldMetadataSnapshot?: number
  needsCheck: boolean
}

export interface Volume {
  pool: string
  name: string
  kind: VolumeKind
  id: string
  thinId: number
  sizeBytes: number
  volume: string
  volumeId: string
  origin: string
  creationTime: number
  transactionId: bigint
  createdAtMs: number
  /** Left out while it is not active. */
  device?: { path: string; readOnly: boolean; openCount: number }
  mappedBytes?: number
}

export interface ReconcileFinding {
  kind: string
  pool: string
  thinId?: number
  what: string
  remedy: string
}

/** A volume whose writes dm-era tracks. */
export interface EraVolume {
  name: string
  deviceName: string
  dataDevice: string
  metadataDevice: string
  blockBytes: number
  sizeBytes: number
  active: boolean
  suspended: boolean
  /** What is wrong with it; empty where nothing is known to be. */
  problem: string
  /** Left out where the kernel cannot be asked. */
  usage?: EraUsage
  /** Of the data device; left out while the volume is not active. More than `sizeBytes`: the volume can grow. */
  dataBytes?: number
  line: string
  lineBecause: string
  guardCheckedAtMs: number
  snapshots: number
  underWay: string
  createdAtMs: number
}

export interface EraUsage {
  currentEra: number
  metadataUsedBytes: number
  metadataTotalBytes: number
  /** Metadata block. */
  heldMetadataSnapshot?: number
  openCount: number
}

/** A snapshot of a tracked volume. */
export interface EraSnapshot {
  volume: string
  name: string
  id: string
  line: string
  /** The first era after it. */
  boundaryEra: number
  sizeBytes: number
  /** What was taken below, in words. */
  lower: string
  /** Whether what was written since the one before is known exactly, or may be more. */
  exact: boolean
  suspendedMs: number
  takenAtMs: number
  /** Left out while it has not been deleted. */
  removedAtMs?: number
  /** What whoever takes it should know; empty for nothing. */
  warning: string
}

/** A request and its response, method by method. */
export interface AdminCalls extends PoolCalls, EraCalls {}

/** What is about volumes that dm-era tracks. */
export interface EraCalls {
  attachEra: [
    {
      name: string
      dataDevice: string
      metadataDevice: string
      blockBytes: number
      snapshotSize: string
      allowLossyKernel: boolean
    },
    EraVolume
  ]
  detachEra: [{ volume: string }, object]
  activateEra: [{ volume: string; startOver: boolean }, EraVolume]
  deactivateEra: [{ volume: string; atShutdown: boolean }, EraVolume]
  growEra: [{ volume: string }, EraVolume]
  listEra: [{ volume: string }, { volumes: EraVolume[] }]
  createEraSnapshot: [{ volume: string; name: string; deadlineMs: number }, EraSnapshot]
  beginSnapshot: [
    { volume: string; name: string; deadlineMs: number },
    { token: string; boundaryEra: number; deadlineMs: number }
  ]
  endSnapshot: [{ token: string; reference: string; abandon: boolean }, { snapshot?: EraSnapshot }]
  listEraSnapshots: [{ volume: string }, { snapshots: EraSnapshot[] }]
}

/** What is about pools of the agent's own. */
export interface PoolCalls {
  createPool: [
    {
      name: string
      metadataDevice: string
      dataDevice: string
      blockBytes: number
      lowWaterBytes?: number
      whenFull: WhenFull
    },
    Pool
  ]
  activatePool: [{ pool: string; withVolumes: boolean }, Pool]
  deactivatePool: [{ pool: string; withVolumes: boolean }, Pool]
  growPool: [{ pool: string }, Pool]
  removePool: [{ pool: string; wipe: boolean }, object]
  getPool: [{ pool: string }, Pool]
  listPools: [object, { pools: Pool[] }]
  createVolume: [{ pool: string; name: string; sizeBytes: number; inactive: boolean }, Volume]
  growVolume: [{ pool: string; name: string; sizeBytes: number }, Volume]
  activateVolume: [{ pool: string; name: string; writable: boolean }, Volume]
  deactivateVolume: [{ pool: string; name: string }, Volume]
  deleteVolume: [{ pool: string; name: string }, object]
  listVolumes: [{ pool: string }, { volumes: Volume[] }]
  createSnapshot: [{ pool: string; origin: string; name: string }, Volume]
  deleteSnapshot: [{ pool: string; name: string }, object]
  listSnapshots: [{ pool: string }, { snapshots: Volume[] }]
  reconcile: [{ pool: string }, { settled: string[]; findings: ReconcileFinding[] }]
  acceptKernel: [{ pool: string }, Pool]
  adoptThin: [{ pool: string; thinId: number; name: string; sizeBytes: number; origin: string }, Volume]
  forgetThin: [{ pool: string; name: string; unseen: boolean }, object]
}

export type AdminMethod = keyof AdminCalls

type Answering<Calls extends { [M in keyof Calls]: [unknown, unknown] }> = {
  [M in keyof Calls]: (request: Calls[M][0]) => Promise<Calls[M][1]>
}

/**
 * What answers. Fields come as they stand on the wire: left out, a text is empty and a flag is false; a count that is
 * not below 2^53 is NaN. Methods throw DeltamapperErrors, and carry through what they have begun.
 */
export type AdminBackend = PoolBackend & EraBackend
export type PoolBackend = Answering<PoolCalls>
export type EraBackend = Answering<EraCalls>

export const adminName = 'deltamapper.v1.Admin'

/** Everything admin.proto declares, for server reflection. */
export const adminPackage: PackageDefinition = loadSync('deltamapper/v1/admin.proto', {
  includeDirs: [`${import.meta.dirname}/protos`],
  longs: String,
  enums: String,
  defaults: true,
  arrays: true
})

type Loaded = Record<string, MethodDefinition<object, object>>
const loaded = adminPackage[adminName] as unknown as Loaded

/** `createPool` for `CreatePool`. */
export const adminMethods: readonly AdminMethod[] = Object.keys(loaded).map(
  (name) => `${name[0].toLowerCase()}${name.slice(1)}` as AdminMethod
)

/** The methods with our objects in place of protobuf's. */
export const adminService: ServiceDefinition = Object.fromEntries(
  Object.entries(loaded).map(([name, method]) => [
    name,
    {
      ...method,
      requestSerialize: (request: object) => method.requestSerialize(toWire(request) as object),
      // What no number holds exactly must be refused with words, and only the backend has a say in that: it is none,
      // for now.
      requestDeserialize: (bytes: Buffer) => fromWire(method.requestDeserialize(bytes), () => NaN) as object,
      responseSerialize: (response: object) => method.responseSerialize(toWire(response) as object),
      responseDeserialize: (bytes: Buffer) => fromWire(method.responseDeserialize(bytes), refuseCount) as object
    }
  ])
)

/** The definition of a method. */
export function adminMethod<M extends AdminMethod>(name: M): MethodDefinition<AdminCalls[M][0], AdminCalls[M][1]> {
  const definition: unknown = adminService[`${name[0].toUpperCase()}${name.slice(1)}`]
  return definition as MethodDefinition<AdminCalls[M][0], AdminCalls[M][1]>
}

export class AdminService {
  static readonly definition = adminService

  readonly implementation: Record<
    string,
    (call: ServerUnaryCall<object, object>, respond: sendUnaryData<object>) => void
  >
  readonly #logger: Logger
  readonly #running = new Set<Promise<void>>()
  #stopping = false

  constructor(backend: AdminBackend, logger: Logger) {
    this.#logger = logger
    this.implementation = Object.fromEntries(
      adminMethods.map((name) => [
        name,
        ({ request }: ServerUnaryCall<object, object>, respond: sendUnaryData<object>) => {
          const run = this.#run(name, request, () => backend[name](request as never)).then((result) => {
            if (result instanceof DeltamapperError) respond(toStatus(result), null)
            else respond(null, result)
          })
          this.#running.add(run)
          void run.finally(() => this.#running.delete(run))
        }
      ])
    )
  }

  /**
   * Refuses new calls from now on. Resolves when those under way have ended, or after `graceMs`; nothing can end them
   * early.
   */
  async drain(graceMs: number): Promise<void> {
    this.#stopping = true
    if (this.#running.size === 0) return
    let timer: NodeJS.Timeout | undefined
    const patience = new Promise<void>((resolve) => (timer = setTimeout(resolve, graceMs)))
    await Promise.race([Promise.all(this.#running), patience])
    clearTimeout(timer)
  }

  /** One call with its log line. Never rejects. */
  async #run(method: AdminMethod, request: object, call: () => Promise<object>): Promise<object> {
    const begin = performance.now()
    let result: object
    try {
      if (this.#stopping) {
        throw new DeltamapperError('DM_SHUTTING_DOWN', 'the agent is stopping', 'call again once it is back')
      }
      result = await call()
    } catch (error) {
      result = asDeltamapperError(error)
    }
    const failure = result instanceof DeltamapperError ? result : undefined
    const fields = {
      method,
      request: toWire(request),
      status: failure?.status ?? 'OK',
      ...(failure && { code: failure.code, reason: failure.line }),
      durationMs: Math.round((performance.now() - begin) * 100) / 100
    }
    if (failure?.status === 'INTERNAL') this.#logger.error({ ...fields, err: failure.cause ?? failure }, 'admin call')
    else this.#logger.info(fields, 'admin call')
    return result
  }
}

const enumerations: Record<string, string> = { state: 'POOL_STATE', whenFull: 'WHEN_FULL', kind: 'VOLUME_KIND' }
const isCount = (key: string) => /(?:Bytes|Ms)$/.test(key) || key === 'heldMetadataSnapshot'

/** An object of ours as proto-loader takes it. */
function toWire(value: unknown, key = ''): unknown {
  if (Array.isArray(value)) return value.map((each) => toWire(each, key))
  if (typeof value === 'bigint') return String(value)
  if (typeof value === 'number' && isCount(key)) return String(value)
  if (typeof value === 'string' && Object.hasOwn(enumerations, key)) {
    const wire = `${enumerations[key]}_${value.toUpperCase().replaceAll('-', '_')}`
    return isEnumValue(wire) ? wire : value
  }
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, toWire(each, name)]))
}

/**
 * What proto-loader makes of a message, as an object of ours.
 *
 * @param beyond what to make of a count that is not below 2^53
 */
function fromWire(value: unknown, beyond: (digits: string) => number, key = ''): unknown {
  if (Array.isArray(value)) return value.map((each) => fromWire(each, beyond, key))
  if (typeof value === 'string') {
    if (key === 'transactionId') return BigInt(value)
    if (isCount(key)) return Number.isSafeInteger(Number(value)) ? Number(value) : beyond(value)
    const prefix = Object.hasOwn(enumerations, key) ? `${enumerations[key]}_` : undefined
    if (prefix !== undefined && value.startsWith(prefix)) {
      return value.slice(prefix.length).toLowerCase().replaceAll('_', '-')
    }
    return value
  }
  if (typeof value !== 'object' || value === null) return value
  const entries = Object.entries(value).filter(([, each]) => each !== null)
  return Object.fromEntries(entries.map(([name, each]) => [name, fromWire(each, beyond, name)]))
}

function refuseCount(digits: string): never {
  throw new DeltamapperError(
    'DM_ANSWER_INVALID',
    `the answer has a count of ${digits}, beyond 2^53`,
    'update deltamapper'
  )
}

const enumValues: ReadonlySet<string> = new Set(
  ['PoolState', 'WhenFull', 'VolumeKind'].flatMap((name) => {
    const { type } = adminPackage[`deltamapper.v1.${name}`] as unknown as { type: { value: { name: string }[] } }
    return type.value.map((each) => each.name)
  })
)

function isEnumValue(text: string): boolean {
  return enumValues.has(text)
}
