/**
 * Reports what a `--size` cuts off: extents beyond it are no part of the answer, which is complete without them. A user
 * who gave a wrong size must see that.
 */
import type { ExtentStream } from '../../devicemapper/extents.ts'
import { DeltamapperError } from '../../errors.ts'
import type { Remark } from './question.ts'
import { humanSize } from '../command-line/quantities.ts'

/**
 * Prints how many bytes beyond the size are left out, if any are.
 *
 * @param beyond asks for the extents beyond it, from `firstBeyond` on
 */
export async function remarkLeftOut(beyond: () => Promise<ExtentStream | undefined>, remark: Remark): Promise<void> {
  try {
    const stream = await beyond()
    if (stream !== undefined) remarkBytes(await bytesOf(stream), remark)
  } catch (error) {
    // The answer does not depend on it, and may be the last that can be had.
    if (!(error instanceof DeltamapperError) || error.code === 'DM_CANCELLED') throw error
    remark(`whether anything lies beyond --size is not known: ${error.message}`)
  }
}

/**
 * The same for XML, which is read to its end anyhow: a function to call with the bytes left out.
 *
 * @param size the value of `--size`, if it was given
 */
export function leftOutOf(size: number | undefined, remark: Remark): ((bytes: number) => void) | undefined {
  return size === undefined ? undefined : (bytes) => remarkBytes(bytes, remark)
}

function remarkBytes(bytes: number, remark: Remark): void {
  if (bytes > 0) remark(`--size leaves out ${bytes} bytes (${humanSize(bytes)}) that lie beyond it`)
}

/** The first block wholly beyond a size: a volume may end in the middle of its last one. */
export function firstBeyond(sizeBytes: number, blockBytes: number): number {
  return Math.ceil(sizeBytes / blockBytes) * blockBytes
}

async function bytesOf({ batches }: ExtentStream): Promise<number> {
  let bytes = 0
  for await (const { count, sizes } of batches) {
    for (let i = 0; i < count; i++) bytes += sizes[i]
  }
  return bytes
}
