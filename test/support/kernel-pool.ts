/** Pools that a real kernel made, as pools to ask questions about: the one that is held in a metadata snapshot, and the live one. */
import { makeKernelPools } from '../lab/kernel-pools.ts'
import type { KernelThin } from '../kernel/random-pool.ts'
import type { TestPool } from './random-pool.ts'

/** Pools of the seeds `seed`, `seed + 1`, …: one or, where a metadata snapshot is held, two for each. Throws LabUnavailable. */
export async function kernelPools(seed: number, count: number): Promise<TestPool[][]> {
  const pools = await makeKernelPools({ seed, count })
  return pools.map(({ metadata, history }) => {
    const poolOf = (devices: readonly KernelThin[], metadataSnapshot: boolean): TestPool => ({
      name: `kernel-made pool, seed ${history.seed} (${metadataSnapshot ? 'metadata snapshot' : 'live'})`,
      path: metadata,
      metadataSnapshot,
      blockSizeBytes: history.data_block_size_bytes,
      deviceIds: devices.map(({ thin_id }) => thin_id),
      sizes: new Map(devices.map(({ thin_id, size_bytes }) => [thin_id, size_bytes])),
      readableByTools: true
    })
    const live = poolOf(history.live_devices, false)
    return history.metadata_snapshot ? [poolOf(history.devices, true), live] : [live]
  })
}
