/**
 * From what the tools' XML says of blocks to extents, by the rules that hold for our own reading of metadata (pool-metadata.ts).
 */
import { DeltamapperError } from '../../errors.ts'
import type { ExtentStream } from '../extents.ts'
import { baseEndBlock, extentsOfBatches, type XmlSizes } from '../xml-extents.ts'
import { type DeltaRunBatch, type DeltaXml, deltaKinds } from './delta-xml.ts'
import type { MappingBatch } from './dump-xml.ts'

const SAME = deltaKinds.indexOf('same')

/**
 * What thin_delta says has changed: what differs, what is mapped in one of the two only, and what is the same where the base had ended.
 * thin_delta does not know how large the volumes are: what it says of blocks beyond the target's end is left out.
 *
 * @throws DM_ARGUMENT_INVALID, DM_OFFSET_OUT_OF_RANGE; while it is read, XmlInvalid
 */
export function changedExtentsOf(
  batches: AsyncIterable<DeltaRunBatch>,
  { dataBlockBytes }: DeltaXml['header'],
  sizes: XmlSizes
): ExtentStream {
  const baseEnd = baseEndBlock(sizes, dataBlockBytes)
  return extentsOfBatches(batches, dataBlockBytes, sizes, ({ count, kinds, begins, lengths }, add) => {
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
  return extentsOfBatches(ofDevice(batches, deviceId), dataBlockBytes, sizes, ({ count, begins, lengths }, add) => {
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
