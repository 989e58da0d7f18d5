/**
 * Records that travel with the backups that they belong to: handed out in parts, and taken back when the node's own
 * file is gone.
 *
 * What comes back replaces the *file* only. Whether a record may stand for its snapshot is what the catalog has seen of
 * that, as always. And it must be a record that this very row of the catalog led to: a snapshot can have been another
 * before the row began.
 */
import { open, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { BaseRecordHeader } from '../../devicemapper/thin/base-record/format.ts'
import { readWholeRecord } from '../../devicemapper/thin/base-record/reader.ts'
import { DeltamapperError, invalid } from '../../errors.ts'
import { type AdminRequest, type AdminResponse } from '../../grpc/admin.ts'
import { PART_BYTES } from '../../grpc/record-part.ts'
import { syncFolder } from '../../sync-folder.ts'
import { systemRemedy } from '../../system-errors.ts'
import { LENT_PREFIX, newRecordName } from '../answers/base-records.ts'
import type { KnownBase } from '../catalog/bases.ts'
import type { Catalog } from '../catalog/catalog.ts'

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

export class RecordExchange {
  readonly #bases: Pick<Catalog['bases'], 'find' | 'kept'>
  readonly #folder: string
  readonly #maxBytes: number

  /** @param maxBytes of all records together; 0 where none are kept */
  constructor(bases: Pick<Catalog['bases'], 'find' | 'kept'>, folder: string, maxBytes: number) {
    this.#bases = bases
    this.#folder = folder
    this.#maxBytes = maxBytes
  }

  /** A part of the record of one of these. @throws DM_BASE_RECORD_NONE, or what has spoilt it */
  async read(
    named: readonly KnownBase[],
    { handle, record, offset }: AdminRequest<'readBase'>
  ): Promise<AdminResponse<'readBase'>> {
    const known = record === '' ? named[0] : named.find((each) => each.record === record)
    if (known === undefined) throw unfit('DM_BASE_RECORD_NONE', handle, 'its record was removed meanwhile')
    checkFit(known)
    if (known.record === undefined) {
      throw unfit('DM_BASE_RECORD_NONE', handle, known.notKept ?? 'no answer about it has run to its end')
    }
    try {
      const file = await open(join(this.#folder, known.record))
      try {
        const { size } = await file.stat()
        const part = Buffer.alloc(Math.max(0, Math.min(PART_BYTES, size - offset)))
        const { bytesRead } = part.length > 0 ? await file.read(part, 0, part.length, offset) : { bytesRead: 0 }
        return { record: known.record, recordBytes: size, part: part.subarray(0, bytesRead) }
      } finally {
        await file.close()
      }
    } catch (cause) {
      throw unfit('DM_BASE_RECORD_NONE', handle, `its record cannot be read: ${(cause as Error).message}`, cause)
    }
  }

  /**
   * Takes a part of a record back.
   *
   * @throws DM_ARGUMENT_INVALID for a part that is none; with the last one DM_BASE_RECORD_FOREIGN,
   *   DM_BASE_RECORD_DAMAGED, or what has spoilt its snapshot; DM_BASE_RECORD_NONE where it cannot be kept
   */
  async lend({ lending, offset, part, isLast }: AdminRequest<'lendBase'>): Promise<AdminResponse<'lendBase'>> {
    if (!UUID.test(lending)) throw invalid(`lending is ${JSON.stringify(lending)}`, 'give a UUID')
    if (part.length > PART_BYTES) throw invalid(`a part has ${part.length} bytes`, `give up to ${PART_BYTES}`)
    if (offset + part.length > this.#maxBytes) {
      const why = this.#maxBytes === 0 ? 'bases.keep is 0' : `it has more bytes than bases.maxBytes (${this.#maxBytes})`
      throw unfit('DM_BASE_RECORD_NONE', 'what it stands for', why)
    }
    const path = join(this.#folder, `${LENT_PREFIX}${lending}.part`)
    try {
      await this.#append(path, offset, part, isLast)
      return { handle: isLast ? (await this.#takeBack(path)).handle : '' }
    } catch (error) {
      await rm(path, { force: true })
      throw error
    } finally {
      if (isLast) await rm(path, { force: true })
    }
  }

  async #append(path: string, offset: number, part: Uint8Array, isLast: boolean): Promise<void> {
    try {
      const file = await open(path, offset === 0 ? 'wx' : 'a', 0o600)
      try {
        const { size } = await file.stat()
        if (size !== offset) throw invalid(`a part begins at ${offset}, and ${size} bytes are there`, 'begin again')
        await file.appendFile(part)
        if (isLast) await file.sync()
      } finally {
        await file.close()
      }
    } catch (cause) {
      if (cause instanceof DeltamapperError) throw cause
      throw new DeltamapperError(
        'DM_BASE_RECORD_NONE',
        `a record that was lent cannot be kept in ${this.#folder}: ${(cause as Error).message}`,
        systemRemedy(cause) ?? 'begin again, or take a full backup',
        { cause }
      )
    }
  }

  /** All of it is there. @returns what it stands for */
  async #takeBack(path: string): Promise<KnownBase> {
    const { header } = await readWholeRecord(path)
    const known = await this.#knownOf(header)
    checkFit(known)
    if (known.record !== undefined) return known
    const record = newRecordName(known)
    await rename(path, join(this.#folder, record))
    await syncFolder(this.#folder)
    const { size: bytes } = await stat(join(this.#folder, record))
    const { pool, identity } = known
    // As old as it is: where room is needed, it goes before younger ones.
    if (await this.#bases.kept({ pool, identity, record, bytes }, header.madeAt)) return known
    await rm(join(this.#folder, record), { force: true })
    const now = await this.#knownOf(header)
    checkFit(now)
    return now
  }

  /** @throws DM_BASE_RECORD_FOREIGN */
  async #knownOf({ pool, device, handles: [handle = 'a snapshot'] }: BaseRecordHeader): Promise<KnownBase> {
    const { identity, watchedSince } = device
    if (pool.identity === undefined || identity === undefined || watchedSince === undefined) {
      throw foreign(handle, 'no agent has made it, or one of a version that does not take records back')
    }
    const known = await this.#bases.find({ pool: pool.identity, identity })
    if (known === undefined) throw foreign(handle, 'this agent has no such snapshot on record')
    if (known.firstServedAt !== watchedSince) {
      throw foreign(handle, 'this agent has the snapshot on record since another moment: it may have changed before')
    }
    const isSame =
      device.id === known.thinId &&
      device.creationTime === known.creationTime &&
      device.transactionId === known.transactionId &&
      device.mappedBlocks === known.mappedBlocks &&
      device.sizeBytes === known.sizeBytes
    if (!isSame) throw foreign(handle, 'this agent has served another snapshot')
    return known
  }
}

/** @throws what has spoilt it */
function checkFit({ handle, spoilt, spoiltBy }: KnownBase): void {
  if (spoilt !== undefined) throw unfit(spoiltBy as 'DM_BASE_RECORD_WRITABLE', handle, spoilt)
}

function unfit(
  code: 'DM_BASE_RECORD_NONE' | 'DM_BASE_RECORD_WRITABLE',
  handle: string,
  why: string,
  cause?: unknown
): DeltamapperError {
  return new DeltamapperError(
    code,
    `no record can stand for ${handle}: ${why}`,
    'take a full backup; `deltamapper base list` tells which snapshots have to stay',
    { cause }
  )
}

function foreign(handle: string, why: string): DeltamapperError {
  return new DeltamapperError(
    'DM_BASE_RECORD_FOREIGN',
    `the record of ${handle} is of no use here: ${why}`,
    'take a full backup; with --metadata, a record can be compared with by hand'
  )
}
