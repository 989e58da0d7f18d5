/**
 * Where the truth about a pool comes from: Debian's tools, or the model that its image was written from (for nodes that the tools refuse).
 */
import { compareMappings } from './expected.ts'
import type { DeviceModel } from './pool-model.ts'
import type { ModelledPool, TestPool } from './random-pool.ts'
import { thinDelta, thinDump } from './thin-tools.ts'
import type { DeltaRun, DumpedDevice, MappingRun } from './thin-tools.ts'

export interface Oracle {
  readonly devices: ReadonlyMap<number, DumpedDevice>
  delta(base: number, target: number): Promise<readonly DeltaRun[]>
}

export async function oracleOf(pool: TestPool): Promise<Oracle> {
  return pool.readableByTools ? toolOracle(pool) : modelOracle(pool as ModelledPool)
}

export async function toolOracle(pool: TestPool): Promise<Oracle> {
  const view = { metadataSnapshot: pool.metadataSnapshot }
  const { devices } = await thinDump(pool.path, view)
  return { devices, delta: (base, target) => thinDelta(pool.path, base, target, view) }
}

export function modelOracle(pool: ModelledPool): Oracle {
  const view = pool.metadataSnapshot ? pool.model.held : pool.model
  const devices = new Map([...(view?.devices ?? [])].map(([id, device]) => [id, dumped(device)] as const))
  const mappings = (id: number) => devices.get(id)?.mappings ?? []
  return { devices, delta: async (base, target) => compareMappings(mappings(base), mappings(target)) }
}

function dumped(device: DeviceModel): DumpedDevice {
  const mappings: MappingRun[] = []
  for (const [key, { block, time }] of device.tree.entries()) {
    const last = mappings.at(-1)
    const continues =
      last !== undefined &&
      last.begin + last.length === key &&
      last.dataBegin + last.length === block &&
      last.time === time
    if (continues) mappings[mappings.length - 1] = { ...last, length: last.length + 1 }
    else mappings.push({ begin: key, dataBegin: block, length: 1, time })
  }
  const { mappedBlocks, transactionId, creationTime, snapshottedTime } = device
  return { mappedBlocks, transactionId, creationTime, snapshottedTime, mappings }
}
