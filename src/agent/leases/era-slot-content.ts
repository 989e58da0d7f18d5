/**
 * What is in an era device's slot for a metadata snapshot, as its metadata device shows it; and how its lease is called on record.
 */
import type { DeviceNumber } from '../../../native/device.ts'
import { openEraMetadata } from '../../devicemapper/era/era-metadata.ts'
import type { EraSuperblock } from '../../devicemapper/era/superblock.ts'
import type { HeldSlot } from '../catalog/lease.ts'
import { eraUuid } from '../node/era-devices.ts'

/** How a tracked volume's slot is called in lease records. @param volume with the id that the catalog has */
export function slotKey(volume: { readonly id: string }): string {
  return `dm-uuid:${eraUuid(volume)}`
}

/** Whether a lease record is of an era volume's slot. */
export function isEraSlot(key: string): boolean {
  return key.startsWith(slotKey({ id: 'era:' }))
}

/** Reads what is in an era device's slot from its metadata device. @throws what opening metadata throws */
export async function readEraSlot(metadataPath: string, device?: DeviceNumber): Promise<HeldSlot> {
  const metadata = await openEraMetadata(metadataPath, { device })
  await metadata.close()
  const heldRoot = metadata.live.metadataSnapshot
  return { heldRoot, facts: heldRoot === 0 ? undefined : eraFacts(metadata.superblock) }
}

/** What identifies a state of an era device's metadata, as text that is compared and never taken apart. */
export function eraFacts({ currentEra, writesetTreeRoot, eraArrayRoot, blocks }: EraSuperblock): string {
  return `era ${currentEra} writesets ${writesetTreeRoot} array ${eraArrayRoot} blocks ${blocks}`
}
