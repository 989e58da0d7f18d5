/**
 * The second engine: the answers of thin_delta and thin_dump, as the same extents as our own walk gives, by the same
 * rules (xml-extents.ts).
 *
 *     thin_delta [-m] ─▶ its XML, through a pipe ─▶ runs ─▶ extents ─▶ devices unchanged? ─▶ out
 */
import { resolve } from 'node:path'
import { DeltamapperError } from '../../errors.ts'
import { damaged } from '../block-reader.ts'
import type { ExtentBatch, ExtentStream } from '../extents.ts'
import { type DeltaRunBatch, deltaKinds, readDeltaXml } from '../thin/delta-xml.ts'
import { readDumpXml } from '../thin/dump-xml.ts'
import type { PinnedDevice, PoolMetadata } from '../thin/pool-metadata.ts'
import type { PoolXmlHeader } from '../thin/pool-xml.ts'
import { allocatedExtentsOf, changedExtentsOf } from '../thin/xml-extents.ts'
import { XmlInvalid } from '../xml-stream.ts'
import { DESCRIPTOR_PATH, type ToolCommand, type ToolName, toolOutput } from './tool.ts'

/** A device of the view, and its size in bytes. */
export interface ToolDevice extends PinnedDevice {
  readonly sizeBytes: number
}

export interface ToolQuestion {
  /** The view for the tools: on a device in use it must be a metadata snapshot. */
  readonly metadata: PoolMetadata
  /** Undefined: everything the target maps. */
  readonly base?: ToolDevice | undefined
  readonly target: ToolDevice
  /** Bytes; 0 to the target's size. */
  readonly startingOffset?: number | undefined
  readonly command: ToolCommand
  readonly signal?: AbortSignal | undefined
}

export interface ToolAnswer extends ExtentStream {
  readonly batches: AsyncGenerator<ExtentBatch, boolean>
  /**
   * Data blocks so far that the tool called the same although no backup of the base can hold them, because it was
   * smaller then. thin_delta knows no sizes, so this is expected, and corrected.
   */
  readonly beyondBase: () => number
}

const SAME = deltaKinds.indexOf('same')
const LEFT_ONLY = deltaKinds.indexOf('left_only')
const RIGHT_ONLY = deltaKinds.indexOf('right_only')

/**
 * Asks the tools. They run while `batches` is being read.
 *
 * @throws while it is read: what running a tool throws (tool.ts), DM_SNAPSHOT_CHANGED, DM_TOOL_FAILED when its output
 *   is not what it should be
 */
export function toolAnswer(question: ToolQuestion): ToolAnswer {
  const { metadata, base, target, signal } = question
  const answered = { beyondBase: 0 }
  const pinned = base === undefined ? [target] : [base, target]
  return {
    capacityBytes: target.sizeBytes,
    batches: metadata.whileUnchanged(extentsOf(question, answered), pinned, signal),
    beyondBase: () => answered.beyondBase
  }
}

async function* extentsOf(
  question: ToolQuestion,
  answered: { beyondBase: number }
): AsyncGenerator<ExtentBatch, boolean> {
  const tool: ToolName = question.base === undefined ? 'thin_dump' : 'thin_delta'
  try {
    const { batches } =
      question.base === undefined ? await allocatedBy(question) : await changedBy(question, question.base, answered)
    yield* batches
  } catch (error) {
    if (!(error instanceof XmlInvalid)) throw error
    throw misprinted(tool, error.message, error)
  }
  // Its XML has no times, so it does not show which device was written to.
  return false
}

async function changedBy(
  { metadata, target, startingOffset, command, signal }: ToolQuestion,
  base: ToolDevice,
  answered: { beyondBase: number }
): Promise<ExtentStream> {
  const devices = ['--thin1', String(base.device.id), '--thin2', String(target.device.id)]
  const { words, descriptor } = viewOf(metadata, command)
  const output = toolOutput('thin_delta', [...devices, ...words], { command, signal, descriptor })
  const { header, batches } = await readDeltaXml(output, { name: 'the output of thin_delta' })
  checkHeader('thin_delta', header, metadata)
  if (header.left.deviceId !== base.device.id || header.right.deviceId !== target.device.id) {
    throw misprinted('thin_delta', 'it compares other devices than it was asked about')
  }
  const { sizeBytes } = target
  const end = Math.ceil(sizeBytes / header.dataBlockBytes)
  const baseEnd = base.sizeBytes < sizeBytes ? Math.floor(base.sizeBytes / header.dataBlockBytes) : end
  const checked = checkMapped(batches, metadata.path, base, target)
  const counted = countSame(checked, baseEnd, end, answered)
  return changedExtentsOf(counted, header, { sizeBytes, baseSizeBytes: base.sizeBytes, startingOffset })
}

