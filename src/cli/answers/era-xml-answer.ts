/** `delta --xml` with the output of era_invalidate or era_dump: the blocks of an era device written since an era. */
import { type EraDumpHeader, readEraDumpXml } from '../../devicemapper/era/dump-xml.ts'
import { type BlockRunBatch, readInvalidateXml } from '../../devicemapper/era/invalidate-xml.ts'
import { type WrittenDump, writtenExtentsOf, writtenSince } from '../../devicemapper/era/xml-extents.ts'
import type { ExtentStream } from '../../devicemapper/extents.ts'
import { endBytes } from '../../devicemapper/xml-extents.ts'
import { invalid } from '../../errors.ts'
import type { AnswerOptions, Remark } from './question.ts'
import { leftOutOf } from './left-out.ts'
import { exactSize, humanSize } from '../command-line/quantities.ts'
import { readWhole } from './xml-end.ts'
import type { XmlInput } from './xml-input.ts'

/**
 * The list of era_invalidate. It contains neither the era it began with, nor the device.
 *
 * @param blockSize size of a block of the era device in bytes
 * @throws XmlInvalid, and what reading throws
 */
export async function writtenFromInvalidate(
  input: XmlInput,
  blockSize: number,
  { size, baseSize, startingOffset }: AnswerOptions,
  remark: Remark
): Promise<ExtentStream> {
  const open = () => readInvalidateXml(input.bytes(), { name: input.name })
  const first = await open()
  remark(
    `reading what era_invalidate says, from ${input.name}, with ${exactSize(blockSize)} blocks; since which era is not in it`
  )
  let { batches } = first
  let sizeBytes = size
  if (sizeBytes === undefined) {
    const whole = await readWhole(input, first, open, copyBatch)
    sizeBytes = endBytes(whole.endBlock, blockSize)
    batches = whole.batches
    remark(`size of the device: ${described(sizeBytes)}, the end of the last range; --size says otherwise`)
  }
  const sizes = { sizeBytes, baseSizeBytes: baseSize, startingOffset, onLeftOut: leftOutOf(size, remark) }
  return writtenExtentsOf(batches, blockSize, sizes)
}

/**
 * The blocks of an era and later ones in a dump of era_dump.
 *
 * @throws DM_ERA_NOT_REACHED, DM_ARGUMENT_INVALID, DM_METADATA_DAMAGED, XmlInvalid, and what reading throws
 */
export async function writtenFromDump(
  input: XmlInput,
  sinceEra: number,
  { size, baseSize, startingOffset }: AnswerOptions,
  remark: Remark
): Promise<ExtentStream> {
  const { name } = input
  const dump = await readEraDumpXml(input.bytes(), { name })
  const { blocks, blockBytes } = dump.header
  const written = await writtenSince(dump, sinceEra, name)
  remark(`reading what era_dump says, from ${name}, ${describeDump(dump.header, written)}`)
  if (written.writesets === 0) {
    remark('it has no writesets: 0.9.0 --logical gives blocks too early an era, so that some may be missing here')
  }
  if (size !== undefined && size > blocks * blockBytes) {
    throw invalid(
      `the device in ${name} has ${blocks} blocks of ${blockBytes} bytes, and ${size} bytes are more than they hold`,
      'give the size that the device had when its metadata was as it is here'
    )
  }
  const sizeBytes = size ?? endBytes(blocks, blockBytes)
  if (size === undefined) {
    remark(`size of the device: ${described(sizeBytes)}, up to the end of its last block; --size says otherwise`)
  }
  const sizes = { sizeBytes, baseSizeBytes: baseSize, startingOffset, onLeftOut: leftOutOf(size, remark) }
  return writtenExtentsOf(written.batches, blockBytes, sizes)
}

function describeDump({ blockBytes, currentEra }: EraDumpHeader, { lastEra }: WrittenDump): string {
  const device = `of an era device with ${exactSize(blockBytes)} blocks`
  return lastEra === currentEra
    ? `${device}, with the writes of era ${currentEra} so far`
    : `${device}, with the writes up to era ${lastEra}: of era ${currentEra}, the current one, it has no writeset`
}

function copyBatch({ count, begins, lengths }: BlockRunBatch): BlockRunBatch {
  return { count, begins: begins.slice(0, count), lengths: lengths.slice(0, count) }
}

function described(bytes: number): string {
  return `${bytes} bytes (${humanSize(bytes)})`
}
