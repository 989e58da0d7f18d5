/**
 * Answers from the XML that thin_delta or thin_dump has printed, here or elsewhere.
 *
 * An answer begins with the volume's size, which the XML does not hold. Where the command line does not give it either, it is the end of
 * what the XML tells of: the XML is then read twice, or remembered where it cannot be.
 */
import type { ExtentStream } from '../devicemapper/extents.ts'
import {
  type DeltaRunBatch,
  type DeltaSide,
  type DeltaXmlHeader,
  readDeltaXml
} from '../devicemapper/thin/delta-xml.ts'
import { type MappingBatch, readDumpXml } from '../devicemapper/thin/dump-xml.ts'
import type { PoolXmlHeader } from '../devicemapper/thin/pool-xml.ts'
import { allocatedExtentsOf, changedExtentsOf, endBytes, noSuchDevice } from '../devicemapper/thin/xml-extents.ts'
import type { XmlDocument } from '../devicemapper/xml-stream.ts'
import { DeltamapperError } from '../errors.ts'
import type { AnswerOptions, Question, Remark } from './answer.ts'
import { UsageError } from './failure.ts'
import { exactSize, humanSize } from './quantities.ts'
import { deviceId } from './option-values.ts'
import { openXmlInput, type XmlInput } from './xml-input.ts'

/** Runs remembered of XML that cannot be read twice: some 100 MB. */
const REMEMBERED_RUNS = 4_000_000
/** Devices named at most in a message. */
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
  const input = await openXmlInput(path, signal)
  try {
    const answer = question.ask === 'delta' ? deltaFromXml : allocatedFromXml
    await use(await answer(input, question, options, remark))
  } finally {
    await input.close()
  }
}

async function deltaFromXml(
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
  return changedExtentsOf(batches, header, { sizeBytes, baseSizeBytes: baseSize, startingOffset })
}

async function allocatedFromXml(
  input: XmlInput,
  { target }: Question,
  { size, startingOffset }: AnswerOptions,
  remark: Remark
): Promise<ExtentStream> {
  let id = target === undefined ? undefined : deviceId(target, '--xml')
  const open = () => readDumpXml(input.bytes(), { name: input.name })
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
  return allocatedExtentsOf(batches, id, first.header, { sizeBytes, startingOffset })
}

interface RunBatch {
  readonly count: number
  readonly begins: Float64Array
  readonly lengths: Float64Array
}

interface Whole<Batch> {
  /** The end of the last run that is wanted; 0 where there is none. */
  endBlock: number
  /** Whether any batch was wanted. */
  found: boolean
  /** What is wanted, from the beginning. */
  batches: AsyncIterable<Batch>
}

/**
 * Reads a document to its end, to know where that is.
 *
 * @param copy a batch that stays valid
 * @param wanted which batches matter
 */
async function readWhole<Header, Batch extends RunBatch>(
  input: XmlInput,
  first: XmlDocument<Header, Batch>,
  open: () => Promise<XmlDocument<Header, Batch>>,
  copy: (batch: Batch) => Batch,
  wanted: (batch: Batch) => boolean = () => true
): Promise<Whole<Batch>> {
  const remembered: Batch[] = []
  let runs = 0
  let endBlock = 0
  let found = false
  for await (const batch of first.batches) {
    if (!wanted(batch)) continue
    found = true
    endBlock = endOf(batch, endBlock)
    if (input.again) continue
    runs += batch.count
    if (runs > REMEMBERED_RUNS) throw tooMuchToRemember(input)
    remembered.push(copy(batch))
  }
  if (!input.again) return { endBlock, found, batches: replayed(remembered) }
  const again = await open()
  return { endBlock, found, batches: withSameEnd(again.batches) }

  async function* withSameEnd(batches: AsyncIterable<Batch>): AsyncGenerator<Batch> {
    let end = 0
    for await (const batch of batches) {
      if (!wanted(batch)) continue
      end = endOf(batch, end)
      // Checked before it is shown: what lies beyond the first reading's end would be cut off.
      if (end > endBlock) break
      yield batch
    }
    if (end === endBlock) return
    throw new DeltamapperError('DM_READ_FAILED', `${input.name} has changed while it was read`, 'try again')
  }
}

async function* replayed<Batch>(batches: Batch[]): AsyncGenerator<Batch> {
  yield* batches
}

function endOf({ count, begins, lengths }: RunBatch, before: number): number {
  return count === 0 ? before : begins[count - 1] + lengths[count - 1]
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

/** BASE and TARGET need not be given, because the XML has them; where they are, they have to be those. */
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

function tooMuchToRemember({ name }: XmlInput): DeltamapperError {
  return new DeltamapperError(
    'DM_ARGUMENT_MISSING',
    `${name} cannot be read twice, and has more than ${REMEMBERED_RUNS / 1e6} million ranges, too many to remember`,
    'give the size of the target with --size, or the XML as a file'
  )
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
