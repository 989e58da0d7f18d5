/**
 * Where an answer comes from: an agent (or any CSI SnapshotMetadata server) at an endpoint, a pool's metadata straight from a file or
 * device, or what a tool has printed of it. Either way it is an ExtentAnswer, and what follows need not know.
 */
import type { ExtentAnswer } from '../../devicemapper/extents.ts'
import type { Engine } from '../../devicemapper/tools/engine.ts'
import { endpointAddress, endpointTls, type TlsOptions } from '../command-line/endpoint.ts'
import { UsageError } from '../command-line/failure.ts'

/**
 * What the target has allocated, or what changed since the base. They are named by snapshot handles for an endpoint, and by thin device ids
 * for metadata. XML may name them itself.
 */
export interface Question {
  ask: 'allocated' | 'delta'
  base?: string | undefined
  target?: string | undefined
}

/** A question that names everything it is about. */
export interface NamedQuestion {
  base: string | undefined
  target: string
}

/** What the command line may say of it. Sizes and offsets in bytes. */
export interface AnswerOptions extends TlsOptions {
  endpoint?: string
  metadata?: string
  xml?: string
  /** An era: of an era device, what was written to since. */
  since?: number
  /** The store of a classic snapshot, the base; and that of the target. */
  cow?: string
  targetCow?: string
  /** What both stores have is told apart by its old contents. */
  compare?: boolean
  /** Of an era device, where the XML does not say it. */
  blockSize?: number
  size?: number
  baseSize?: number
  /** A base that is gone, by its record. */
  baseRecord?: string
  liveRoot?: boolean
  engine?: Engine
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
  use: (answer: ExtentAnswer) => Promise<void>
): Promise<void> {
  if (options.xml !== undefined) {
    const { answerFromXml } = await import('./xml-answer.ts')
    return answerFromXml(options.xml, question, options, signal, remark, use)
  }
  if (options.cow !== undefined) {
    const { answerFromStores } = await import('./cow-answer.ts')
    return answerFromStores(options.cow, question, options, signal, remark, use)
  }
  if (options.targetCow !== undefined || options.compare !== undefined) {
    throw new UsageError(
      `${options.targetCow === undefined ? '--compare' : '--target-cow'} goes with --cow only`,
      'name the store of the older snapshot with --cow STORE'
    )
  }
  if (options.blockSize !== undefined) {
    throw new UsageError(
      '--block-size goes with --xml only',
      'leave it out, or name what era_invalidate has printed with --xml FILE'
    )
  }
  if (options.since !== undefined) {
    const { answerSince } = await import('./era-answer.ts')
    return answerSince(options.since, question, options, signal, remark, use)
  }
  if (options.baseRecord !== undefined) {
    const { answerFromRecord } = await import('./record-answer.ts')
    return answerFromRecord(options.baseRecord, question, options, signal, remark, use)
  }
  const named = namedQuestion(question, options)
  if (options.metadata !== undefined) {
    const { answerFromPool } = await import('./pool-answer.ts')
    return answerFromPool(options.metadata, named, options, signal, remark, use)
  }
  return fromEndpoint(named, options, signal, use)
}

function namedQuestion({ ask, base, target }: Question, { metadata }: AnswerOptions): NamedQuestion {
  const missing = ask === 'delta' && base === undefined ? 'BASE' : target === undefined ? 'TARGET' : undefined
  if (missing === undefined && target !== undefined) return { base, target }
  throw new UsageError(
    `missing required argument '${missing}'`,
    ask === 'delta' && metadata !== undefined
      ? "name two thin devices, BASE and TARGET; or, where it is an era device's metadata, an era with --since"
      : `see \`deltamapper ${ask} --help\`; only --xml goes without`,
    'DM_ARGUMENT_MISSING'
  )
}

async function fromEndpoint(
  { base, target }: NamedQuestion,
  { endpoint, size, baseSize, liveRoot, engine, startingOffset = 0, maxResults = 0, ...rest }: AnswerOptions,
  signal: AbortSignal,
  use: (answer: ExtentAnswer) => Promise<void>
): Promise<void> {
  const stray = Object.entries({
    '--size': size,
    '--base-size': baseSize,
    '--live-root': liveRoot,
    '--engine': engine
  })
  for (const [option, value] of stray) {
    if (value !== undefined) {
      const where = option === '--live-root' || option === '--engine' ? '--metadata' : '--metadata and --xml'
      throw new UsageError(
        `${option} goes with ${where} only: an endpoint knows its snapshots`,
        `leave it out, or name the metadata with --metadata FILE`
      )
    }
  }
  const tls = await endpointTls(rest)
  const address = endpointAddress(endpoint, { tls: tls !== undefined })
  // gRPC takes longer to load than a small answer from metadata to give.
  const [{ connect }, { socketAwaited }] = await Promise.all([
    import('../../grpc/client.ts'),
    import('../command-line/awaited-socket.ts')
  ])
  await socketAwaited(address)
  const client = connect(address, { tls })
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
