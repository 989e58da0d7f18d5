/**
 * Which source answers for the part of a handle before its slash: a recorded pool that was configured, else a pool of the agent's own,
 * else a thin pool that device-mapper has under this name, else the volume group of this name.
 */
import type { DeviceMapper } from '../../native/device-mapper.ts'
import { deviceMapperSource } from './device-mapper-source.ts'
import type { LvmReporter } from './lvm/report.ts'
import { volumeGroupSource } from './lvm/source.ts'
import type { SnapshotSource } from './snapshot-source.ts'

/** What is needed to look at this node's own pools. */
export interface LiveNode {
  deviceMapper: DeviceMapper
  lvm: LvmReporter
  /** The pools that the agent itself has made. */
  ownedPools?: { source(name: string): SnapshotSource | undefined } | undefined
}

export class Sources {
  readonly #recorded: ReadonlyMap<string, SnapshotSource>
  readonly #node: LiveNode | undefined

  /** @param node left out: only recorded pools are served */
  constructor(recorded: ReadonlyMap<string, SnapshotSource>, node?: LiveNode) {
    this.#recorded = recorded
    this.#node = node
  }

  /** The source of this name; undefined when there is none for certain. Whether a volume group exists shows when it is asked. */
  async find(name: string): Promise<SnapshotSource | undefined> {
    const recorded = this.#recorded.get(name)
    if (recorded || !this.#node) return recorded
    const { deviceMapper, lvm, ownedPools } = this.#node
    const owned = ownedPools?.source(name)
    if (owned) return owned
    if (await isThinPool(deviceMapper, name)) return deviceMapperSource(name, deviceMapper)
    return volumeGroupSource(name, { lvm, deviceMapper })
  }

  /** What a person may be told about where to look. */
  get description(): string {
    const recorded = [...this.#recorded.keys()].join(', ')
    if (!this.#node) return recorded === '' ? 'this agent serves nothing' : `this agent serves ${recorded}`
    return `this agent serves the node's thin pools and volume groups${recorded === '' ? '' : ` and ${recorded}`}`
  }
}

async function isThinPool(deviceMapper: DeviceMapper, name: string): Promise<boolean> {
  const info = await deviceMapper.info(name)
  if (!info?.hasLiveTable) return false
  const [row] = await deviceMapper.table({ major: info.major, minor: info.minor })
  return row?.targetType === 'thin-pool'
}
