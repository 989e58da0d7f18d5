/**
 * What the catalog is told of a snapshot before the first message about it leaves, and what it is asked about a base.
 *
 * A base that was served once must still be what it was then: a backup holds what it held. What was never served may have been trimmed
 * without a trace; that is said in the log, and answered.
 */
import type { Logger } from 'pino'
import { DeltamapperError } from '../errors.ts'
import type { Catalog } from './catalog/catalog.ts'
import { checkBase, type ServedTarget } from './catalog/fingerprint.ts'
import { checkSinceWentBack, type WentBack } from './catalog/pool-clocks.ts'
import { PoolClockLooks } from './pool-clock-looks.ts'
import type { KnownDevices, SeenDevice, SeenDevices } from './walk.ts'
import type { DeviceKnowledge } from './walkers.ts'

/**
 * What the catalog knows of the devices that walks are about.
 *
 * @param readDeadlineMs how long one request to a metadata device may take, in milliseconds
 */
export function catalogKnowledge(catalog: Catalog, logger: Logger, readDeadlineMs?: number): DeviceKnowledge {
  const clocks = new PoolClockLooks(catalog, readDeadlineMs)
  return {
    async check(seen) {
      const wentBack = await clocks.look(seen.target.snapshot)
      return checkAndRemember(catalog, seen, wentBack, logger)
    },
    rememberPristine(device) {
      // It saves reading the tree again, and nothing depends on it.
      catalog.markPristine(servedTarget(device)).catch((error: unknown) => {
        logger.warn({ err: error }, 'could not record that a snapshot was never written to')
      })
    }
  }
}

/**
 * Checks a walk's base against the catalog, and records its target there, durably.
 *
 * @throws DM_POOL_WENT_BACK, DM_BASE_CHANGED, DM_VOLUMES_DIFFER, DM_ORDER_REVERSED, and what the catalog throws
 */
async function checkAndRemember(
  catalog: Catalog,
  { base, target }: SeenDevices,
  wentBack: WentBack | undefined,
  logger: Logger
): Promise<KnownDevices> {
  const served = servedTarget(target)
  let baseIsPristine = false
  if (base) {
    const now = servedTarget(base)
    const recorded = await catalog.findServed(now)
    checkSinceWentBack(now.handle, recorded, wentBack)
    if (checkBase(recorded, now) === 'unrecorded') {
      logger.warn(
        { base: now.handle },
        'the base was never served here: nothing proves that it was not trimmed since it was taken'
      )
    }
    await checkLineage(catalog, now, served)
    baseIsPristine = await catalog.isPristine(now)
  }
  // Served since the pool went back, by whichever clock.
  await catalog.remember(served, Math.max(Date.now(), (wentBack?.at ?? 0) + 1))
  return { baseIsPristine }
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
export function servedTarget({ snapshot, transactionId, fingerprint }: SeenDevice): ServedTarget {
  const { handle, identity, metadataPath, poolIdentity: pool = metadataPath, thinId, volume, sizeBytes } = snapshot
  return {
    ...fingerprint,
    handle,
    identity: identity ?? `${pool} thin ${thinId} created at ${fingerprint.creationTime}`,
    pool,
    volume,
    thinId,
    transactionId,
    sizeBytes
  }
}
