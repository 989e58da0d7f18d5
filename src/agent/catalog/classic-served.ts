/**
 * The record of classic snapshots: what was served as target, and what was compared with as base. Durable before the
 * first message leaves.
 *
 * What a snapshot is stands in LVM's metadata (its UUID, and the id by which it is tied to its origin), and in its
 * store, to which entries are only added: as base it has to be tied as it was, and its list has to begin with what the
 * list was. So has a target's: all records of one are beginnings of one list.
 */
import { DeltamapperError } from '../../errors.ts'
import type { Role } from './fingerprint.ts'
import { servedTable } from './served-targets.ts'
import { type RowOf, Table, type Writable } from './store/table.ts'

export const classicTable = new Table(
  'classic_served',
  {
    handle: 'text',
    identity: 'text',
    link: 'text',
    role: 'text',
    origin: 'text',
    sizeBytes: 'count',
    chunkBytes: 'count',
    entries: 'count',
    digest: 'text',
    readOnly: 'count',
    firstServedAt: 'count',
    lastServedAt: 'count'
  } as const,
  ['handle', 'identity', 'link', 'role']
)

export type ClassicRow = RowOf<typeof classicTable>

/** A classic snapshot as it is now. */
export interface ClassicFacts {
  readonly handle: string
  /** The LV's UUID, that of the hidden volume that ties it to its origin, and the origin's. */
  readonly identity: string
  readonly link: string
  readonly origin: string
  readonly sizeBytes: number
  readonly chunkBytes: number
  readonly readOnly: boolean
}

/** Serving the same again writes only this often. Milliseconds. */
const RESOLUTION = 3_600_000
/** In place of a digest, which no list has: the kernel had given the snapshot up. */
const GIVEN_UP = 'given up'
const MOST_FORGOTTEN = 10_000

/** Records that a snapshot is about to be answered about. @param list how many entries it had, and their digest */
export function rememberClassic(
  database: Writable,
  { readOnly, ...facts }: ClassicFacts,
  list: { readonly entries: number; readonly digest: string },
  role: Role,
  at: number
): void {
  database.write(() => {
    const known = classicTable.byKey(database, facts.handle, facts.identity, facts.link, role)
    const { entries, digest } = list
    if (!known) {
      classicTable.insert(database, {
        ...{ ...facts, role, entries, digest, readOnly: Number(readOnly), firstServedAt: at, lastServedAt: at }
      })
      return
    }
    // Once it could be written to, it counts as such.
    const still = known.readOnly === 1 && readOnly ? 1 : 0
    const isOld = at - known.lastServedAt >= RESOLUTION
    if (still === known.readOnly && !isOld) return
    // Whoever records it has held the list against what is on record: a longer one says more.
    const longer = isOld && entries > known.entries ? { entries, digest } : {}
    classicTable.update(database, known, { ...longer, readOnly: still, lastServedAt: isOld ? at : known.lastServedAt })
  })
}

/**
 * Records that the kernel has given a snapshot up. It can be neither base nor target any more, whatever its store looks
 * like later: where the store's disk has failed, nothing marks it.
 */
export function giveUpClassic(database: Writable, { readOnly, ...facts }: ClassicFacts, at: number): void {
  database.write(() => {
    const { identity, link } = facts
    const known = classicTable.find(database, { identity, link })
    const list = { entries: 0, digest: GIVEN_UP }
    for (const each of known) classicTable.update(database, each, list)
    if (known.length > 0) return
    classicTable.insert(database, {
      ...{ ...facts, ...list, role: 'base', readOnly: Number(readOnly), firstServedAt: at, lastServedAt: at }
    })
  })
}

/**
 * Records that a snapshot could be written to when it was asked about, whatever becomes of the answer. One that is not
 * on record has nothing to be held against.
 */
export function sawWritableClassic(database: Writable, { identity }: Pick<ClassicFacts, 'identity'>): void {
  database.write(() => {
    for (const each of classicTable.find(database, { identity })) {
      if (each.readOnly === 1) classicTable.update(database, each, { readOnly: 0 })
    }
  })
}

/** Whether the kernel had given it up when it was asked about. */
export function isGivenUp({ digest }: Pick<ClassicRow, 'digest'>): boolean {
  return digest === GIVEN_UP
}

