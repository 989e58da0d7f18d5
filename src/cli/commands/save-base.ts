/**
 * `deltamapper base save`: from a pool's metadata to a record on disk.
 */
import { WholeRecordSink } from '../../devicemapper/thin/record-sinks.ts'
import { BaseRecordWriter } from '../../devicemapper/thin/base-record/writer.ts'
import { checkRecordable } from '../../devicemapper/thin/base-record/trust.ts'
import { DeltamapperError } from '../../errors.ts'
import { systemRemedy } from '../../system-errors.ts'
import { deviceId } from '../command-line/option-values.ts'
import { interruptible } from '../command-line/interruption.ts'
import { describeView, openViews, type PoolViews } from '../inspection/pool-views.ts'
import { counted, humanSize } from '../command-line/quantities.ts'

export interface SaveOptions {
  metadata: string
  to: string
  /** Bytes. */
  size?: number
  liveRoot?: boolean
}

/** @throws DM_OUTPUT_FAILED, DM_BASE_CHANGED, and what reading metadata throws */
export async function saveBase(
  idText: string,
  { metadata: path, to, size, liveRoot = false }: SaveOptions
): Promise<void> {
  const id = deviceId(idText, '--metadata')
  await interruptible(undefined, async (signal) => {
    const views = await openViews(path, liveRoot)
    try {
      process.stderr.write(`deltamapper: reading ${describeView(views)}\n`)
      const { mappedBlocks, bytes, sizeBytes } = await save(views, id, to, size, signal)
      const what = `${counted(mappedBlocks, 'block')} of a device of ${humanSize(sizeBytes)}, in ${humanSize(bytes)}`
      process.stderr.write(`deltamapper: ${to}: ${what}; complete\n`)
    } finally {
      await views.close()
    }
  })
}

async function save(
  { metadata, live }: PoolViews,
  id: number,
  to: string,
  size: number | undefined,
  signal: AbortSignal
) {
  const device = await metadata.device(id, signal)
  const { mappedBlocks, creationTime, transactionId } = device.details
  const sizeBytes = size ?? (await metadata.mappedEnd(device, signal))
  const moment = await metadata.moment(signal)
  checkRecordable(live, moment)
  const { dataBlockBytes } = metadata.superblock
  const writer = await BaseRecordWriter.begin(to, {
    pool: { identity: undefined, dataBlockBytes, dataBlocks: live.dataBlocks, moment },
    device: { id, creationTime, transactionId, mappedBlocks, sizeBytes, identity: undefined, volume: undefined },
    handles: [],
    madeAt: Date.now()
  }).catch(refused(to))
  try {
    const sink = new WholeRecordSink(writer)
    const answer = await metadata.allocated({ deviceId: id, sizeBytes, sink, signal })
    while (!(await answer.batches.next()).done) signal.throwIfAborted()
    if (!answer.isPristine()) throw writtenTo(id)
  } catch (error) {
    await writer.abandon()
    throw error
  }
  if (!(await writer.finish().catch(refused(to)))) throw writtenTo(id)
  return { mappedBlocks, bytes: writer.bytes, sizeBytes }
}

export function refused(path: string): (error: unknown) => never {
  return (cause) => {
    const what = cause instanceof Error ? cause.message : String(cause)
    throw new DeltamapperError(
      'DM_OUTPUT_FAILED',
      `${path} cannot be written: ${what}`,
      systemRemedy(cause, 'the right to write into its folder') ?? 'name a new file, in a folder that exists',
      { cause }
    )
  }
}

function writtenTo(id: number): DeltamapperError {
  return new DeltamapperError(
    'DM_BASE_CHANGED',
    `thin device ${id} has blocks of its own: it is a volume, or was written to since it was taken`,
    'save the record of a snapshot, and keep it read-only'
  )
}
