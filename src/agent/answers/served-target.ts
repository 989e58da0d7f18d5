/**
 * What the catalog decides about the devices of a live pool before the first message of an answer leaves
 * (catalog/admission.ts).
 */
import type { Logger } from 'pino'
import type { OpenMedium } from '../../devicemapper/metadata-medium.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { ServedTarget } from '../catalog/fingerprint.ts'
import { PoolClockLooks } from './pool-clock-looks.ts'
import type { SeenDevice, SeenDevices } from '../walks/thin-walk.ts'

/** What is known of live pools beside their metadata, and must be remembered of them. */
export interface DeviceKnowledge {
  /**
   * Gets the devices of a walk. No message arrives before this has resolved, and none if it rejects.
   *
   * @param anyVolume whether base and target may be of different volumes
   */
  check(seen: SeenDevices, anyVolume?: boolean): Promise<void>
}

export interface KnowledgeOptions {
  /** How long one request to a metadata device may take, in milliseconds. */
  readDeadlineMs?: number
  /** Whether a base that was never served is refused. */
  strictBases?: boolean
  /** What opens metadata; by default, files and devices of this machine. */
  open?: OpenMedium
  /** Milliseconds since 1970. */
  now?: () => number
}

/** What the catalog knows of the devices that walks are about. */
export function catalogKnowledge(
  catalog: Catalog,
  logger: Logger,
  { readDeadlineMs, strictBases = false, open, now = Date.now }: KnowledgeOptions = {}
): DeviceKnowledge {
  const clocks = new PoolClockLooks(catalog, { deadlineMs: readDeadlineMs, open }, now)
  return {
    /**
     * @throws DM_POOL_WENT_BACK, DM_BASE_CHANGED, DM_BASE_UNRECORDED, DM_RESUME_REFUSED, DM_VOLUMES_DIFFER,
     *   DM_ORDER_REVERSED, and what the catalog throws
     */
    async check({ base, target, resumed }, anyVolume = false) {
      const wentBack = await clocks.look(target.snapshot)
      const asked = { base: base && servedTarget(base), target: servedTarget(target) }
      const admitted = await catalog.served.admit({ ...asked, resumed, strictBases, wentBack, anyVolume }, now())
      if (admitted === 'unchanged') return
      logger.warn(
        { base: base?.snapshot.handle, code: 'DM_BASE_UNRECORDED' },
        'the base was never served here: nothing proves that it was not trimmed since it was taken'
      )
    }
  }
}

/**
 * A snapshot without an identity of its own is identified by its place in its pool and the pool's clock at its
 * creation.
 */
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
