/** Turns the tools' XML into extents, by the same rules as our own reading of metadata (pool-metadata.ts). */
import { DeltamapperError } from '../../errors.ts'
import type { ExtentStream } from '../extents.ts'
import { baseEndBlock, extentsOfBatches, type XmlSizes } from '../xml-extents.ts'
import { type DeltaRunBatch, type DeltaXml, deltaKinds } from './delta-xml.ts'
import type { MappingBatch } from './dump-xml.ts'

const SAME = deltaKinds.indexOf('same')

/**
 * The changes according to thin_delta: blocks that differ, blocks mapped in only one of the two, and equal blocks
 * beyond the end of the base. thin_delta does not know the sizes of the volumes; blocks beyond the target's end are
 * left out.
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
 * The mappings of one device according to thin_dump.
 *
 * @throws DM_ARGUMENT_INVALID, DM_OFFSET_OUT_OF_RANGE; while it is read, XmlInvalid, and DM_DEVICE_NOT_FOUND at the end
 *   when the device was not there
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

/** The batches of one device; those of others are skipped, to the end of the document. */
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
