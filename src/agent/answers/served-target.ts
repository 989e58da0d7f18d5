/**
 * What the catalog is told of the snapshots of an answer before its first message leaves, and what it is asked about them.
 *
 * A base that was served once must still be what it was then: a backup holds what it held. What was never served may have been trimmed
 * without a trace; that is said in the log and by `doctor`, and answered, unless `strictBases` says otherwise. An answer that goes on from an
 * offset must be about what it began with.
 */
import type { Logger } from 'pino'
import { DeltamapperError } from '../../errors.ts'
import type { Catalog } from '../catalog/catalog.ts'
import {
  checkBase,
  checkResumed,
  type KnownSnapshot,
  resumeRefused,
  type ServedTarget
} from '../catalog/fingerprint.ts'
import { checkSinceWentBack, type WentBack } from '../catalog/pool-clocks.ts'
import type { ServedRecord } from '../catalog/served-targets.ts'
import { PoolClockLooks } from './pool-clock-looks.ts'
import type { SeenDevice, SeenDevices } from '../walks/thin-walk.ts'

/** What is known of live pools beside their metadata, and what is to be remembered of them. */
export interface DeviceKnowledge {
  /** Told which devices a walk is about; no message arrives before this has resolved, and none if it rejects. */
  check(seen: SeenDevices): Promise<void>
}

/**
 * What the catalog knows of the devices that walks are about.
 *
 * @param readDeadlineMs how long one request to a metadata device may take, in milliseconds
 * @param strictBases whether a base that was never served is refused
 */
export function catalogKnowledge(
  catalog: Catalog,
  logger: Logger,
  { readDeadlineMs, strictBases = false }: { readDeadlineMs?: number; strictBases?: boolean } = {}
): DeviceKnowledge {
  const clocks = new PoolClockLooks(catalog, readDeadlineMs)
  return {
    /**
     * @throws DM_POOL_WENT_BACK, DM_BASE_CHANGED, DM_BASE_UNRECORDED, DM_RESUME_REFUSED, DM_VOLUMES_DIFFER, DM_ORDER_REVERSED, and what
     *   the catalog throws
     */
    async check({ base, target, resumed }) {
      const [was, served] = [base && servedTarget(base), servedTarget(target)]
      const wentBack = await clocks.look(target.snapshot)
      if (resumed) checkGoesOn(await catalog.findServed(served), served, wentBack)
      // Answered about since the pool went back, by whichever clock.
      const at = Math.max(Date.now(), (wentBack?.at ?? 0) + 1)
      if (was) {
        const records = await catalog.findServed(was)
        checkSinceWentBack(was.handle, records, wentBack)
        checkBaseOnRecord(records, was, { resumed, strictBases }, logger)
        await checkLineage(catalog, was, served)
        await catalog.remember(was, at, 'base')
      }
      await catalog.remember(served, at)
    }
  }
}

/** @throws DM_RESUME_REFUSED */
function checkGoesOn(records: readonly ServedRecord[], target: ServedTarget, wentBack: WentBack | undefined): void {
  checkResumed(records, target)
  if (wentBack === undefined || records.every(({ firstServedAt }) => firstServedAt > wentBack.at)) return
  throw resumeRefused(target.handle, `its pool went on from an earlier state since it was begun: ${wentBack.how}`)
}

/** @throws DM_BASE_CHANGED, DM_BASE_UNRECORDED, DM_RESUME_REFUSED */
function checkBaseOnRecord(
  records: readonly KnownSnapshot[],
  base: ServedTarget,
  { resumed, strictBases }: { resumed: boolean; strictBases: boolean },
  logger: Logger
): void {
  const { handle } = base
  if (checkBase(records, base) === 'unchanged') return
  if (strictBases) {
    throw new DeltamapperError(
      'DM_BASE_UNRECORDED',
      `${handle} was never served here, or was forgotten: nothing proves that it holds what the backup of it does`,
      'take a full backup through this agent; `strictBases: false` answers for such bases'
    )
  }
  if (resumed && records.length === 0) throw resumeRefused(handle, 'no answer was begun with it as base')
  logger.warn(
    { base: handle, code: 'DM_BASE_UNRECORDED' },
    'the base was never served here: nothing proves that it was not trimmed since it was taken'
  )
}

async function checkLineage(catalog: Catalog, base: ServedTarget, target: ServedTarget): Promise<void> {
  if (base.identity === target.identity) return
  const relation = await catalog.lineage(base, target)
  if (relation === 'different-volumes') {
    throw new DeltamapperError(
      'DM_VOLUMES_DIFFER',
      `${base.handle} and ${target.handle} were taken of different volumes, the catalog says`,
      'compare snapshots of one volume'
    )
  }
  if (relation === 'after') {
    throw new DeltamapperError(
      'DM_ORDER_REVERSED',
      `base ${base.handle} was taken after target ${target.handle}, the catalog says`,
      'ask the other way round'
    )
  }
}

/** A snapshot without an identity of its own is told by its place in its pool and the pool's clock at its creation. */
export function servedTarget({
  snapshot,
  transactionId,
  fingerprint
}: Pick<SeenDevice, 'snapshot' | 'transactionId'> & {
  fingerprint: Pick<SeenDevice['fingerprint'], 'creationTime' | 'mappedBlocks'>
}): ServedTarget {
  const { handle, identity, metadataPath, poolIdentity: pool = metadataPath, thinId, volume, sizeBytes } = snapshot
  const { creationTime, mappedBlocks } = fingerprint
  const placeIn = (where: string) => `${where} thin ${thinId} created at ${creationTime}`
  return {
    handle,
    identity: identity ?? placeIn(pool),
    formerIdentity: identity === undefined ? undefined : placeIn(metadataPath),
    formerPlace: identity === undefined && pool !== metadataPath ? placeIn(metadataPath) : undefined,
    ...{ pool, volume, thinId, creationTime, transactionId, mappedBlocks, sizeBytes }
  }
}
