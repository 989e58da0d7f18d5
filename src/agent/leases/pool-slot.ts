/**
 * A pool's metadata-snapshot slot: its key in the catalog, its content, and whether the pool may take one.
 *
 * While it is held, a metadata snapshot shares the metadata's nodes. So the first write to each node since then needs a
 * new block: metadata grows with every write, up to twice its size. And discarded blocks stay allocated. Therefore it
 * is not taken if that could fill the pool.
 */
import type { DeviceInfo, DeviceNumber, DeviceReference } from '../../../native/device-mapper.ts'
import type { OpenMedium } from '../../devicemapper/metadata-medium.ts'
import { openPoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import type { PoolNumbers, PoolStatus } from '../../devicemapper/thin/status.ts'
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { defect, DeltamapperError } from '../../errors.ts'
import { type HeldSlot, poolFacts } from '../catalog/lease.ts'

/** How much metadata must be free: the lesser of the two, so that neither small nor huge pools need too much. */
export interface Headroom {
  /** Percent of the pool's metadata blocks; 0 to 100. */
  readonly percent: number
  /** Metadata blocks of 4 KiB. */
  readonly blocks: number
}

/** The content of a slot, with its superblock. */
export interface PoolSlot extends HeldSlot {
  /** The live pool's. */
  readonly live: ThinSuperblock
  /** The copy that the metadata snapshot is; undefined when none is held. */
  readonly held: ThinSuperblock | undefined
}

/**
 * The key of a pool in lease records: its UUID, which lasts as long as the pool, or else its device number, which
 * changes with every activation.
 */
export function poolKey({ name, uuid }: Pick<DeviceInfo, 'name' | 'uuid'>): string {
  return uuid === '' ? `dm-name:${name}` : `dm-uuid:${uuid}`
}

/** The device of a key. */
export function keyedPool(key: string): DeviceReference {
  const [, kind, value] = /^dm-(name|uuid):(.+)$/s.exec(key) ?? []
  if (value === undefined) {
    throw defect(`${JSON.stringify(key)} names no pool`)
  }
  return kind === 'uuid' ? { uuid: value } : value
}

/**
 * Reads the content of a pool's slot from its metadata device. Reservations and releases are on it as soon as the
 * kernel has answered.
 *
 * @param device the device that the path must lead to
 * @param open what opens it; by default, files and devices of this machine
 * @throws what opening metadata throws
 */
export async function readSlot(metadataPath: string, device?: DeviceNumber, open?: OpenMedium): Promise<PoolSlot> {
  const newest = await openPoolMetadata(metadataPath, { liveRoot: true, device, open })
  await newest.close()
  const { superblock: live, heldRoot } = newest
  if (heldRoot === 0) return { heldRoot, facts: undefined, live, held: undefined }
  const copy = await openPoolMetadata(metadataPath, { device, open })
  await copy.close()
  // It was released, perhaps also taken again, between the two looks: the caller looks again.
  if (copy.heldRoot !== heldRoot) return { heldRoot: copy.heldRoot, facts: undefined, live, held: undefined }
  return { heldRoot, facts: poolFacts(copy.superblock), live, held: copy.superblock }
}

/** Metadata blocks that must be free. */
export function wantedBlocks(
  { totalMetadataBlocks }: Pick<PoolNumbers, 'totalMetadataBlocks'>,
  { percent, blocks }: Headroom
): number {
  return Math.min(Math.ceil((totalMetadataBlocks * percent) / 100), blocks)
}

/**
 * Checks that a pool may hold a metadata snapshot.
 *
 * @param what the pool's name in messages
 * @throws DM_LEASE_REFUSED
 */
export function checkHolds(what: string, status: PoolStatus, headroom: Headroom): asserts status is PoolNumbers {
  const refuse = (why: string, remedy: string): never => {
    throw new DeltamapperError('DM_LEASE_REFUSED', `no metadata snapshot is taken of ${what}: ${why}`, remedy)
  }
  const repair = 'find out why in the kernel log; `thin_check` and `thin_repair` are for its metadata'
  if (status.state === 'failed') return refuse('the pool has failed', repair)
  if (status.state === 'unknown') return refuse('the kernel could not tell its state', 'look into the kernel log')
  if (status.needsCheck === true) return refuse('its metadata needs to be checked', repair)
  if (status.mode === 'read-only') {
    return refuse('the pool is read-only, so that its metadata cannot take one', `extend its metadata, or ${repair}`)
  }
  if (status.mode === 'out-of-data-space') {
    return refuse('the pool is out of data space, and would get none back from discards', 'extend its data device')
  }
  const { usedMetadataBlocks, totalMetadataBlocks } = status
  const free = totalMetadataBlocks - usedMetadataBlocks
  const wanted = wantedBlocks(status, headroom)
  if (free >= wanted) return
  refuse(
    `${free} of its ${totalMetadataBlocks} metadata blocks are free, and ${wanted} should be, because it makes metadata grow`,
    'extend its metadata (LVM: lvextend --poolmetadatasize), or lower `lease` in the configuration'
  )
}