async function allocatedBy({ metadata, target, startingOffset, command, signal }: ToolQuestion): Promise<ExtentStream> {
  const { device, sizeBytes } = target
  const { words, descriptor } = viewOf(metadata, command)
  const output = toolOutput('thin_dump', ['--dev-id', String(device.id), ...words], { command, signal, descriptor })
  const isWanted = (id: number) => id === device.id
  const { header, batches } = await readDumpXml(output, { name: 'the output of thin_dump', isWanted })
  checkHeader('thin_dump', header, metadata)
  return allocatedExtentsOf(batches, device.id, header, { sizeBytes, startingOffset })
}

/**
 * What a tool reads: for a device the very one that is open here, because its name may lead to another by now. With
 * words before the tool's, descriptors may not reach it (sudo closes them); then it gets the name. An absolute path is
 * never taken for an option.
 */
function viewOf(
  { view, path, openDevice, descriptor }: PoolMetadata,
  command: ToolCommand
): { words: string[]; descriptor?: number } {
  const options = view === 'metadata-snapshot' ? ['-m'] : []
  if (openDevice && command.length === 0) return { words: [...options, DESCRIPTOR_PATH], descriptor }
  return { words: [...options, resolve(path)] }
}

/** Checks that the pool's clock and transaction are those of the view: otherwise the tool has read another one. */
function checkHeader(tool: ToolName, header: PoolXmlHeader, { superblock, path }: PoolMetadata): void {
  const { time, transactionId, dataBlockBytes } = superblock
  if (header.time === time && header.transactionId === transactionId && header.dataBlockBytes === dataBlockBytes) {
    return
  }
  throw new DeltamapperError(
    'DM_SNAPSHOT_CHANGED',
    `${tool} has read another state of ${path} (pool time ${header.time}, transaction ${header.transactionId}) than was meant (${time}, ${transactionId})`,
    'ask again from the beginning'
  )
}

/**
 * Lets runs pass, and checks at the end that their blocks add up to what the device details say that both devices map.
 *
 * @throws DM_METADATA_DAMAGED
 */
async function* checkMapped(
  batches: AsyncIterable<DeltaRunBatch>,
  path: string,
  base: ToolDevice,
  target: ToolDevice
): AsyncGenerator<DeltaRunBatch> {
  let [inBase, inTarget] = [0, 0]
  for await (const batch of batches) {
    const { count, kinds, lengths } = batch
    for (let i = 0; i < count; i++) {
      if (kinds[i] !== RIGHT_ONLY) inBase += lengths[i]
      if (kinds[i] !== LEFT_ONLY) inTarget += lengths[i]
    }
    yield batch
  }
  for (const [{ device }, found] of [
    [base, inBase],
    [target, inTarget]
  ] as const) {
    const { mappedBlocks } = device.details
    if (found === mappedBlocks) continue
    const what = `thin_delta finds ${found} data blocks in the tree below it, and the details of its device say ${mappedBlocks}`
    throw damaged(path, device.root, what)
  }
}

/** Counts the blocks from `begin` to `end` that are called the same. */
async function* countSame(
  batches: AsyncIterable<DeltaRunBatch>,
  begin: number,
  end: number,
  answered: { beyondBase: number }
): AsyncGenerator<DeltaRunBatch> {
  for await (const batch of batches) {
    const { count, kinds, begins, lengths } = batch
    for (let i = 0; i < count; i++) {
      if (kinds[i] !== SAME) continue
      answered.beyondBase += Math.max(0, Math.min(begins[i] + lengths[i], end) - Math.max(begins[i], begin))
    }
    yield batch
  }
}

function misprinted(tool: ToolName, what: string, cause?: unknown): DeltamapperError {
  return new DeltamapperError(
    'DM_TOOL_FAILED',
    `${tool} has printed unexpected output: ${what}`,
    'report it with the version of the tool; the native engine needs no tools',
    { cause }
  )
}
