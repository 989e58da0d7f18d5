/**
 * Where an answer comes from: an agent (or any CSI SnapshotMetadata server) at an endpoint, a pool's metadata in a file
 * or device, or the output of a tool. Either way it is an ExtentAnswer, and the code after it does not depend on the
 * source.
 */
import type { ExtentAnswer } from '../../devicemapper/extents.ts'
import { endpointAddress, endpointTls } from '../command-line/endpoint.ts'
import { oneLine, refuseThinId, UsageError } from '../command-line/failure.ts'
import type { AnswerOptions, NamedQuestion, Question, Remark } from './question.ts'

/**
 * Asks the question and hands the answer to `use`; then closes what was opened for it.
 *
 * @throws UsageError when the question does not suit the source; what the source throws
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
  if (options.baseRecord !== undefined && options.metadata !== undefined) {
    const { answerFromRecord } = await import('./record-answer.ts')
    return answerFromRecord(options.baseRecord, options.metadata, question, options, signal, remark, use)
  }
  if (options.baseRecord !== undefined) {
    const named = await lentQuestion(options.baseRecord, question, options)
    remark(`the agent has the record for ${named.base}`)
    return fromEndpoint(named, options, signal, remark, use)
  }
  const named = namedQuestion(question, options)
  if (options.metadata !== undefined) {
    const { answerFromPool } = await import('./pool-answer.ts')
    return answerFromPool(options.metadata, named, options, signal, remark, use)
  }
  return fromEndpoint(named, options, signal, remark, use)
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

/** Lends an agent the record of a base that is gone. @returns the question, with the handle that the base has there */
async function lentQuestion(
  record: string,
  { base: target, target: more }: Question,
  { endpoint }: AnswerOptions
): Promise<NamedQuestion> {
  if (target === undefined || more !== undefined) {
    throw new UsageError('--base-record takes the place of BASE', 'name TARGET, as SOURCE/NAME, and nothing else')
  }
  refuseThinId(target, 'SOURCE/NAME')
  const [{ lendRecord }, { withAdmin }] = await Promise.all([
    import('./lent-record.ts'),
    import('../command-line/agent-orders.ts')
  ])
  return { base: await withAdmin(endpoint, async (agent) => lendRecord(agent, record)), target }
}

async function fromEndpoint(
  { base, target }: NamedQuestion,
  { endpoint, size, baseSize, liveRoot, engine, startingOffset = 0, maxResults = 0, ...rest }: AnswerOptions,
  signal: AbortSignal,
  remark: Remark,
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
  // Loading gRPC takes longer than a small answer from metadata.
  const [{ connect }, { socketAwaited }] = await Promise.all([
    import('../../grpc/client.ts'),
    import('../command-line/awaited-socket.ts')
  ])
  await socketAwaited(address)
  const client = connect(address, { tls })
  try {
    const request = { startingOffset, maxResults, signal }
    const answer =
      base === undefined
        ? await client.allocated({ snapshotId: target, ...request })
        : await client.delta({ baseSnapshotId: base, targetSnapshotId: target, anyVolume: true, ...request })
    if (answer.remark !== undefined) remark(oneLine(answer.remark))
    await use(answer)
  } finally {
    client.close()
  }
}
