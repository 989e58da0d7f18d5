/**
 * Answers from the XML of thin_delta, thin_dump, era_invalidate or era_dump, printed here or elsewhere. The options
 * tell which: --since goes with era_dump, --block-size with era_invalidate.
 *
 * An answer begins with the volume's size, which only era_dump's XML has. Without --size, it is the end of the runs in
 * the XML.
 */
import type { ExtentStream } from '../../devicemapper/extents.ts'
import {
  type DeltaRunBatch,
  type DeltaSide,
  type DeltaXmlHeader,
  readDeltaXml
} from '../../devicemapper/thin/delta-xml.ts'
import { type MappingBatch, readDumpXml } from '../../devicemapper/thin/dump-xml.ts'
import type { PoolXmlHeader } from '../../devicemapper/thin/pool-xml.ts'
import { allocatedExtentsOf, changedExtentsOf, noSuchDevice } from '../../devicemapper/thin/xml-extents.ts'
import { endBytes } from '../../devicemapper/xml-extents.ts'
import { XmlInvalid } from '../../devicemapper/xml-stream.ts'
import { DeltamapperError } from '../../errors.ts'
import type { AnswerOptions, Question, Remark } from './question.ts'
import { UsageError } from '../command-line/failure.ts'
import { exactSize, humanSize } from '../command-line/quantities.ts'
import { leftOutOf } from './left-out.ts'
import { deviceId } from '../command-line/option-values.ts'
import { writtenFromDump, writtenFromInvalidate } from './era-xml-answer.ts'
import { readWhole } from './xml-end.ts'
import { openXmlInput, type XmlInput } from './xml-input.ts'

/** The most devices that a message names. */
const NAMED_DEVICES = 12

/** Hands the answer to `use`. @throws UsageError, XmlInvalid, and what reading throws */
export async function answerFromXml(
  path: string,
  question: Question,
  options: AnswerOptions,
  signal: AbortSignal,
  remark: Remark,
  use: (answer: ExtentStream) => Promise<void>
): Promise<void> {
  if (options.liveRoot) {
    throw new UsageError('--live-root goes with --metadata only', 'leave it out: the XML is of one state of the pool')
  }
  if (options.engine !== undefined) {
    throw new UsageError('--engine goes with --metadata only', 'leave it out: the XML is what a tool has found')
  }
  checkEraOptions(question, options)
  const input = await openXmlInput(path, signal)
  try {
    const answer =
      question.ask === 'delta'
        ? await deltaFromXml(input, question, options, remark)
        : await allocatedFromXml(input, question, options, remark)
    await use(answer)
  } catch (error) {
    throw (question.ask === 'delta' ? wrongOptions(input, options, error) : undefined) ?? error
  } finally {
    await input.close()
  }
}

/** @throws UsageError */
function checkEraOptions({ base, target }: Question, { since, blockSize }: AnswerOptions): void {
  if (since !== undefined && blockSize !== undefined) {
    throw new UsageError(
      '--since goes with what era_dump has printed, and --block-size with what era_invalidate has',
      'leave out one of them'
    )
  }
  if ((since ?? blockSize) === undefined || (base ?? target) === undefined) return
  throw new UsageError(
    `--xml has one era device with ${since === undefined ? '--block-size' : '--since'}, and ${base ?? target} was named as well`,
    'leave out BASE and TARGET'
  )
}

/** The options that the XML needs or excludes, if it is another tool's than they go with. */
function wrongOptions({ name }: XmlInput, { since, blockSize }: AnswerOptions, error: unknown): UsageError | undefined {
  const writer = error instanceof XmlInvalid ? error.writer : undefined
  if (writer === undefined) return undefined
  const what = `${name} is what ${writer} has printed`
  if (writer === 'era_invalidate') {
    return since === undefined
      ? new UsageError(
          `${what}, which does not say how large a block is`,
          "give the size of the era device's blocks with --block-size",
          'DM_ARGUMENT_MISSING'
        )
      : new UsageError(
          `${what}: since which era was said there (--written-since), and --since can say no other`,
          "leave out --since, and give the size of the era device's blocks with --block-size"
        )
  }
  if (writer === 'era_dump') {
    return blockSize === undefined
      ? new UsageError(`${what}, of all eras`, 'say with --since since which one', 'DM_ARGUMENT_MISSING')
      : new UsageError(
          `${what}, which has the size of a block`,
          'leave out --block-size, and say with --since since when'
        )
  }
  if ((since ?? blockSize) === undefined) return undefined
  const option = since === undefined ? '--block-size' : '--since'
  return new UsageError(`${what}, and ${option} is for era devices`, `leave out ${option}`)
}

async function deltaFromXml(
  input: XmlInput,
  question: Question,
  options: AnswerOptions,
  remark: Remark
): Promise<ExtentStream> {
  const { since, blockSize } = options
  if (since !== undefined) return writtenFromDump(input, since, options, remark)
  if (blockSize !== undefined) return writtenFromInvalidate(input, blockSize, options, remark)
  return thinDeltaFromXml(input, question, options, remark)
}

