/**
 * An inspection of an era device as one JSON object.
 */
import { DeltamapperError } from '../../errors.ts'
import { digestedUpTo, type EraInspection } from '../inspection/era-inspection.ts'
import type { TextOutput } from './text-output.ts'

export async function writeEraInspectionJson(inspection: EraInspection, output: TextOutput): Promise<void> {
  const { metadata, held, writesets } = inspection
  const { live } = metadata
  const head = {
    path: metadata.path,
    target: 'dm-era',
    superblock: {
      current_era: live.currentEra,
      has_current_writeset: live.currentWriteset !== undefined,
      block_size_bytes: live.blockBytes,
      blocks: live.blocks,
      size_bytes: live.blocks * live.blockBytes,
      writeset_tree_root_block: live.writesetTreeRoot,
      era_array_root_block: live.eraArrayRoot,
      metadata_snapshot_block: live.metadataSnapshot
    },
    metadata_snapshot: held ? { block: live.metadataSnapshot, ...heldState(held, live.currentEra) } : null,
    view: metadata.view,
    last_era: metadata.lastEra,
    digested_up_to_era: digestedUpTo(inspection)
  }
  output.text(`${JSON.stringify(head).slice(0, -1)},"writesets":[`)
  let separator = ''
  for (const { era, bits, root } of writesets) {
    output.text(separator + JSON.stringify({ era, bits, root_block: root }))
    separator = ','
    if (output.isFull) await output.flush()
  }
  output.text(']}\n')
  await output.flush()
}

function heldState(held: NonNullable<EraInspection['held']>, currentEra: number) {
  if (held instanceof DeltamapperError) return { cannot_be_used: held.message }
  return { last_era: held.currentEra - 1, blocks: held.blocks, eras_since: currentEra - held.currentEra + 1 }
}
