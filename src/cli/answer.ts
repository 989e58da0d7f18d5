/**
 * Where an answer comes from: an agent (or any CSI SnapshotMetadata server) at an endpoint, or a pool's metadata straight from a file or
 * device. Either way it is an ExtentStream, and what follows need not know.
 */
import type { ExtentStream } from '../devicemapper/extents.ts'
import { endpointAddress } from './endpoint.ts'
import { UsageError } from './failure.ts'
import { thinDeviceId } from './option-values.ts'
import { describeView, openViews } from './pool-views.ts'
import { humanSize } from './quantities.ts'

/** Snapshot handles for an endpoint, thin device ids for metadata. Without a base: what the target has allocated. */
export interface Question {
  base?: string
  target: string
}

/** What the command line may say of it. Sizes and offsets in bytes. */
export interface AnswerOptions {
  endpoint?: string
  metadata?: string
  size?: number
  baseSize?: number
  liveRoot?: boolean
  startingOffset?: number
  maxResults?: number
}

/** Says on the side, in a line of its own, what the answer rests on. */
export type Remark = (text: string) => void

/**
 * Asks the question and hands the answer to `use`; what was opened for it is closed afterwards.
 *
 * @throws UsageError where the question does not suit the source; whatever the source throws
 */
export async function withAnswer(
  question: Question,
  options: AnswerOptions,
  signal: AbortSignal,
  remark: Remark,
  use: (answer: ExtentStream) => Promise<void>
): Promise<void> {
  if (options.metadata === undefined) await fromEndpoint(question, options, signal, use)
  else await fromMetadata(options.metadata, question, options, signal, remark, use)
}

async function fromEndpoint(
  { base, target }: Question,
  { endpoint, size, baseSize, liveRoot, startingOffset = 0, maxResults = 0 }: AnswerOptions,
  signal: AbortSignal,
  use: (answer: ExtentStream) => Promise<void>
): Promise<void> {
  const stray = Object.entries({ '--size': size, '--base-size': baseSize, '--live-root': liveRoot })
  for (const [option, value] of stray) {
    if (value !== undefined) {
      throw new UsageError(
        `${option} goes with --metadata only: an endpoint knows its snapshots`,
        `leave it out, or name the metadata with --metadata FILE`
      )
    }
  }
  const address = endpointAddress(endpoint)
  // gRPC takes longer to load than a small answer from metadata to give.
  const { connect } = await import('../grpc/client.ts')
  const client = connect(address)
  try {
    const request = { startingOffset, maxResults, signal }
    await use(
      base === undefined
        ? await client.allocated({ snapshotId: target, ...request })
        : await client.delta({ baseSnapshotId: base, targetSnapshotId: target, ...request })
    )
  } finally {
    client.close()
  }
}

async function fromMetadata(
  path: string,
  { base, target }: Question,
  { size, baseSize, liveRoot = false, startingOffset = 0 }: AnswerOptions,
  signal: AbortSignal,
  remark: Remark,
  use: (answer: ExtentStream) => Promise<void>
): Promise<void> {
  const targetId = deviceId(target)
  const baseId = base === undefined ? undefined : deviceId(base)
  const views = await openViews(path, liveRoot)
  try {
    const { metadata } = views
    remark(`reading ${describeView(views)}`)
    const sizeBytes = size ?? (await metadata.mappedEnd(await metadata.device(targetId, signal), signal))
    if (size === undefined) {
      const taken = `${sizeBytes} bytes (${humanSize(sizeBytes)}), the end of its highest mapping`
      remark(`size of ${targetId}: ${taken}; --size says otherwise`)
    }
    if (baseId !== undefined && baseSize === undefined) {
      remark(`size of base ${baseId}: that of target ${targetId}; --base-size says otherwise`)
    }
    const question = { sizeBytes, startingOffset, signal }
    await use(
      baseId === undefined
        ? await metadata.allocated({ deviceId: targetId, ...question })
        : await metadata.delta({ baseId, targetId, baseSizeBytes: baseSize, ...question })
    )
  } finally {
    await views.close()
  }
}

function deviceId(text: string): number {
  const id = thinDeviceId(text)
  if (id === undefined) {
    throw new UsageError(
      `${JSON.stringify(text)} is no thin device id`,
      'with --metadata, snapshots go by the id in their pool, a whole number from 0 to 16777215 (deltamapper inspect lists them)'
    )
  }
  return id
}
