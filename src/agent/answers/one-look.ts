/**
 * One look at this node, from which all handles of a question are answered: LVM is asked once, for all groups, and
 * device-mapper once for each device. If they were asked twice, a name could mean two volumes within one answer.
 *
 * A look begins with its first question and is never older than that. To see later changes, take another look. It asks
 * for all groups together, so one LVM report serves all waiting callers, whichever groups they ask about. No caller
 * waits behind another's questions.
 */
import type { DeviceReference, TableRow } from '../../../native/device-mapper.ts'
import type { LogicalVolume } from '../lvm/parse.ts'
import { LvmRefused, type LvmReporter } from '../lvm/report.ts'
import type { DeviceMapperPort } from '../node/pool-device.ts'

export type LvmPort = Pick<LvmReporter, 'logicalVolumes' | 'allLogicalVolumes' | 'snapshotLinks'>

/** LVM at one look. */
export class LvmLook implements LvmPort {
  readonly #lvm: LvmPort
  readonly #client: string | undefined
  #all: Promise<LogicalVolume[]> | undefined
  readonly #groups = new Map<string, Promise<LogicalVolume[] | undefined>>()
  readonly #links = new Map<string, ReturnType<LvmPort['snapshotLinks']>>()

  /** @param client on whose behalf */
  constructor(lvm: LvmPort, client?: string) {
    this.#lvm = lvm
    this.#client = client
  }

  async allLogicalVolumes(): Promise<LogicalVolume[]> {
    return (this.#all ??= this.#lvm.allLogicalVolumes())
  }

  /** Undefined when LVM sees no group of this name with volumes. */
  async logicalVolumes(volumeGroup: string): Promise<LogicalVolume[] | undefined> {
    const known = this.#groups.get(volumeGroup)
    if (known) return known
    const volumes = this.#volumesOf(volumeGroup)
    this.#groups.set(volumeGroup, volumes)
    return volumes
  }

  async snapshotLinks(volumeGroup: string): ReturnType<LvmPort['snapshotLinks']> {
    const known = this.#links.get(volumeGroup)
    if (known) return known
    const links = this.#lvm.snapshotLinks(volumeGroup)
    this.#links.set(volumeGroup, links)
    return links
  }

  async #volumesOf(volumeGroup: string): Promise<LogicalVolume[] | undefined> {
    let all: LogicalVolume[]
    try {
      all = await this.allLogicalVolumes()
    } catch (error) {
      // LVM may have complained about another group.
      if (error instanceof LvmRefused) return this.#lvm.logicalVolumes(volumeGroup, this.#client)
      throw error
    }
    const volumes = all.filter(({ vgName }) => vgName === volumeGroup)
    // For two groups of one name, LVM chooses one, or says that it cannot.
    if (new Set(volumes.map(({ vgUuid }) => vgUuid)).size > 1) {
      return this.#lvm.logicalVolumes(volumeGroup, this.#client)
    }
    return volumes.length > 0 ? volumes : undefined
  }
}

/** Device-mapper at one look. */
export class DeviceMapperLook implements DeviceMapperPort {
  readonly #deviceMapper: DeviceMapperPort
  readonly #infos = new Map<string, ReturnType<DeviceMapperPort['info']>>()
  readonly #tables = new Map<string, Promise<readonly TableRow[]>>()

  constructor(deviceMapper: DeviceMapperPort) {
    this.#deviceMapper = deviceMapper
  }

  async info(device: DeviceReference): ReturnType<DeviceMapperPort['info']> {
    return once(this.#infos, device, () => this.#deviceMapper.info(device))
  }

  /** One that is loaded beside the live one is asked for each time: few want it. */
  async table(device: DeviceReference, options?: { inactive?: boolean }): Promise<readonly TableRow[]> {
    if (options?.inactive) return this.#deviceMapper.table(device, options)
    return once(this.#tables, device, () => this.#deviceMapper.table(device))
  }
}

function once<T>(known: Map<string, Promise<T>>, device: DeviceReference, ask: () => Promise<T>): Promise<T> {
  const key = JSON.stringify(typeof device === 'object' && 'major' in device ? [device.major, device.minor] : device)
  const answer = known.get(key) ?? ask()
  known.set(key, answer)
  return answer
}
