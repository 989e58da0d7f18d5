/**
 * An answer as one JSON object to a line: first its volume, then each extent, last a line that says that it is
 * complete.
 */
import type { ExtentAnswer } from '../../devicemapper/extents.ts'
import { Phrase, type TextOutput } from './text-output.ts'

const OFFSET = new Phrase('{"byte_offset":')
const SIZE = new Phrase(',"size_bytes":')
const END = new Phrase('}\n')

export async function writeNdjson(
  { capacityBytes, blockMetadataType = 'VARIABLE_LENGTH', batches }: ExtentAnswer,
  output: TextOutput
): Promise<void> {
  // JSON leaves out undefined values: an unknown capacity (see json.ts).
  const volume = { block_metadata_type: blockMetadataType, volume_capacity_bytes: capacityBytes }
  output.text(`${JSON.stringify(volume)}\n`)
  let extents = 0
  let bytes = 0
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) {
      output.phrase(OFFSET)
      output.integer(offsets, i)
      output.phrase(SIZE)
      output.integer(sizes, i)
      output.phrase(END)
      bytes += sizes[i]
      if (output.isFull) await output.flush()
    }
    extents += count
  }
  output.text(`{"complete":true,"extents":${extents},"bytes":${bytes}}\n`)
  await output.flush()
}
