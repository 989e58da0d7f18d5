/**
 * Pools that the agent itself made on plain device-mapper: their names, the sizes of their volumes, the origins of
 * their snapshots. The kernel knows only which thin ids exist. (LVM's pools are never in here: LVM keeps their data.)
 *
 * Catalog and kernel stay consistent by recording intents ahead. Every change of a pool is a pair of calls around what
 * the kernel is told:
 *
 *     begin(intent) ─▶ kernel: suspend origin, create_snap N, set_transaction_id T T+1, resume ─▶ complete(pool)
 *     on disk                                                                                     on disk
 *
 * Tell the kernel only after `begin` has returned: then the intent is on disk. `complete` turns it into a fact,
 * `rollBack` forgets it. One intent at a time for each pool, because a pool has one transaction id. After a crash at
 * any moment, the intent still exists. `reconcile` (reconcile.ts) then tells from the pool's transaction id and devices
 * how far it got.
 */
import { randomUUID } from 'node:crypto'
import { MAX_DEVICES } from '../../devicemapper/thin/device-details.ts'
import { defect, DeltamapperError, invalid } from '../../errors.ts'
import { isHandleName } from '../../handle.ts'
import { nameTaken, thinNameTaken } from './name-taken.ts'
import { type RowOf, Table, type Writable } from './store/table.ts'

export interface OwnedPool {
  /** The part before the slash in the handles of its snapshots. */
  readonly name: string
  readonly dmName: string
  readonly dataDevice: string
  readonly metadataDevice: string
  /** In sectors of 512 bytes. */
  readonly dataBlockSectors: number
  /** In data blocks. */
  readonly lowWaterBlocks: number
  /** The feature words of its table line, separated by spaces. */
  readonly features: string
  /** The last one that the agent set. */
  readonly transactionId: bigint
  /** Milliseconds since 1970. */
  readonly createdAt: number
}

/** A thin volume or a snapshot of one. They share names and thin ids, so they share a table. */
export interface OwnedThin {
  /** Given by the catalog; never used again. */
  readonly id: string
  readonly pool: string
  readonly name: string
  readonly kind: 'volume' | 'snapshot'
  readonly thinId: number
  readonly dmName: string
  readonly sizeBytes: number
  /** `id` of the volume it belongs to: a volume's own, a snapshot's origin's. It outlives that volume. */
  readonly volume: string
  /** `id` of what it was taken of; undefined for a volume. */
  readonly origin: string | undefined
  /** The pool's clock when it was created. With the thin id, this tells it from later devices of that id. */
  readonly creationTime: number
  /** The pool's transaction id when it was created. */
  readonly transactionId: bigint
  /** Milliseconds since 1970. */
  readonly createdAt: number
}

export interface NewThin {
  readonly pool: string
  readonly name: string
  readonly thinId: number
  readonly dmName: string
  readonly sizeBytes: number
  /** The pool's transaction id before; creating increases it by one. */
  readonly transactionId: bigint
}

/** A change that is about to be made to a pool. `thin`, `origin`: `id` of an owned thin. */
export type Intent =
  | { readonly kind: 'create-pool'; readonly pool: string }
  | { readonly kind: 'delete-pool'; readonly pool: string }
  | ({ readonly kind: 'create-volume'; readonly thin: string } & NewThin)
  | ({
      readonly kind: 'create-snapshot'
      readonly thin: string
      readonly origin: string
      /** The device-mapper name of the origin, if it is suspended meanwhile. */
      readonly suspends: string | undefined
    } & NewThin)
  | { readonly kind: 'delete-thin'; readonly pool: string; readonly thin: string; readonly transactionId: bigint }
  | { readonly kind: 'resize-thin'; readonly pool: string; readonly thin: string; readonly sizeBytes: number }

type Without<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never
/** An intent as `begin` takes it: the catalog gives new thins their `id`, and keeps a new pool's description. */
export type NewIntent =
  | { readonly kind: 'create-pool'; readonly pool: Omit<OwnedPool, 'createdAt'> }
  | Without<Extract<Intent, { kind: 'create-volume' | 'create-snapshot' }>, 'thin'>
  | Extract<Intent, { kind: 'delete-pool' | 'delete-thin' | 'resize-thin' }>