/** Everything on record under this handle, or with this identity under another. */
export function findClassic(
  database: Writable,
  { handle, identity }: Pick<ClassicFacts, 'handle' | 'identity'>
): ClassicRow[] {
  const byIdentity = classicTable.find(database, { identity })
  return [...classicTable.find(database, { handle }), ...byIdentity.filter((each) => each.handle !== handle)]
}

/**
 * Names rotate, also from one kind of snapshot to the other: by this one, a thin snapshot was answered about.
 *
 * @throws DM_BASE_CHANGED
 */
export function refuseServedAsThin(database: Writable, handle: string): void {
  if (servedTable.find(database, { handle }).length > 0) throw changed(handle, 'it was a thin snapshot')
}

/** The other way round. @throws DM_BASE_CHANGED */
export function refuseServedAsClassic(database: Writable, handle: string): void {
  if (classicTable.find(database, { handle }).length > 0) throw changed(handle, 'it was a classic snapshot')
}

/** Forgets the oldest beyond a number, 10,000 at most a call. @returns how many; call again while it is not 0 */
export function forgetClassic(database: Writable, keep: number): number {
  return database.write(() => {
    const rest = classicTable.select(database, 'ORDER BY last_served_at DESC LIMIT ? OFFSET ?', MOST_FORGOTTEN, keep)
    classicTable.delete(database, rest)
    return rest.length
  })
}

/**
 * Whether a base is what it was when it was answered about, as far as LVM and its table tell.
 *
 * @param records everything on record of it
 * @returns its record as target; undefined where it was never served
 * @throws DM_BASE_CHANGED, DM_COW_REJOINED
 */
export function checkClassicBase(records: readonly ClassicRow[], now: ClassicFacts): ClassicRow | undefined {
  for (const each of records) {
    if (each.identity !== now.identity) {
      throw changed(now.handle, 'the snapshot that was answered about by this name was another one')
    }
    if (each.link !== now.link) throw rejoined(now.handle)
    if (each.origin !== now.origin) throw changed(now.handle, 'it was a snapshot of another volume')
    if (each.sizeBytes !== now.sizeBytes) throw changed(now.handle, `it had ${each.sizeBytes} bytes`)
    if (each.chunkBytes !== now.chunkBytes) throw changed(now.handle, `its chunks were of ${each.chunkBytes} bytes`)
  }
  // Once it could be written to, as target or as base and by whichever name, it counts as such.
  const readOnly = records.every((each) => each.readOnly === 1) ? 1 : 0
  const served = records.find(({ role }) => role === 'target')
  return served && { ...served, readOnly }
}

/**
 * The longest list on record of a snapshot that is tied as it is now; undefined where there is none.
 *
 * @throws DM_COW_INVALID where the kernel had given it up
 */
export function longestList(
  records: readonly ClassicRow[],
  { handle, identity, link }: Pick<ClassicFacts, 'handle' | 'identity' | 'link'>
): ClassicRow | undefined {
  const own = records.filter((each) => each.identity === identity && each.link === link)
  if (own.some(isGivenUp)) {
    throw new DeltamapperError(
      'DM_COW_INVALID',
      `the kernel had given ${handle} up when it was asked about before: its store lacks what was written after that`,
      'take a full backup of a new snapshot'
    )
  }
  return own.sort((one, other) => other.entries - one.entries).at(0)
}

/** @throws DM_BASE_CHANGED when a list does not begin with what it was */
export function checkClassicList(
  { handle, entries, digest }: ClassicRow,
  found: { readonly entries: number; readonly prefixDigest: string | undefined }
): void {
  if (found.prefixDigest === digest) return
  throw changed(
    handle,
    found.entries < entries
      ? `its store had ${entries} entries then, and has ${found.entries} now`
      : `the first ${entries} entries of its store are others now`
  )
}

export function rejoined(handle: string): DeltamapperError {
  return new DeltamapperError(
    'DM_COW_REJOINED',
    `${handle} was split off its origin and joined again (lvconvert --splitsnapshot): what was written meanwhile is not in its store`,
    'take a full backup of a new snapshot'
  )
}

function changed(handle: string, why: string): DeltamapperError {
  return new DeltamapperError(
    'DM_BASE_CHANGED',
    `${handle} is not what it was when it was answered about: ${why}`,
    'take a full backup of a new snapshot, by a name of its own'
  )
}
