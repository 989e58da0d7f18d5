/** Turns the runs of blocks in any tool's XML into extents, clipped to the question. */
import { DeltamapperError, invalid } from '../errors.ts'
import { type ExtentBatch, ExtentBuilder, type ExtentStream } from './extents.ts'

/** The facts that XML lacks. All in bytes. */
export interface XmlSizes {
  /** Size of the target. */
  sizeBytes: number
  /** Size of the base; by default as large as the target. */
  baseSizeBytes?: number | undefined
  /** Leave out extents that end at or before this byte. Rounded down to a block. 0 to `sizeBytes`. */
  startingOffset?: number | undefined
  /** Called at the end with the number of bytes that the XML has beyond the target's last block, which are left out. */
  onLeftOut?: ((bytes: number) => void) | undefined
}

/**
 * Takes the runs `[begin, end)` that `read` finds in each batch, and clips them to the question.
 *
 * @param blockBytes size of a block in bytes
 * @param read adds the runs of a batch, ascending, also beyond the target's end
 * @param wholeFrom from this block on, everything is in the answer; nowhere by default
 * @throws DM_ARGUMENT_INVALID, DM_OFFSET_OUT_OF_RANGE; while it is read, what the batches throw
 */
export function extentsOfBatches<Batch>(
  batches: AsyncIterable<Batch>,
  blockBytes: number,
  { sizeBytes, startingOffset = 0, onLeftOut }: XmlSizes,
  read: (batch: Batch, add: (begin: number, end: number) => void) => void,
  wholeFrom = Infinity
): ExtentStream {
  checkSize(sizeBytes)
  if (!(startingOffset >= 0 && startingOffset <= sizeBytes)) {
    throw new DeltamapperError(
      'DM_OFFSET_OUT_OF_RANGE',
      `starting offset ${startingOffset} is outside the volume of ${sizeBytes} bytes`,
      'resume at the end of the last extent received, or at 0'
    )
  }
  const first = startingOffset < sizeBytes ? Math.floor(startingOffset / blockBytes) : Infinity
  const last = Math.ceil(sizeBytes / blockBytes)
  const end = Math.min(last, wholeFrom)
  async function* extents(): AsyncGenerator<ExtentBatch> {
    const builder = new ExtentBuilder(blockBytes, sizeBytes)
    let blocksLeftOut = 0
    const add = (runBegin: number, runEnd: number) => {
      if (runEnd > last) blocksLeftOut += Math.max(0, runEnd - Math.max(runBegin, last))
      builder.addRun(Math.max(runBegin, first), Math.min(runEnd, end))
    }
    for await (const batch of batches) {
      read(batch, add)
      const ready = builder.take()
      if (ready !== undefined) yield ready
    }
    onLeftOut?.(blocksLeftOut * blockBytes)
    builder.addRun(Math.max(first, end), last)
    const rest = builder.takeLast()
    if (rest !== undefined) yield rest
  }
  return { capacityBytes: sizeBytes, batches: extents() }
}

/**
 * The block at which the base ended; Infinity if it is not smaller than the target: only blocks beyond a *smaller* base
 * are missing from every backup of it.
 *
 * @throws DM_ARGUMENT_INVALID
 */
export function baseEndBlock({ sizeBytes, baseSizeBytes }: XmlSizes, blockBytes: number): number {
  checkSize(baseSizeBytes)
  const shrunk = baseSizeBytes !== undefined && baseSizeBytes < sizeBytes
  return shrunk ? Math.floor(baseSizeBytes / blockBytes) : Infinity
}

/**
 * The end of the runs in XML, in bytes: the best guess at a size that it does not hold.
 *
 * @throws DM_METADATA_UNSUPPORTED when that is beyond 2^53, where byte offsets would no longer be exact
 */
export function endBytes(endBlock: number, blockBytes: number): number {
  const end = endBlock * blockBytes
  if (end <= Number.MAX_SAFE_INTEGER) return end
  throw new DeltamapperError(
    'DM_METADATA_UNSUPPORTED',
    'the XML tells of bytes beyond 2^53',
    'give the size of the target, if it is smaller than that'
  )
}

function checkSize(bytes: number | undefined): void {
  if (bytes === undefined || (Number.isSafeInteger(bytes) && bytes >= 0)) return
  throw invalid(`${bytes} is no size`, 'give a whole number of bytes below 2^53')
}