/** Everything the catalog knows of owned pools; thins in the order of their ids. */
export interface CatalogView {
  readonly pools: readonly OwnedPool[]
  readonly thins: readonly OwnedThin[]
  readonly intents: readonly Intent[]
}

export const poolsTable = new Table(
  'pools',
  {
    name: 'text',
    dmName: 'text',
    dataDevice: 'text',
    metadataDevice: 'text',
    dataBlockSectors: 'count',
    lowWaterBlocks: 'count',
    features: 'text',
    transactionId: 'u64',
    createdAt: 'count'
  } as const,
  ['name']
)

export const thinsTable = new Table(
  'thins',
  {
    id: 'text',
    pool: 'text',
    name: 'text',
    kind: 'text',
    thinId: 'count',
    dmName: 'text',
    sizeBytes: 'count',
    volume: 'text',
    origin: 'text?',
    creationTime: 'count',
    transactionId: 'u64',
    createdAt: 'count'
  } as const,
  ['id']
)

export const intentsTable = new Table(
  'intents',
  {
    pool: 'text',
    kind: 'text',
    thin: 'text?',
    name: 'text?',
    thinId: 'count?',
    dmName: 'text?',
    sizeBytes: 'count?',
    origin: 'text?',
    suspends: 'text?',
    transactionId: 'u64?',
    startedAt: 'count'
  } as const,
  ['pool']
)

type IntentRow = RowOf<typeof intentsTable>

/**
 * Records an intent for a pool. Tell the kernel only after this has returned.
 *
 * @throws DM_DEVICE_BUSY when the pool has another intent, or a name or thin id is taken; DM_NO_SUCH_DEVICE;
 *   DM_CATALOG_DISAGREES when the pool's transaction id is not the recorded one; DM_ARGUMENT_INVALID
 */
export function begin(database: Writable, intent: NewIntent, at: number): Intent {
  return database.write(() => {
    const name = intent.kind === 'create-pool' ? intent.pool.name : intent.pool
    const pending = intentsTable.get(database, { pool: name })
    if (pending !== undefined) {
      throw busy(`pool ${name} is in the middle of something else (${pending.kind})`, 'wait for it to be done')
    }
    if (intent.kind === 'create-pool') beginPool(database, intent.pool, at)
    else beginInPool(database, intent)

    const created = intent.kind === 'create-volume' || intent.kind === 'create-snapshot'
    const complete: Intent = created
      ? { ...intent, thin: `thin:${randomUUID()}` }
      : intent.kind === 'create-pool'
        ? { kind: intent.kind, pool: name }
        : intent
    intentsTable.insert(database, { ...noDetails, ...complete, startedAt: at })
    return complete
  })
}

/**
 * Completes the pool's intent, after the kernel has done its part.
 *
 * @param creationTime of the created thin, from its device details; for those two intents only
 */
export function complete(
  database: Writable,
  pool: string,
  { creationTime }: { creationTime?: number | undefined } = {}
): void {
  database.write(() => {
    const { row, intent } = pendingIntent(database, pool)
    intentsTable.delete(database, [row])
    switch (intent.kind) {
      case 'create-pool':
        return
      case 'delete-pool':
        poolsTable.delete(database, [ownedPool(database, pool)])
        return
      case 'create-volume':
      case 'create-snapshot': {
        if (creationTime === undefined) throw defect(`the creation time of ${pool}/${intent.name} is missing`)
        const { thin: id, name, thinId, dmName, sizeBytes, transactionId } = intent
        const origin = intent.kind === 'create-snapshot' ? ownedThin(database, intent.origin) : undefined
        thinsTable.insert(database, {
          ...{ id, pool, name, thinId, dmName, sizeBytes, creationTime, transactionId },
          kind: origin === undefined ? 'volume' : 'snapshot',
          volume: origin?.volume ?? id,
          origin: origin?.id,
          createdAt: row.startedAt
        })
        moveTransaction(database, pool, transactionId + 1n)
        return
      }
      case 'delete-thin':
        thinsTable.delete(database, [ownedThin(database, intent.thin)])
        moveTransaction(database, pool, intent.transactionId + 1n)
        return
      case 'resize-thin':
        thinsTable.update(database, ownedThin(database, intent.thin), { sizeBytes: intent.sizeBytes })
    }
  })
}

