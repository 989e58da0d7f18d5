/**
 * An inspection as one JSON object. Transaction ids are strings: they have 64 bits, and most parsers round numbers
 * beyond 2^53.
 */
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { DeltamapperError } from '../../errors.ts'
import type { InspectedDevice, Inspection } from '../inspection/pool-inspection.ts'
import type { TextOutput } from './text-output.ts'

export async function writeInspectionJson({ views, held, devices }: Inspection, output: TextOutput): Promise<void> {
  const { metadata, live } = views
  const head = {
    path: metadata.path,
    superblock: superblock(live),
    metadata_snapshot: held ? { block: live.heldRoot, ...heldState(held, live) } : null,
    view: metadata.view
  }
  output.text(`${JSON.stringify(head).slice(0, -1)},"devices":[`)
  let separator = ''
  for await (const each of devices) {
    output.text(separator + JSON.stringify(device(each, live.dataBlockBytes)))
    separator = ','
    if (output.isFull) await output.flush()
  }
  output.text(']}\n')
  await output.flush()
}

function superblock(live: ThinSuperblock) {
  return {
    ...state(live),
    needs_check: live.needsCheck,
    data_block_size_bytes: live.dataBlockBytes,
    metadata_blocks: live.metadataBlocks,
    mapping_root_block: live.mappingRoot,
    details_root_block: live.detailsRoot,
    held_root_block: live.heldRoot
  }
}

function heldState(held: NonNullable<Inspection['held']>, live: ThinSuperblock) {
  if (held instanceof DeltamapperError) return { cannot_be_used: held.message }
  return {
    ...state(held),
    snapshots_since: live.time - held.time,
    transactions_since: String(live.transactionId - held.transactionId)
  }
}

function state({ time, transactionId }: ThinSuperblock) {
  return { time, transaction_id: String(transactionId) }
}

function device({ id, root, details, origin, twin }: InspectedDevice, blockBytes: number) {
  return {
    id,
    mapped_blocks: details.mappedBlocks,
    mapped_bytes: exactOrNull(details.mappedBlocks * blockBytes),
    transaction_id: String(details.transactionId),
    creation_time: details.creationTime,
    snapshotted_time: details.snapshottedTime,
    root_block: root,
    origin: { certainty: origin.certainty, devices: origin.devices, more: origin.more },
    same_mappings_as: twin ?? null
  }
}

/** Beyond 2^53 a number would be rounded, here or by the reader. */
function exactOrNull(bytes: number): number | null {
  return Number.isSafeInteger(bytes) ? bytes : null
}
