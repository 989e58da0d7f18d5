/**
 * The tools as an engine, seen from the main thread: it checks their versions at the start, holds a metadata snapshot
 * for them on pools in use, and counts the results of their checks.
 */
import { isDeepStrictEqual } from 'node:util'
import type { Logger } from 'pino'
import { openPoolMetadata, sameFingerprint } from '../../devicemapper/thin/pool-metadata.ts'
import { describeDifference } from '../../devicemapper/tools/cross-check.ts'
import { checkTool, type ToolCommand } from '../../devicemapper/tools/tool.ts'
import { describeVersion } from '../../devicemapper/tools/tool-version.ts'
import { defect, DeltamapperError } from '../../errors.ts'
import type { EngineReport, ToolsRequested } from '../../devicemapper/tools/engine-answer.ts'
import type { MetadataSnapshotLease, MetadataSnapshotLeases } from '../leases/metadata-snapshot-lease.ts'
import type { SeenDevices } from './seen-devices.ts'
import type { WalkRequest } from './thin-walk.ts'

/**
 * The longest that a check waits for another process's metadata snapshot: the answer's end waits for the check.
 * Milliseconds.
 */
const CHECK_WAITS_MS = 5000

/** Results of checks since the start. */
export interface CheckCounts {
  /** The tools agreed. */
  agreed: number
  /** They disagreed: the answer ended with DM_ENGINES_DISAGREE. */
  disagreed: number
  /** They gave no answer: the client got our own, unchecked. */
  unchecked: number
  /** Data blocks beyond a smaller base that thin_delta called the same, as it always does. */
  sameBeyondBase: number
}

export class ToolEngine {
  readonly requested: ToolsRequested
  readonly counts: CheckCounts = { agreed: 0, disagreed: 0, unchecked: 0, sameBeyondBase: 0 }
  readonly #leases: MetadataSnapshotLeases | undefined
  readonly #logger: Logger

  private constructor(requested: ToolsRequested, leases: MetadataSnapshotLeases | undefined, logger: Logger) {
    this.requested = requested
    this.#leases = leases
    this.#logger = logger
  }

  /**
   * Asks the tools for their versions, once. (Restart the agent after installing others.)
   *
   * @param leases left out if no pool in use is served
   * @throws DM_TOOL_MISSING, DM_TOOL_UNFIT, DM_TOOL_FAILED
   */
  static async start(
    engine: ToolsRequested['engine'],
    command: ToolCommand,
    leases: MetadataSnapshotLeases | undefined,
    logger: Logger
  ): Promise<ToolEngine> {
    const [delta, dump] = await Promise.all([checkTool('thin_delta', command), checkTool('thin_dump', command)])
    const versions = { thin_delta: describeVersion(delta), thin_dump: describeVersion(dump) }
    logger.info({ engine, ...versions }, 'the tools have a part in answers')
    return new ToolEngine({ engine, command }, leases, logger)
  }

  /**
   * Holds a metadata snapshot that has the devices as they were seen, until the signal aborts.
   *
   * @throws what taking a lease throws; DM_SNAPSHOT_CHANGED when the devices do not stay as they are
   */
  async hold(
    { base, target }: Pick<SeenDevices, 'base' | 'target'>,
    signal: AbortSignal
  ): Promise<MetadataSnapshotLease> {
    const { pool, metadataDevice, handle } = target.snapshot
    if (this.#leases === undefined || pool === undefined) {
      throw defect(`the pool of ${handle} is not known`)
    }
    const names = [base, target].flatMap((each) => (each === undefined ? [] : each.snapshot.handle))
    const purpose = `${base === undefined ? 'thin_dump' : 'thin_delta'} of ${names.join(' and ')}`
    const waiting = this.requested.engine === 'both' ? { waitMs: CHECK_WAITS_MS } : {}
    // An existing one may be older than the snapshots in question.
    for (const suffices of [() => true, () => false]) {
      const lease = await this.#leases.acquire(pool, { purpose, signal, suffices, ...waiting })
      const isOfPool = isDeepStrictEqual(lease.pool.metadataDevice, metadataDevice)
      if (isOfPool && (await shows(lease, { base, target }))) return lease
      await lease.release()
    }
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `${names.join(' or ')} was written to, trimmed or replaced while it was looked at`,
      'ask again from the beginning'
    )
  }

  /** Counts the result of a check, and logs what an operator must look at. */
  report({ base, target }: Pick<WalkRequest, 'base' | 'target'>, { outcome, beyondBase }: EngineReport): void {
    this.counts[outcome.check]++
    this.counts.sameBeyondBase += beyondBase
    const about = { base: base?.handle, target: target.handle, sameBeyondBase: beyondBase, checks: { ...this.counts } }
    if (outcome.check === 'agreed') {
      this.#logger.debug({ ...about, extents: outcome.extents }, 'the tools agree')
    } else if (outcome.check === 'disagreed') {
      const { first } = outcome
      this.#logger.error(
        { ...about, code: 'DM_ENGINES_DISAGREE', first: describeDifference(first) },
        'the tools disagree'
      )
    } else {
      const { code, message } = outcome.why
      this.#logger.warn({ ...about, code, why: message }, 'an answer could not be checked with the tools')
    }
  }
}

/** Whether a metadata snapshot has the devices as they were seen. */
async function shows(
  { pool, heldRoot }: MetadataSnapshotLease,
  { base, target }: Pick<SeenDevices, 'base' | 'target'>
): Promise<boolean> {
  const held = await openPoolMetadata(pool.metadataPath, { device: pool.metadataDevice })
  try {
    if (held.view !== 'metadata-snapshot' || held.heldRoot !== heldRoot) return false
    for (const seen of base === undefined ? [target] : [base, target]) {
      const device = await held.device(seen.snapshot.thinId)
      if (!sameFingerprint(await held.fingerprint(device), seen.fingerprint)) return false
    }
    return true
  } catch (error) {
    if (error instanceof DeltamapperError && error.code === 'DM_DEVICE_NOT_FOUND') return false
    throw error
  } finally {
    await held.close()
  }
}