async function thinDeltaFromXml(
  input: XmlInput,
  { base, target }: Question,
  { size, baseSize, startingOffset }: AnswerOptions,
  remark: Remark
): Promise<ExtentStream> {
  const open = () => readDeltaXml(input.bytes(), { name: input.name })
  const first = await open()
  const { header } = first
  const [left, right] = [describeSide(header.left), describeSide(header.right)]
  checkSides(input, header, base, target)
  remark(`reading what thin_delta says of ${left} and ${right}, from ${input.name}, ${describePool(header)}`)
  let batches = first.batches
  let sizeBytes = size
  if (sizeBytes === undefined) {
    const whole = await readWhole(input, first, open, copyDeltaBatch)
    sizeBytes = endBytes(whole.endBlock, header.dataBlockBytes)
    batches = whole.batches
    remark(`size of ${right}: ${described(sizeBytes)}, the end of the last range; --size says otherwise`)
  }
  if (baseSize === undefined) remark(`size of base ${left}: that of ${right}; --base-size says otherwise`)
  const sizes = { sizeBytes, baseSizeBytes: baseSize, startingOffset, onLeftOut: leftOutOf(size, remark) }
  return changedExtentsOf(batches, header, sizes)
}

async function allocatedFromXml(
  input: XmlInput,
  { target }: Question,
  { size, startingOffset }: AnswerOptions,
  remark: Remark
): Promise<ExtentStream> {
  let id = target === undefined ? undefined : deviceId(target, '--xml')
  let firstId: number | undefined
  const isWanted = (each: number) => each === (id ?? (firstId ??= each))
  const open = () => readDumpXml(input.bytes(), { name: input.name, isWanted })
  const first = await open()
  remark(`reading what thin_dump says, from ${input.name}, ${describePool(first.header)}`)
  let batches = first.batches
  let sizeBytes = size
  if (sizeBytes === undefined || id === undefined) {
    const devices = new Set<number>()
    const wanted = ({ device }: MappingBatch) => {
      if (devices.size <= NAMED_DEVICES) devices.add(device.id)
      return id === undefined ? devices.size === 1 : device.id === id
    }
    const whole = await readWhole(input, first, open, copyMappingBatch, wanted)
    id ??= onlyDevice(input, devices)
    if (!whole.found) throw noSuchDevice(id)
    batches = whole.batches
    if (sizeBytes === undefined) {
      sizeBytes = endBytes(whole.endBlock, first.header.dataBlockBytes)
      remark(`size of ${id}: ${described(sizeBytes)}, the end of its highest mapping; --size says otherwise`)
    }
  }
  const sizes = { sizeBytes, startingOffset, onLeftOut: leftOutOf(size, remark) }
  return allocatedExtentsOf(batches, id, first.header, sizes)
}

function copyDeltaBatch({ count, kinds, begins, lengths }: DeltaRunBatch): DeltaRunBatch {
  return { count, kinds: kinds.slice(0, count), begins: begins.slice(0, count), lengths: lengths.slice(0, count) }
}

function copyMappingBatch(batch: MappingBatch): MappingBatch {
  const { count, begins, lengths } = batch
  return { ...batch, begins: begins.slice(0, count), lengths: lengths.slice(0, count) }
}

function onlyDevice({ name }: XmlInput, devices: Set<number>): number {
  const [only] = devices
  if (devices.size === 1) return only
  if (devices.size === 0) {
    throw new DeltamapperError('DM_DEVICE_NOT_FOUND', `${name} has no thin device`, 'dump a pool that has one')
  }
  const named = [...devices].slice(0, NAMED_DEVICES).join(', ')
  const more = devices.size > NAMED_DEVICES ? ' and more' : ''
  throw new UsageError(`${name} has several thin devices: ${named}${more}`, 'name one of them as TARGET')
}

/** BASE and TARGET are optional, because the XML has them; if they are given, they must match. */
function checkSides(
  { name }: XmlInput,
  header: DeltaXmlHeader,
  base: string | undefined,
  target: string | undefined
): void {
  for (const [argument, given, side] of [
    ['BASE', base, header.left],
    ['TARGET', target, header.right]
  ] as const) {
    if (given === undefined || deviceId(given, '--xml') === side.deviceId) continue
    throw new UsageError(
      `${argument} is ${given}, and ${name} compares ${describeSide(header.left)} with ${describeSide(header.right)}`,
      'leave out BASE and TARGET, or give the XML of those two'
    )
  }
}

function describeSide({ deviceId, root }: DeltaSide): string {
  return deviceId === undefined ? `the tree below block ${root}` : `thin device ${deviceId}`
}

function describePool({ dataBlockBytes, time, transactionId, needsCheck }: PoolXmlHeader): string {
  const pool = `of a pool with ${exactSize(dataBlockBytes)} blocks, pool time ${time}, transaction ${transactionId}`
  return needsCheck ? `${pool}, which needs a check` : pool
}

function described(bytes: number): string {
  return `${bytes} bytes (${humanSize(bytes)})`
}
