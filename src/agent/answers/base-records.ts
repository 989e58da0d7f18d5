/**
 * The records of bases on this node: files in a folder, and what the catalog knows of the snapshots behind them.
 *
 *     answer ends ─▶ file on disk (walks/record-keeping.ts) ─▶ in the catalog ─▶ OK leaves ─▶ the snapshot may go
 *
 * A file that the catalog does not name is not used: whether its snapshot stayed read-only until its end is not known.
 */
import { randomBytes } from 'node:crypto'
import { access, mkdir, readdir, rm, stat } from 'node:fs/promises'
import { uptime } from 'node:os'
import { join } from 'node:path'
import type { Logger } from 'pino'
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { deviceInstance } from '../../devicemapper/block-queue.ts'
import { parsePoolStatus } from '../../devicemapper/thin/status.ts'
import { DeltamapperError } from '../../errors.ts'
import { type BaseRetention, recordsToRemove } from '../catalog/base-retention.ts'
import { type BaseKey, type BaseLook, type KnownBase, type PoolLook, refuse } from '../catalog/bases.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { RecordOutcome, RecordWanted } from '../walks/record-keeping.ts'
import type { SeenDevice } from '../walks/seen-devices.ts'
import type { Snapshot } from '../walks/snapshot.ts'
import type { RecordedBase } from '../walks/thin-walk.ts'

export interface BaseRecordsOptions {
  readonly catalog: Pick<Catalog, 'bases'>
  readonly deviceMapper: Pick<DeviceMapper, 'status'>
  /** Where records are, and nothing else. */
  readonly folder: string
  readonly retention: BaseRetention
  readonly logger: Pick<Logger, 'info' | 'warn'>
  /** Which activation of its pool a device is; by default as sysfs says. */
  readonly instanceOf?: typeof deviceInstance
}

/** Names of records end so; what is being written ends in `.part`. */
const RECORD_SUFFIX = '.base'
/** What comes back in parts begins so, and ends in `.part`. */
export const LENT_PREFIX = 'lent.'
/** Milliseconds after which no further part is expected. */
const LENT_MS = 3_600_000

export class BaseRecords {
  readonly folder: string
  readonly #catalog: Pick<Catalog, 'bases'>
  readonly #deviceMapper: Pick<DeviceMapper, 'status'>
  readonly #retention: BaseRetention
  readonly #logger: Pick<Logger, 'info' | 'warn'>
  readonly #instanceOf: typeof deviceInstance
  /** Snapshots whose record could not be kept, which is said once of each. */
  readonly #saidNotKept = new Set<string>()
  /** What became of questions about bases that are gone, since the start. */
  readonly counts = { answered: 0, refused: 0, notKept: 0 }

  constructor({ catalog, deviceMapper, folder, retention, logger, instanceOf = deviceInstance }: BaseRecordsOptions) {
    this.#catalog = catalog
    this.#deviceMapper = deviceMapper
    this.folder = folder
    this.#retention = retention
    this.#logger = logger
    this.#instanceOf = instanceOf
  }

  /** The most bytes that all records may have together; 0 where none are kept. */
  get maxBytes(): number {
    return this.#retention.keep === 0 ? 0 : this.#retention.maxBytes
  }

  /** Makes the folder, and removes what an earlier agent left unfinished. @throws DM_CONFIG_INVALID */
  async start(): Promise<void> {
    try {
      await mkdir(this.folder, { recursive: true, mode: 0o700 })
      for (const each of await readdir(this.folder)) {
        if (each.endsWith('.part')) await rm(join(this.folder, each), { force: true })
      }
    } catch (cause) {
      throw new DeltamapperError(
        'DM_CONFIG_INVALID',
        `the folder of base records, ${this.folder}, cannot be used: ${(cause as Error).message}`,
        'name another in bases.folder, or set bases.keep to 0',
        { cause }
      )
    }
    await this.tidy()
  }

  /** A pool at this moment, as far as records depend on it. */
  async poolLook({ poolDevice }: Pick<Snapshot, 'poolDevice'>): Promise<PoolLook> {
    const uptimeMs = uptimeNow()
    const instance = poolDevice === undefined ? '' : await this.#instanceOf(poolDevice).catch(() => '')
    return { instance, uptimeMs }
  }

  /** A snapshot as it was seen; undefined for one that a record can never stand for. */
  async look({ snapshot, fingerprint }: Pick<SeenDevice, 'snapshot' | 'fingerprint'>): Promise<BaseLook | undefined> {
    const { madeReadOnly, writable, externalOrigin, poolIdentity } = snapshot
    // Whoever made it with dmsetup has no word for read-only. Where an origin shows, pairs do not tell all.
    if (madeReadOnly === undefined || poolIdentity === undefined || externalOrigin) return undefined
    const canBeWritten = writable
      ? 'its device could be written to'
      : madeReadOnly
        ? undefined
        : 'it was not made read-only'
    const { root, rootChecksum } = fingerprint
    return { ...(await this.poolLook(snapshot)), writable: canBeWritten, root, rootChecksum }
  }

