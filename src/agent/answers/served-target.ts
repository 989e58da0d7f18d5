/**
 * What the catalog decides about the devices of a live pool before the first message of an answer leaves
 * (catalog/admission.ts).
 */
import type { Logger } from 'pino'
import type { OpenMedium } from '../../devicemapper/metadata-medium.ts'
import { defect } from '../../errors.ts'
import type { RecordAdmission } from '../catalog/admission.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { ServedTarget } from '../catalog/fingerprint.ts'
import type { BaseRecords } from './base-records.ts'
import { PoolClockLooks } from './pool-clock-looks.ts'
import type { RecordOutcome, RecordWanted } from '../walks/record-keeping.ts'
import type { Snapshot } from '../walks/snapshot.ts'
import type { SeenDevice, SeenDevices } from '../walks/seen-devices.ts'

/** What is known of live pools beside their metadata, and must be remembered of them. */
export interface DeviceKnowledge {
  /**
   * Gets the devices of a walk. No message arrives before this has resolved, and none if it rejects.
   *
   * @param anyVolume whether base and target may be of different volumes
   * @param recorded the record of a base that is gone
   * @returns the record of the target that is to be kept, if one is
   */
  check(seen: SeenDevices, anyVolume?: boolean, recorded?: FoundRecord): Promise<KeptTarget | undefined>
}

/** The record that a base's handle has led to. */
export type FoundRecord = NonNullable<Awaited<ReturnType<BaseRecords['find']>>>

/** A record of the target that is to be kept. */
export interface KeptTarget {
  readonly wanted: RecordWanted
  /** Told what became of it, before the answer ends. */
  readonly kept: (outcome: RecordOutcome) => Promise<void>
}

export interface KnowledgeOptions {
  /** How long one request to a metadata device may take, in milliseconds. */
  readDeadlineMs?: number
  /** Whether a base that was never served is refused. */
  strictBases?: boolean
  /** Records of bases; without them, none are made or used. */
  bases?: BaseRecords | undefined
  /** Who looks at the clocks of pools; by default nobody else does. */
  clocks?: PoolClockLooks
  /** What opens metadata; by default, files and devices of this machine. */
  open?: OpenMedium
  /** Milliseconds since 1970. */
  now?: () => number
}

/** What the catalog knows of the devices that walks are about. */
export function catalogKnowledge(
  catalog: Catalog,
  logger: Logger,
  { readDeadlineMs, strictBases = false, bases, clocks: shared, open, now = Date.now }: KnowledgeOptions = {}
): DeviceKnowledge {
  const clocks = shared ?? new PoolClockLooks(catalog, { deadlineMs: readDeadlineMs, open }, now)
  return {
    /**
     * @throws DM_POOL_WENT_BACK, DM_BASE_CHANGED, DM_BASE_UNRECORDED, DM_BASE_RECORD_…, DM_RESUME_REFUSED,
     *   DM_VOLUMES_DIFFER, DM_ORDER_REVERSED, and what the catalog throws
     */
    async check({ base, target, resumed }, anyVolume = false, recorded) {
      const wentBack = await clocks.look(target.snapshot)
      const asked = { base: base && servedTarget(base), target: servedTarget(target) }
      const looks = bases && { base: base && (await bases.look(base)), target: await bases.look(target) }
      const common = { target: asked.target, resumed, wentBack, anyVolume, looks }
      if (recorded) await admitRecorded(recorded, target.snapshot, common)
      else {
        const admitted = await catalog.served.admit({ ...common, base: asked.base, strictBases }, now())
        if (admitted === 'unrecorded') {
          logger.warn(
            { base: base?.snapshot.handle, code: 'DM_BASE_UNRECORDED' },
            'the base was never served here: nothing proves that it was not trimmed since it was taken'
          )
        }
      }
      return keeping(asked, looks?.target !== undefined)
    }
  }

  async function admitRecorded(
    recorded: FoundRecord,
    target: Snapshot,
    common: Omit<RecordAdmission, 'handle' | 'recorded' | 'pool'>
  ): Promise<void> {
    const { handle } = recorded
    if (!bases) throw defect(`a record of ${handle} is used, and there are none`)
    try {
      await bases.checkPool(target, handle)
      const pool = await bases.poolLook(target)
      await catalog.served.admitFromRecord({ ...common, handle, recorded, pool }, now())
      bases.counts.answered++
    } catch (error) {
      bases.counts.refused++
      throw error
    }
  }

  async function keeping(
    { base, target }: { base: ServedTarget | undefined; target: ServedTarget },
    mayBeRecorded: boolean
  ): Promise<KeptTarget | undefined> {
    const wanted = mayBeRecorded ? await bases?.wanted(target, base) : undefined
    return wanted && { wanted, kept: async (outcome) => bases?.kept(target, target.handle, wanted, outcome) }
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
  const { handle, ownHandle, identity, metadataPath, thinId, volume, sizeBytes } = snapshot
  const pool = snapshot.poolIdentity ?? metadataPath
  const { creationTime, mappedBlocks } = fingerprint
  const placeIn = (where: string) => `${where} thin ${thinId} created at ${creationTime}`
  return {
    handle,
    ownHandle,
    identity: identity ?? placeIn(pool),
    formerIdentity: identity === undefined ? undefined : placeIn(metadataPath),
    formerPlace: identity === undefined && pool !== metadataPath ? placeIn(metadataPath) : undefined,
    ...{ pool, volume, thinId, creationTime, transactionId, mappedBlocks, sizeBytes }
  }
}
