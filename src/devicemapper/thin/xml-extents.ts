/**
 * From what the tools' XML says of blocks to extents, by the rules that hold for our own reading of metadata (pool-metadata.ts).
 */
import { DeltamapperError } from '../../errors.ts'
import { type ExtentBatch, ExtentBuilder, type ExtentStream } from '../extents.ts'
import { type DeltaRunBatch, type DeltaXml, deltaKinds } from './delta-xml.ts'
import type { MappingBatch } from './dump-xml.ts'

const SAME = deltaKinds.indexOf('same')

/** What XML does not tell. All in bytes. */
export interface XmlSizes {
  /** Size of the target. */
  sizeBytes: number
  /** Size of the base; by default as large as the target. */
  baseSizeBytes?: number | undefined
  /** Extents that end at or before this byte are left out; it is rounded down to a data block. 0 to `sizeBytes`. */
  startingOffset?: number | undefined
}

/**
 * What thin_delta says has changed: what differs, what is mapped in one of the two only, and what is the same where the base had ended.
 * thin_delta does not know how large the volumes are: what it says of blocks beyond the target's end is left out.
 *
 * @throws DM_ARGUMENT_INVALID, DM_OFFSET_OUT_OF_RANGE; while it is read, XmlInvalid
 */
export function changedExtentsOf(
  batches: AsyncIterable<DeltaRunBatch>,
  { dataBlockBytes }: DeltaXml['header'],
  { baseSizeBytes, ...sizes }: XmlSizes
): ExtentStream {
  checkSize(baseSizeBytes)
  // Only what lies beyond a *smaller* base is missing from every backup of it.
  const shrunk = baseSizeBytes !== undefined && baseSizeBytes < sizes.sizeBytes
  const baseEnd = shrunk ? Math.floor(baseSizeBytes / dataBlockBytes) : Infinity
  return extentStream(batches, dataBlockBytes, sizes, ({ count, kinds, begins, lengths }, add) => {
    for (let i = 0; i < count; i++) {
      const end = begins[i] + lengths[i]
      add(kinds[i] === SAME ? Math.max(begins[i], baseEnd) : begins[i], end)
    }
  })
}

/**
 * What thin_dump says that one device maps.
 *
 * @throws DM_ARGUMENT_INVALID, DM_OFFSET_OUT_OF_RANGE; while it is read, XmlInvalid, and DM_DEVICE_NOT_FOUND at the end when the device was not there
 */
export function allocatedExtentsOf(
  batches: AsyncIterable<MappingBatch>,
  deviceId: number,
  { dataBlockBytes }: { dataBlockBytes: number },
  sizes: XmlSizes
): ExtentStream {
  return extentStream(ofDevice(batches, deviceId), dataBlockBytes, sizes, ({ count, begins, lengths }, add) => {
    for (let i = 0; i < count; i++) add(begins[i], begins[i] + lengths[i])
  })
}

/** The batches of one device; the others' are read over, to the end of the document. */
async function* ofDevice(batches: AsyncIterable<MappingBatch>, deviceId: number): AsyncGenerator<MappingBatch> {
  let found = false
  for await (const batch of batches) {
    if (batch.device.id !== deviceId) continue
    found = true
    yield batch
  }
  if (!found) throw noSuchDevice(deviceId)
}

export function noSuchDevice(deviceId: number): DeltamapperError {
  return new DeltamapperError(
    'DM_DEVICE_NOT_FOUND',
    `the XML has no thin device ${deviceId}`,
    'name one of its devices: they are its elements <device dev_id="…">'
  )
}

/** Takes the runs `[begin, end)` that `read` finds in each batch, and clips them to what is asked for. */
function extentStream<Batch>(
  batches: AsyncIterable<Batch>,
  blockBytes: number,
  { sizeBytes, startingOffset = 0 }: XmlSizes,
  read: (batch: Batch, add: (begin: number, end: number) => void) => void
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
  async function* extents(): AsyncGenerator<ExtentBatch> {
    const builder = new ExtentBuilder(blockBytes, sizeBytes)
    const add = (begin: number, end: number) => {
      builder.addRun(Math.max(begin, first), Math.min(end, last))
    }
    for await (const batch of batches) {
      read(batch, add)
      const ready = builder.take()
      if (ready !== undefined) yield ready
    }
    const rest = builder.takeLast()
    if (rest !== undefined) yield rest
  }
  return { capacityBytes: sizeBytes, batches: extents() }
}

/**
 * The end of what XML tells of, in bytes: the best guess at a size that it does not hold.
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
  throw new DeltamapperError('DM_ARGUMENT_INVALID', `${bytes} is no size`, 'give a whole number of bytes below 2^53')
}