  /** The record that a base's handle leads to; undefined if nothing was served by it. @throws DM_BASE_RECORD_… */
  async find(
    handle: string,
    pool: string
  ): Promise<(RecordedBase & Pick<KnownBase, 'identity' | 'record'>) | undefined> {
    const known = await this.#catalog.bases.byHandle(handle, pool).catch((error: unknown) => {
      this.counts.refused++
      throw error
    })
    if (known?.record === undefined) return undefined
    const { identity, record, thinId, creationTime, transactionId, mappedBlocks, sizeBytes } = known
    const path = join(this.folder, record)
    const isThere = await access(path).then(
      () => true,
      () => false
    )
    if (!isThere) {
      await this.#catalog.bases.lost(known, `its record ${record} is not in ${this.folder}`)
      this.counts.refused++
      throw refuse('DM_BASE_RECORD_NONE', handle, 'the file of its record is missing')
    }
    return {
      ...{ handle, path, identity, record, pool },
      ...{ thinId, creationTime, transactionId, mappedBlocks, sizeBytes }
    }
  }

  /**
   * A pool that could not commit has forgotten what it was told last, perhaps discards that were passed down.
   *
   * @throws DM_BASE_RECORD_NEEDS_CHECK
   */
  async checkPool({ pool }: Pick<Snapshot, 'pool'>, handle: string): Promise<void> {
    if (pool === undefined) throw refuse('DM_BASE_RECORD_NEEDS_CHECK', handle, 'its pool is not known')
    const [row] = await this.#deviceMapper.status(pool)
    const status = row && parsePoolStatus(row.params)
    if (status?.state === 'working' && status.needsCheck === false) return
    throw refuse('DM_BASE_RECORD_NEEDS_CHECK', handle, 'its pool has failed, or needs a check')
  }

  /** The record that an answer is to leave; undefined if there is one, or none may stand for its target. */
  async wanted(target: BaseKey, base: BaseKey | undefined): Promise<RecordWanted | undefined> {
    if (this.#retention.keep === 0) return undefined
    const known = await this.#catalog.bases.find(target)
    if (known === undefined || known.spoilt !== undefined || known.record !== undefined) return undefined
    const knownBase = base && (await this.#catalog.bases.find(base))
    return {
      folder: this.folder,
      name: newRecordName(known),
      maxBytes: this.#retention.maxBytes,
      poolIdentity: target.pool,
      watchedSince: known.firstServedAt,
      baseRecord: knownBase?.spoilt === undefined ? knownBase?.record : undefined
    }
  }

  /** What became of a record, before its answer ends OK. Never rejects. */
  async kept(
    { pool, identity }: BaseKey,
    handle: string,
    { name }: RecordWanted,
    outcome: RecordOutcome
  ): Promise<void> {
    try {
      if ('notKept' in outcome) {
        this.#sayNotKept(handle, outcome.notKept)
        await this.#catalog.bases.notKept({ pool, identity }, outcome.notKept)
        return
      }
      const isOfUse = await this.#catalog.bases.kept({ pool, identity, record: name, bytes: outcome.bytes })
      if (isOfUse) await this.tidy()
      else await rm(join(this.folder, name), { force: true })
    } catch (error) {
      this.#sayNotKept(handle, (error as Error).message)
    }
  }

  /** Removes a record. @returns whether there was one */
  async drop(key: BaseKey, why: string): Promise<boolean> {
    const known = await this.#catalog.bases.find(key)
    if (known?.record === undefined) return false
    await this.#catalog.bases.lost(key, why)
    await rm(join(this.folder, known.record), { force: true })
    return true
  }

  /** Removes what is beyond the limits, files that nobody knows and are old, and rows that are of no use any more. */
  async tidy(now = Date.now()): Promise<void> {
    const all = await this.#catalog.bases.list()
    const recorded = all.filter(({ record }) => record !== undefined)
    for (const each of recordsToRemove(recorded, this.#retention, now)) {
      await this.drop(each, 'its record made room for others (bases.keep, bases.days, bases.maxBytes)')
    }
    const spoilt = recorded.filter((each) => each.spoilt !== undefined && each.goneAt !== undefined)
    for (const each of spoilt) await this.drop(each, 'its record was of no use any more')
    const old = now - 2 * this.#retention.keptMs
    const useless = all.filter((each) => each.goneAt !== undefined && each.firstServedAt < old && !each.record)
    if (useless.length > 0) await this.#catalog.bases.forget(useless)
    await this.#removeStrayFiles(new Set(recorded.map(({ record }) => record)), now)
  }

  /** Files of a catalog that was lost can still be used by hand, for as long as records are kept. */
  async #removeStrayFiles(known: ReadonlySet<string | undefined>, now: number): Promise<void> {
    for (const each of await readdir(this.folder)) {
      const isLent = each.startsWith(LENT_PREFIX) && each.endsWith('.part')
      if (!isLent && (!each.endsWith(RECORD_SUFFIX) || known.has(each))) continue
      const path = join(this.folder, each)
      const status = await stat(path).catch(() => undefined)
      const keptMs = isLent ? LENT_MS : this.#retention.keptMs
      if (status && now - status.mtimeMs > keptMs) await rm(path, { force: true })
    }
  }

  #sayNotKept(handle: string, why: string): void {
    this.counts.notKept++
    if (this.#saidNotKept.has(handle)) return
    if (this.#saidNotKept.size >= 10_000) this.#saidNotKept.clear()
    this.#saidNotKept.add(handle)
    this.#logger.warn({ snapshot: handle, why }, 'its record could not be kept: the snapshot has to stay to be a base')
  }
}

/** Of the file of a record; no other has it. */
export function newRecordName({ identity }: BaseKey): string {
  const name = identity.replaceAll(/[^A-Za-z0-9-]/g, '-').slice(0, 100)
  return `${name}.${randomBytes(4).toString('hex')}${RECORD_SUFFIX}`
}

/** Milliseconds since the machine was started. */
export function uptimeNow(): number {
  return Math.floor(uptime() * 1000)
}