/** Rolls back the pool's intent, after it was refused, or found undone. */
export function rollBack(database: Writable, pool: string): void {
  database.write(() => {
    const { row, intent } = pendingIntent(database, pool)
    intentsTable.delete(database, [row])
    if (intent.kind === 'create-pool') poolsTable.delete(database, [ownedPool(database, pool)])
  })
}

/**
 * Adds a thin device of the kernel's to the catalog. A person has decided that it belongs there.
 *
 * @throws DM_DEVICE_BUSY, DM_NO_SUCH_DEVICE, DM_ARGUMENT_INVALID
 */
export function adoptThin(
  database: Writable,
  thin: Omit<NewThin, 'transactionId'> & Pick<OwnedThin, 'creationTime' | 'transactionId' | 'origin'>,
  at: number
): OwnedThin {
  return database.write(() => {
    refuseWhilePending(database, thin.pool)
    checkNewThin(database, thin)
    const { pool, name, thinId, dmName, sizeBytes, creationTime, transactionId } = thin
    const origin = thin.origin === undefined ? undefined : ownedThin(database, thin.origin)
    const id = `thin:${randomUUID()}`
    const adopted = {
      ...{ id, pool, name, thinId, dmName, sizeBytes, creationTime, transactionId },
      kind: origin === undefined ? ('volume' as const) : ('snapshot' as const),
      volume: origin?.volume ?? id,
      origin: origin?.id,
      createdAt: at
    }
    thinsTable.insert(database, adopted)
    return adopted
  })
}

/** Removes a thin that the kernel does not have from the catalog. A person has decided it. */
export function forgetThin(database: Writable, id: string): void {
  database.write(() => {
    const thin = ownedThin(database, id)
    refuseWhilePending(database, thin.pool)
    thinsTable.delete(database, [thin])
  })
}

/** Takes over the kernel's transaction id. A person has decided it. An intent that contradicts it is rolled back. */
export function acceptTransactionId(database: Writable, pool: string, transactionId: bigint): void {
  database.write(() => {
    const pending = intentsTable.get(database, { pool })
    if (pending !== undefined) {
      if (pending.kind === 'create-pool') throw busy(`pool ${pool} is being created`, 'delete it instead')
      intentsTable.delete(database, [pending])
    }
    moveTransaction(database, pool, transactionId)
  })
}

export function catalogView(database: Writable): CatalogView {
  return {
    pools: poolsTable.find(database, {}),
    thins: thinsTable.select(database, 'ORDER BY pool, thin_id').map(thinOf),
    intents: intentsTable.find(database, {}).map(intentOf)
  }
}

/** The owned thin with this id, if there is one. */
export function findThin(database: Writable, id: string): OwnedThin | undefined {
  const row = thinsTable.get(database, { id })
  return row && thinOf(row)
}

/** The owned volume or snapshot of this name, if there is one. */
export function findThinByName(database: Writable, pool: string, name: string): OwnedThin | undefined {
  const row = thinsTable.get(database, { pool, name })
  return row && thinOf(row)
}

function beginPool(database: Writable, pool: Omit<OwnedPool, 'createdAt'>, at: number): void {
  checkName(pool.name)
  for (const each of [{ name: pool.name }, { dmName: pool.dmName }]) {
    if (poolsTable.get(database, each) !== undefined) {
      throw nameTaken(`there already is a pool ${Object.values(each).join()}`, 'deltamapper pool list')
    }
  }
  poolsTable.insert(database, { ...pool, createdAt: at })
}

