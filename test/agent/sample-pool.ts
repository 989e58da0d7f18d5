/**
 * Recorded pools for the agent's tests: written from a model, so that what the answers must be is known without the agent.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import type { Snapshot } from '../../src/agent/walks/snapshot.ts'
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { BlockMetadataMessage, decodeBlockMetadata } from '../../src/grpc/block-metadata.ts'
import { collectExtents } from '../support/collect-extents.ts'
import { writeMetadataImage } from '../support/metadata-image.ts'
import { PoolModel } from '../support/pool-model.ts'
import { Random } from '../support/random.ts'

export type Extent = readonly [offset: number, size: number]

export const KIB_64 = 65536

/** A snapshot as `pool.json` lists it. */
export interface ListedSnapshot {
  name: string
  volume: string
  thin_id: number
  size_bytes: number
}

/** Four snapshots of `data`, which grows, shrinks and ends within a block, one of `other`, and one that was removed. */
const sampleSnapshots: ListedSnapshot[] = [
  { name: 'mon', volume: 'data', thin_id: 2, size_bytes: 300 * KIB_64 },
  { name: 'tue', volume: 'data', thin_id: 3, size_bytes: 250 * KIB_64 + 512 },
  { name: 'wed', volume: 'data', thin_id: 4, size_bytes: 400 * KIB_64 + 4096 },
  { name: 'thu', volume: 'data', thin_id: 5, size_bytes: 400 * KIB_64 + 4096 },
  { name: 'gone', volume: 'data', thin_id: 6, size_bytes: 400 * KIB_64 + 4096 },
  { name: 'other-mon', volume: 'other', thin_id: 21, size_bytes: 50 * KIB_64 }
]

export class SamplePool {
  readonly folder: string
  readonly snapshots: readonly ListedSnapshot[]

  constructor(folder: string, snapshots: readonly ListedSnapshot[]) {
    this.folder = folder
    this.snapshots = snapshots
  }

  get metadataPath(): string {
    return join(this.folder, 'metadata.img')
  }

  listed(name: string): ListedSnapshot {
    const listed = this.snapshots.find((each) => each.name === name)
    if (listed === undefined) throw new RangeError(`the sample pool has no snapshot ${name}`)
    return listed
  }

  /** As a source would hand it out. */
  snapshot(name: string): Snapshot {
    const { volume, thin_id, size_bytes } = this.listed(name)
    return {
      kind: 'thin',
      handle: `sample/${name}`,
      volume: `sample/${volume}`,
      thinId: thin_id,
      sizeBytes: size_bytes,
      metadataPath: this.metadataPath
    }
  }

  /** What the metadata itself says, asked directly. */
  async extents(baseName: string | undefined, targetName: string, startingOffset = 0): Promise<Extent[]> {
    const metadata = await openPoolMetadata(this.metadataPath)
    try {
      const target = this.listed(targetName)
      const question = { sizeBytes: target.size_bytes, startingOffset }
      if (baseName === undefined) {
        return await collectExtents(await metadata.allocated({ deviceId: target.thin_id, ...question }))
      }
      const base = this.listed(baseName)
      const ids = { baseId: base.thin_id, targetId: target.thin_id }
      return await collectExtents(await metadata.delta({ ...ids, baseSizeBytes: base.size_bytes, ...question }))
    } finally {
      await metadata.close()
    }
  }
}

/** A small pool with hundreds of extents in trees of several levels. */
export async function writeSamplePool(folder: string): Promise<SamplePool> {
  const random = new Random(11)
  const model = new PoolModel({ random, shape: { leafEntries: 6, internalEntries: 6, split: 'middle' } })
  const scatter = (blocks: number, writes: number) => {
    for (let i = 0; i < writes; i++) model.write(1, random.integer(0, blocks - 1))
  }
  model.createThin(1)
  scatter(300, 150)
  model.createSnapshot(2, 1)
  for (let block = 250; block < 300; block++) model.discard(1, block)
  scatter(250, 20)
  model.createSnapshot(3, 1)
  scatter(400, 60)
  model.write(1, 400)
  model.createSnapshot(4, 1)
  scatter(400, 10)
  for (let i = 0; i < 10; i++) model.discard(1, random.integer(0, 399))
  model.createSnapshot(5, 1)
  model.createSnapshot(6, 1)
  model.delete(6)
  model.createThin(20)
  for (let block = 0; block < 30; block += 3) model.write(20, block)
  model.createSnapshot(21, 20)
  return writePool(folder, model, sampleSnapshots)
}

/** A pool whose one snapshot, `big`, has so many extents of one block each. */
export async function writeBigPool(folder: string, extents: number): Promise<SamplePool> {
  const random = new Random(12)
  const model = new PoolModel({ random, shape: { leafEntries: 252, internalEntries: 252, split: 'middle' } })
  model.createThin(1)
  model.load(
    1,
    Array.from({ length: extents }, (_, index) => [2 * index, { block: index, time: 0 }]),
    () => 126
  )
  model.createSnapshot(2, 1)
  return writePool(folder, model, [{ name: 'big', volume: 'data', thin_id: 2, size_bytes: 2 * extents * KIB_64 }])
}

async function writePool(folder: string, model: PoolModel, snapshots: ListedSnapshot[]): Promise<SamplePool> {
  await mkdir(folder, { recursive: true })
  const pool = new SamplePool(folder, snapshots)
  await writeFile(pool.metadataPath, writeMetadataImage(model, { random: new Random(13) }).bytes)
  const volumes = [...new Set(snapshots.map(({ volume }) => volume))].map((name) => ({ name }))
  const description = { format: 1, data_block_size_bytes: model.blockSizeBytes, volumes, snapshots }
  await writeFile(join(folder, 'pool.json'), JSON.stringify(description))
  return pool
}

/** What a message holds, with its capacity. */
export function decode(bytes: Uint8Array): { capacityBytes: number; extents: Extent[] } {
  const message = new BlockMetadataMessage()
  decodeBlockMetadata(bytes, message)
  const { capacityBytes, count, offsets, sizes } = message
  return { capacityBytes, extents: Array.from({ length: count }, (_, i) => [offsets[i], sizes[i]]) }
}
