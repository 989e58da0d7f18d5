/**
 * An answer as one JSON object, with the field names of csi.v1. It is closed only when the answer is complete: if it is
 * cut off, it does not parse. An unknown capacity is left out: code that needs it fails, while a null would pass for 0.
 */
import type { ExtentAnswer } from '../../devicemapper/extents.ts'
import { Phrase, type TextOutput } from './text-output.ts'

const FIRST_OFFSET = new Phrase('{"byte_offset":')
const NEXT_OFFSET = new Phrase(',{"byte_offset":')
const SIZE = new Phrase(',"size_bytes":')
const END = new Phrase('}')

export async function writeJson(
  { capacityBytes, blockMetadataType = 'VARIABLE_LENGTH', batches }: ExtentAnswer,
  output: TextOutput
): Promise<void> {
  output.text(`{"block_metadata_type":"${blockMetadataType}",${capacityField(capacityBytes)}"block_metadata":[`)
  let before = FIRST_OFFSET
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) {
      output.phrase(before)
      output.integer(offsets, i)
      output.phrase(SIZE)
      output.integer(sizes, i)
      output.phrase(END)
      before = NEXT_OFFSET
      if (output.isFull) await output.flush()
    }
  }
  output.text(']}\n')
  await output.flush()
}

function capacityField(capacityBytes: number | undefined): string {
  return capacityBytes === undefined ? '' : `"volume_capacity_bytes":${capacityBytes},`
}
