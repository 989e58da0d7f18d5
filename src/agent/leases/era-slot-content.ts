/**
 * The content of an era device's metadata-snapshot slot, read from its metadata device; and the key of its lease in the
 * catalog.
 */
import type { DeviceNumber } from '../../../native/device.ts'
import { openEraMetadata } from '../../devicemapper/era/era-metadata.ts'
import type { OpenMedium } from '../../devicemapper/metadata-medium.ts'
import type { EraSuperblock } from '../../devicemapper/era/superblock.ts'
import type { HeldSlot } from '../catalog/lease.ts'
import { eraUuid } from '../node/era-devices.ts'

/** The key of a tracked volume's slot in lease records. @param volume with its id in the catalog */
export function slotKey(volume: { readonly id: string }): string {
  return `dm-uuid:${eraUuid(volume)}`
}

/** Whether a lease record is of a tracked volume's slot. */
export function isEraSlot(key: string): boolean {
  return key.startsWith(slotKey({ id: 'era:' }))
}

/** Reads the content of an era device's slot from its metadata device. @throws what opening metadata throws */
export async function readEraSlot(metadataPath: string, device?: DeviceNumber, open?: OpenMedium): Promise<HeldSlot> {
  const metadata = await openEraMetadata(metadataPath, { device, open })
  await metadata.close()
  const heldRoot = metadata.live.metadataSnapshot
  return { heldRoot, facts: heldRoot === 0 ? undefined : eraFacts(metadata.superblock) }
}

/** Identifies a state of an era device's metadata, as text that is only compared. */
export function eraFacts({ currentEra, writesetTreeRoot, eraArrayRoot, blocks }: EraSuperblock): string {
  return `era ${currentEra} writesets ${writesetTreeRoot} array ${eraArrayRoot} blocks ${blocks}`
}
