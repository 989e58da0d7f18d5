/**
 * Drains the streaming XML readers, holding each batch to its contract, into plain values that can be compared (naive-xml.ts gives the
 * same ones).
 */
import { type EraRunBatch, readEraDumpXml } from '../../src/devicemapper/era/dump-xml.ts'
import { readInvalidateXml } from '../../src/devicemapper/era/invalidate-xml.ts'
import { deltaKinds, readDeltaXml } from '../../src/devicemapper/thin/delta-xml.ts'
import { readDumpXml } from '../../src/devicemapper/thin/dump-xml.ts'
import type { ByteStream, XmlOptions } from '../../src/devicemapper/xml-stream.ts'
import type { Random } from './random.ts'

/** Bytes as a stream: in one chunk, or cut where `cuts` says. */
export async function* streamOf(bytes: Uint8Array, cuts: readonly number[] = []): AsyncGenerator<Uint8Array> {
  // A buffer that is used again, as a fast source would: nobody may look at a chunk later.
  const reused = new Uint8Array(bytes.length)
  let from = 0
  for (const to of [...cuts, bytes.length]) {
    const chunk = reused.subarray(0, to - from)
    chunk.set(bytes.subarray(from, to))
    yield chunk
    chunk.fill(0x3e)
    from = to
  }
}

/** Some places to cut bytes at, ascending; the same one may be there twice (an empty chunk). */
export function randomCuts(random: Random, length: number): number[] {
  return Array.from({ length: random.integer(0, 12) }, () => random.integer(0, length)).sort((a, b) => a - b)
}

export async function readDelta(bytes: ByteStream, options?: XmlOptions) {
  const { header, batches } = await readDeltaXml(bytes, options)
  const runs: [string, number, number][] = []
  for await (const { count, kinds, begins, lengths } of batches) {
    if (count === 0) throw new Error('an empty batch')
    for (let i = 0; i < count; i++) runs.push([deltaKinds[kinds[i]], begins[i], lengths[i]])
  }
  return { header, runs }
}

export async function readDump(bytes: ByteStream, options?: XmlOptions & { sharedBytes?: number }) {
  const { header, batches } = await readDumpXml(bytes, options)
  const devices: { id: number; mappings: number[][] }[] = []
  let open: number | undefined
  for await (const { device, last, count, begins, dataBegins, lengths, times } of batches) {
    if (open === undefined) devices.push({ id: device.id, ...device.details, mappings: [] })
    else if (open !== device.id) throw new Error(`a batch of ${device.id} before the last one of ${open}`)
    if (count === 0 && !last) throw new Error('an empty batch')
    for (let i = 0; i < count; i++) devices.at(-1)?.mappings.push([begins[i], dataBegins[i], lengths[i], times[i]])
    open = last ? undefined : device.id
  }
  if (open !== undefined) throw new Error(`no last batch of ${open}`)
  return { header, devices }
}

export async function readInvalidate(bytes: ByteStream, options?: XmlOptions) {
  const { batches } = await readInvalidateXml(bytes, options)
  const runs: [number, number][] = []
  for await (const { count, begins, lengths } of batches) {
    if (count === 0) throw new Error('an empty batch')
    for (let i = 0; i < count; i++) runs.push([begins[i], lengths[i]])
  }
  return { runs }
}

export async function readEraDump(bytes: ByteStream, options?: XmlOptions) {
  const { header, batches } = await readEraDumpXml(bytes, options)
  const sections: { section: EraRunBatch['section']; era?: number; marks: [number, number][] }[] = []
  let open = false
  let reached = 0
  for await (const { section, era, last, count, begins, lengths, eras } of batches) {
    if (!open) {
      sections.push({ section, ...(era !== undefined && { era }), marks: [] })
      reached = 0
    }
    if (count === 0 && !last) throw new Error('an empty batch')
    for (let i = 0; i < count; i++) {
      if (begins[i] < reached || lengths[i] <= 0) throw new Error(`a run at ${begins[i]} after ${reached}`)
      reached = begins[i] + lengths[i]
      for (let block = begins[i]; block < reached; block++) sections.at(-1)?.marks.push([block, eras[i]])
    }
    open = !last
  }
  if (open) throw new Error('a section without a last batch')
  return { header, sections }
}
