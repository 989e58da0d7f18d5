/**
 * What metrics tell of tracked volumes: whether writes wait, how full their metadata is, and whether the next backup
 * has to be a full one.
 */
import type { EraVolumes } from './era-volumes.ts'

export interface TrackedState {
  readonly name: string
  readonly active: boolean
  /** Whoever writes to it waits. */
  readonly suspended: boolean
  /** The volume's list says that something is wrong with it. */
  readonly hasProblem: boolean
  /** Its newest snapshot is of an earlier history: what was written since is not known. */
  readonly historyLost: boolean
  /** Bytes; undefined where the kernel cannot be asked. */
  readonly metadata: { readonly bytes: number; readonly usedBytes: number } | undefined
}

/** Every tracked volume, by name. @throws what the catalog throws */
export async function lookAtTracked(
  volumes: Pick<EraVolumes, 'listEra' | 'listEraSnapshots'>
): Promise<TrackedState[]> {
  const listed = await volumes.listEra({ volume: '' })
  const { snapshots } = await volumes.listEraSnapshots({ volume: '' })
  const states = listed.volumes.map(({ name, active, suspended, problem, line, usage }) => {
    const newest = snapshots
      .filter(({ volume }) => volume === name)
      .reduce<(typeof snapshots)[number] | undefined>(
        (last, each) => (last === undefined || each.takenAtMs >= last.takenAtMs ? each : last),
        undefined
      )
    return {
      ...{ name, active, suspended, hasProblem: problem !== '' },
      historyLost: newest !== undefined && newest.line !== line,
      metadata: usage && { bytes: usage.metadataTotalBytes, usedBytes: usage.metadataUsedBytes }
    }
  })
  return states.sort((one, other) => (one.name < other.name ? -1 : 1))
}
