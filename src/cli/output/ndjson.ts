/**
 * An answer as one JSON object to a line: first what volume it is of, then each extent, last a line that says that it is complete.
 */
import type { ExtentStream } from '../../devicemapper/extents.ts'
import type { TextOutput } from './text-output.ts'

const OFFSET = Buffer.from('{"byte_offset":')
const SIZE = Buffer.from(',"size_bytes":')
const END = Buffer.from('}\n')

export async function writeNdjson({ capacityBytes, batches }: ExtentStream, output: TextOutput): Promise<void> {
  output.text(`{"block_metadata_type":"VARIABLE_LENGTH","volume_capacity_bytes":${capacityBytes}}\n`)
  let extents = 0
  let bytes = 0
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) {
      output.bytes(OFFSET)
      output.integer(offsets[i])
      output.bytes(SIZE)
      output.integer(sizes[i])
      output.bytes(END)
      bytes += sizes[i]
      if (output.isFull) await output.flush()
    }
    extents += count
  }
  output.text(`{"complete":true,"extents":${extents},"bytes":${bytes}}\n`)
  await output.flush()
}
