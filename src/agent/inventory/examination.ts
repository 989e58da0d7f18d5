/**
 * What an examination of a node finds out: facts part by part, and the findings that follow from them. Sizes are in
 * bytes, times in milliseconds since 1970. What could not be found out is left out, and the part's `problem` says why.
 *
 * deltamapper.v1.Inventory has the same fields (grpc/protos/deltamapper/v1/inventory.proto says what each means); the
 * compiler holds the two together where the agent hands an examination to its server.
 */

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
  /** Of one that is unchanged: what it takes for the next delta. With its record, it may go; otherwise it must stay. */
  needed?: 'record' | 'itself'
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

export interface RecordedPoolFacts {
  name: string
  folder: string
  /** Their names, without the pool's. */
  snapshots: string[]
}

/** Everything that was found out about a node. */
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
  recordedPools: RecordedPoolFacts[]
  pools: PoolFacts[]
  trackedVolumes: TrackedVolumeFacts[]
  findings: Finding[]
}