function beginInPool(database: Writable, intent: Exclude<NewIntent, { kind: 'create-pool' }>): void {
  const pool = ownedPool(database, intent.pool)
  if ('transactionId' in intent && intent.transactionId !== pool.transactionId) {
    throw new DeltamapperError(
      'DM_CATALOG_DISAGREES',
      `pool ${pool.name} is at transaction ${intent.transactionId}, where the catalog has ${pool.transactionId}: another program has changed it`,
      'see `deltamapper doctor`'
    )
  }
  switch (intent.kind) {
    case 'create-snapshot':
      if (ownedThin(database, intent.origin).pool !== pool.name) {
        throw defect(`${intent.origin} is in another pool than ${pool.name}`)
      }
      checkNewThin(database, intent)
      return
    case 'create-volume':
      checkNewThin(database, intent)
      return
    case 'delete-thin':
    case 'resize-thin':
      if (ownedThin(database, intent.thin).pool !== pool.name) {
        throw defect(`${intent.thin} is in another pool than ${pool.name}`)
      }
      return
    case 'delete-pool': {
      const thins = thinsTable.find(database, { pool: pool.name })
      if (thins.length > 0) {
        throw busy(
          `pool ${pool.name} still has ${thins.length} volumes and snapshots (${thins[0].name} …)`,
          'delete them first'
        )
      }
    }
  }
}

function checkNewThin(database: Writable, thin: { pool: string; name: string; thinId: number }): void {
  const { pool, name, thinId } = thin
  ownedPool(database, pool)
  checkName(name)
  if (!Number.isInteger(thinId) || thinId < 0 || thinId >= MAX_DEVICES) {
    throw invalid(`${thinId} is no thin device id`, `ids are whole numbers from 0 to ${MAX_DEVICES - 1}`)
  }
  const known = findThinByName(database, pool, name)
  if (known !== undefined) throw thinNameTaken(known)
  if (thinsTable.get(database, { pool, thinId }) !== undefined) {
    throw busy(`thin device ${thinId} of pool ${pool} is already in use`, 'use another id')
  }
}

function checkName(name: string): void {
  if (isHandleName(name)) return
  throw invalid(`${JSON.stringify(name)} is no name`, 'use letters, digits and + _ . - only')
}

function moveTransaction(database: Writable, pool: string, transactionId: bigint): void {
  poolsTable.update(database, ownedPool(database, pool), { transactionId })
}

function refuseWhilePending(database: Writable, pool: string): void {
  const pending = intentsTable.get(database, { pool })
  if (pending !== undefined)
    throw busy(`pool ${pool} is in the middle of something else (${pending.kind})`, 'recover that first')
}

function pendingIntent(database: Writable, pool: string): { row: IntentRow; intent: Intent } {
  const row = intentsTable.get(database, { pool })
  if (row === undefined) throw defect(`nothing is under way in pool ${pool}`)
  return { row, intent: intentOf(row) }
}

function ownedPool(database: Writable, name: string): OwnedPool {
  const row = poolsTable.get(database, { name })
  if (row !== undefined) return row
  throw new DeltamapperError(
    'DM_NO_SUCH_DEVICE',
    `${name} is no pool that this agent has created`,
    '`deltamapper doctor` lists the pools there are'
  )
}

function ownedThin(database: Writable, id: string): RowOf<typeof thinsTable> {
  const row = thinsTable.get(database, { id })
  if (row !== undefined) return row
  throw new DeltamapperError(
    'DM_NO_SUCH_DEVICE',
    `the catalog has no volume or snapshot ${id}`,
    'it may have been deleted; ask again by its name'
  )
}

const noDetails = {
  thin: undefined,
  name: undefined,
  thinId: undefined,
  dmName: undefined,
  sizeBytes: undefined,
  origin: undefined,
  suspends: undefined,
  transactionId: undefined
}

/** The details of an intent follow from its kind; `begin` wrote no others. */
function intentOf({ startedAt: _startedAt, ...details }: IntentRow): Intent {
  const given = Object.entries(details).filter(([name, value]) => value !== undefined || name === 'suspends')
  const intent = Object.fromEntries(given)
  if (intent['kind'] !== 'create-snapshot') delete intent['suspends']
  return intent as unknown as Intent
}

/** The column's CHECK allows only these kinds. */
function thinOf(row: RowOf<typeof thinsTable>): OwnedThin {
  return { ...row, kind: row.kind as OwnedThin['kind'] }
}

function busy(what: string, remedy: string): DeltamapperError {
  return new DeltamapperError('DM_DEVICE_BUSY', what, remedy)
}
