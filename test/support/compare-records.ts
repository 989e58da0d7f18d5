/**
 * Records of a pool's snapshots, held against what thin_delta says while those are there: the same has to come out once
 * they are removed.
 */
import { rm, writeFile } from 'node:fs/promises'
import { BaseRecordReader } from '../../src/devicemapper/thin/base-record/reader.ts'
import { BaseRecordWriter } from '../../src/devicemapper/thin/base-record/writer.ts'
import { openPoolMetadata, type PoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { WholeRecordSink } from '../../src/devicemapper/thin/record-sinks.ts'
import { collectExtents } from './collect-extents.ts'
import { expectedDelta, mappedEndBytes, type Extent } from './expected.ts'
import { writeMetadataImage } from './metadata-image.ts'
import type { Oracle } from './oracle.ts'
import { Random } from './random.ts'
import type { ModelledPool, TestPool } from './random-pool.ts'
import type { DeltaRun } from './thin-tools.ts'

/** What was expected of a pair while its base was there. */
export interface RecordedPair {
  readonly target: number
  readonly record: BaseRecordReader
  readonly sizeBytes: number
  readonly expected: readonly Extent[]
  readonly question: string
}

/** Records every device that was never written to since it was taken, and asks the oracle what changed since. */
export async function recordedPairs(
  pool: TestPool,
  metadata: PoolMetadata,
  oracle: Oracle,
  random: Random
): Promise<RecordedPair[]> {
  const { blockSizeBytes } = pool
  const mappingsOf = (id: number) => oracle.devices.get(id)?.mappings ?? []
  const endOf = (id: number) => mappedEndBytes(mappingsOf(id), blockSizeBytes)
  const pairs: RecordedPair[] = []
  for (const base of pool.deviceIds) {
    const { creationTime = 0 } = oracle.devices.get(base) ?? {}
    if (mappingsOf(base).some(({ time }) => time >= creationTime)) continue
    const end = endOf(base)
    const baseSizeBytes = random.chance(0.7) ? end : random.integer(0, end)
    const record = await saved(`${pool.path}.${base}.base`, metadata, base, baseSizeBytes)
    for (const target of pool.deviceIds) {
      const sizeBytes = random.chance(0.5) ? Math.max(end, endOf(target)) : endOf(target)
      const runs: readonly DeltaRun[] = base === target ? [] : await oracle.delta(base, target)
      const expected = expectedDelta(runs, mappingsOf(target), { blockSizeBytes, sizeBytes, baseSizeBytes })
      const question = `delta from the record of device ${base} (${baseSizeBytes} bytes) to ${target} (${sizeBytes} bytes)`
      pairs.push({ target, record, sizeBytes, expected, question })
    }
  }
  return pairs
}

/** The same metadata; where it is our own writing, with all other devices removed, and every node somewhere else. */
export async function withoutOthers(pool: TestPool, keep: number): Promise<PoolMetadata> {
  if (!isModelled(pool) || pool.metadataSnapshot) {
    return openPoolMetadata(pool.path, { liveRoot: !pool.metadataSnapshot })
  }
  const { devices } = pool.model
  const all = [...devices]
  try {
    for (const [id] of all) if (id !== keep) devices.delete(id)
    const path = `${pool.path}.gone`
    const image = writeMetadataImage(pool.model, { random: new Random(keep), placement: 'scattered' })
    await writeFile(path, image.bytes)
    const metadata = await openPoolMetadata(path, { liveRoot: true })
    // It stays open.
    await rm(path)
    return metadata
  } finally {
    devices.clear()
    for (const [id, device] of all) devices.set(id, device)
  }
}

export async function deltaOf({ record, target, sizeBytes }: RecordedPair, metadata: PoolMetadata): Promise<Extent[]> {
  return collectExtents(await metadata.deltaFromRecord({ record, deviceId: target, sizeBytes }))
}

function isModelled(pool: TestPool): pool is ModelledPool {
  return 'model' in pool
}

async function saved(path: string, metadata: PoolMetadata, id: number, sizeBytes: number): Promise<BaseRecordReader> {
  const { dataBlockBytes } = metadata.superblock
  const writer = await BaseRecordWriter.begin(path, {
    pool: { identity: undefined, dataBlockBytes, moment: await metadata.moment() },
    device: { id, ...(await metadata.deviceDetails(id)), sizeBytes, identity: undefined, volume: undefined },
    handles: [],
    madeAt: 0
  })
  await collectExtents(await metadata.allocated({ deviceId: id, sizeBytes, sink: new WholeRecordSink(writer) }))
  if (!(await writer.finish())) throw new Error(`the record of device ${id} of ${path} is not whole`)
  const record = await BaseRecordReader.open(path)
  await rm(path)
  return record
}
