/**
 * Finds the source that answers for the first part of a handle. In this order: a configured recorded pool, an owned
 * pool, a tracked volume, a device-mapper thin pool of this name, the volume group of this name. For `*` it is the
 * recorded pool or volume group that has the snapshot, if only one does.
 */
import { deviceMapperSource } from './plain-pool.ts'
import { DeltamapperError } from '../../errors.ts'
import { eraSource, type HistoryCatalog } from './tracked-volume.ts'
import { ANY_SOURCE } from '../../handle.ts'
import { isLvmUuid, lvmDeviceSource } from './lvm-device.ts'
import { volumeGroupSource } from './volume-group.ts'
import { isOwnPoolUuid, poolNameOf } from '../node/naming.ts'
import { classicSource } from './classic-snapshot.ts'
import { DeviceMapperLook, LvmLook, type LvmPort } from './one-look.ts'
import { type DeviceMapperPort, liveTable } from '../node/pool-device.ts'
import type { FoundSnapshot, SnapshotSource } from '../walks/snapshot.ts'

/** What looking at this node's own pools takes. */
export interface LiveNode {
  deviceMapper: DeviceMapperPort
  lvm: LvmPort
  /** The owned pools. */
  ownedPools?: { source(name: string): SnapshotSource | undefined } | undefined
  /** The history of tracked volumes. */
  history?: HistoryCatalog | undefined
}

export class Sources {
  readonly #recorded: ReadonlyMap<string, SnapshotSource>
  readonly #node: LiveNode | undefined

  /** @param node left out: only recorded pools are served */
  constructor(recorded: ReadonlyMap<string, SnapshotSource>, node?: LiveNode) {
    this.#recorded = recorded
    this.#node = node
  }

  /** The same sources at one look, which begins with its first question (one-look.ts). @param client on whose behalf */
  look(client?: string): Sources {
    if (!this.#node) return this
    const { lvm, deviceMapper, ...rest } = this.#node
    return new Sources(this.#recorded, {
      ...rest,
      lvm: new LvmLook(lvm, client),
      deviceMapper: new DeviceMapperLook(deviceMapper)
    })
  }

  /**
   * The source of this name; undefined if there certainly is none. (Whether a volume group exists shows only when it is
   * asked.)
   *
   * @throws DM_NOT_TRACKED for the device of an owned pool, which has another name in handles
   */
  async find(name: string): Promise<SnapshotSource<FoundSnapshot> | undefined> {
    if (name === ANY_SOURCE) return { snapshot: (snapshot) => this.#wherever(snapshot) }
    const recorded = this.#recorded.get(name)
    if (recorded || !this.#node) return recorded
    const { deviceMapper, lvm, ownedPools, history } = this.#node
    const owned = ownedPools?.source(name) ?? (history && (await eraSource(name, history)))
    if (owned) return owned
    const poolUuid = await thinPoolUuidOf(deviceMapper, name)
    if (poolUuid !== undefined) {
      if (isLvmUuid(poolUuid)) return lvmDeviceSource({ name, uuid: poolUuid }, { lvm, deviceMapper })
      if (isOwnPoolUuid(poolUuid)) throw ownPool(name, poolNameOf(poolUuid))
      return deviceMapperSource(name, deviceMapper)
    }
    return groupSource(name, { lvm, deviceMapper })
  }

  /** @throws DM_HANDLE_AMBIGUOUS, DM_LVM_FAILED, and what the source throws that has it */
  async #wherever(name: string): Promise<FoundSnapshot | undefined> {
    const found: { source: string; snapshot: () => Promise<FoundSnapshot | undefined> }[] = []
    for (const [source, recorded] of this.#recorded) {
      if (await recorded.snapshot(name)) found.push({ source, snapshot: () => recorded.snapshot(name) })
    }
    if (this.#node) {
      const { lvm, deviceMapper } = this.#node
      for (const volume of await lvm.allLogicalVolumes()) {
        if (volume.name !== name || volume.hidden) continue
        const group = groupSource(volume.vgName, { lvm, deviceMapper })
        found.push({ source: volume.vgName, snapshot: () => group.snapshot(name) })
      }
    }
    const [only, another] = found
    if (another === undefined) return only?.snapshot()
    throw new DeltamapperError(
      'DM_HANDLE_AMBIGUOUS',
      `${found.map(({ source }) => source).join(' and ')} each have a volume ${name}`,
      'rename one of them, or ask for it by the name of its volume group',
      { forOthers: { message: `${found.length} volume groups each have a volume ${name}` } }
    )
  }

  /** Tells a person what the sources are. */
  get description(): string {
    const recorded = [...this.#recorded.keys()].join(', ')
    if (!this.#node) return recorded === '' ? 'this agent serves nothing' : `this agent serves ${recorded}`
    return `this agent serves the node's thin pools, tracked volumes and volume groups${recorded === '' ? '' : ` and ${recorded}`}`
  }
}

/** A group has snapshots of two kinds: classic ones, which have a store of their own, and those in thin pools. */
function groupSource(volumeGroup: string, node: Pick<LiveNode, 'lvm' | 'deviceMapper'>): SnapshotSource<FoundSnapshot> {
  const [classic, thin] = [classicSource(volumeGroup, node), volumeGroupSource(volumeGroup, node)]
  return { snapshot: async (name) => (await classic.snapshot(name)) ?? (await thin.snapshot(name)) }
}

/** The device-mapper UUID of the active thin pool of this name, which may be empty; undefined when there is none. */
async function thinPoolUuidOf(deviceMapper: DeviceMapperPort, name: string): Promise<string | undefined> {
  const info = await deviceMapper.info(name)
  if (!info?.hasLiveTable) return undefined
  const [row] = await liveTable(deviceMapper, info)
  return row?.targetType === 'thin-pool' ? info.uuid : undefined
}

/** Records of its snapshots are under their names in the catalog. */
function ownPool(device: string, pool: string): DeltamapperError {
  return new DeltamapperError(
    'DM_NOT_TRACKED',
    `${device} is the device of pool ${pool}, which this or another agent has made`,
    `ask for its snapshots as ${pool}/NAME, of the agent that has it`
  )
}
