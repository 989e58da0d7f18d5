/** What a person can ask of records of bases, and have done to them. */
import type { AdminBackend, AdminRequest, AdminResponse } from '../../grpc/admin.ts'
import { DeltamapperError } from '../../errors.ts'
import type { BaseRecords } from '../answers/base-records.ts'
import type { KnownBase } from '../catalog/bases.ts'
import type { Catalog } from '../catalog/catalog.ts'
import { RecordExchange } from './record-exchange.ts'

type BaseCall = 'listBases' | 'getBase' | 'dropBase' | 'readBase' | 'lendBase'

interface AdministeredCatalog {
  readonly bases: Pick<Catalog['bases'], 'list' | 'find' | 'kept'>
}

type Base = AdminResponse<'getBase'>

export class BaseAdministration implements Pick<AdminBackend, BaseCall> {
  readonly #catalog: AdministeredCatalog
  readonly #records: BaseRecords
  readonly #exchange: RecordExchange

  constructor(catalog: AdministeredCatalog, records: BaseRecords) {
    this.#catalog = catalog
    this.#records = records
    this.#exchange = new RecordExchange(catalog.bases, records.folder, records.maxBytes)
  }

  async listBases(_request: object = {}): Promise<AdminResponse<'listBases'>> {
    return { bases: (await this.#catalog.bases.list()).map(described), folder: this.#records.folder }
  }

  /** @throws DM_SNAPSHOT_NOT_FOUND */
  async getBase({ handle }: { handle: string }): Promise<Base> {
    const [known] = await this.#named(handle)
    return described(known)
  }

  /** @throws DM_SNAPSHOT_NOT_FOUND */
  async dropBase({ handle }: { handle: string }): Promise<object> {
    const dropped = await Promise.all(
      (await this.#named(handle)).map((each) => this.#records.drop(each, 'its record was dropped by hand'))
    )
    if (dropped.includes(true)) return {}
    throw new DeltamapperError(
      'DM_SNAPSHOT_NOT_FOUND',
      `there is no record of ${handle}`,
      '`deltamapper base list` shows which there are'
    )
  }

  /** @throws DM_SNAPSHOT_NOT_FOUND, and what RecordExchange throws */
  async readBase(request: AdminRequest<'readBase'>): Promise<AdminResponse<'readBase'>> {
    return this.#exchange.read(await this.#named(request.handle), request)
  }

  /** @throws what RecordExchange throws */
  async lendBase(request: AdminRequest<'lendBase'>): Promise<AdminResponse<'lendBase'>> {
    return this.#exchange.lend(request)
  }

  /** The snapshots that were first served by this handle, the newest first. */
  async #named(handle: string): Promise<KnownBase[]> {
    const named = (await this.#catalog.bases.list()).filter((each) => each.handle === handle)
    if (named.length > 0) return named.toSorted((one, other) => other.firstServedAt - one.firstServedAt)
    throw new DeltamapperError(
      'DM_SNAPSHOT_NOT_FOUND',
      `no snapshot ${handle} was served since records are made`,
      '`deltamapper base list` shows by which handles snapshots were served'
    )
  }
}

function described(known: KnownBase): Base {
  const { handle, pool, identity, volume = '', record = '', recordBytes, recordedAt, goneAt } = known
  return {
    ...{ handle, pool, identity, volume, ...stateOf(known), record },
    ...(recordBytes !== undefined && { recordBytes }),
    ...(recordedAt !== undefined && { recordedAtMs: recordedAt }),
    ...{ firstServedAtMs: known.firstServedAt },
    ...(goneAt !== undefined && { goneAtMs: goneAt }),
    ...{ answers: known.answers, mappedBlocks: known.mappedBlocks, sizeBytes: known.sizeBytes }
  }
}

/** Whether a snapshot may go, or its record stands for it; and why. */
export function stateOf({ record, spoilt, notKept, goneAt }: KnownBase): Pick<Base, 'state' | 'because'> {
  const isGone = goneAt !== undefined
  if (spoilt === undefined && record !== undefined) {
    return isGone
      ? { state: 'stands', because: 'its record stands for it' }
      : { state: 'may-go', because: 'its record stands for it once it is gone' }
  }
  return {
    state: isGone ? 'lost' : 'must-stay',
    because: spoilt ?? notKept ?? 'no answer about it has run to its end'
  }
}
