/**
 * The catalog's file: a SQLite database that one process uses. It is checked when it is opened, and every write is on
 * disk before it is reported.
 *
 * Runs in the catalog's worker thread, because every write waits for the disk.
 *
 * **When a write is done.** The transaction is committed to the write-ahead log and synced (synchronous=FULL). Then the
 * log is copied into the database, the database is synced, and the log is emptied (a TRUNCATE checkpoint). Only then
 * does the call return. The second half is not for durability but for noticing damage. SQLite stops reading a log at
 * the first frame with a wrong checksum, and takes all transactions from there on for uncommitted. So a flipped byte
 * would silently undo what was promised. Therefore, nothing that was promised is in the log alone.
 *
 * **When a file is accepted.** It must pass SQLite's own integrity_check. Application id and the schema's number, which
 * is stored twice, must be right. The schema's text must equal that of a new catalog. Every row's checksum must be
 * right, and for each table the number of rows and the sum of their checksums. A file that fails is not written to,
 * except for what SQLite itself completes from its log.
 *
 * **Bits that flip on the disk later.** Pages of the history are read again when they are needed: the agent knows which
 * rows must exist (era-writes.ts), and each row has a checksum. All other pages stay in memory (kept-pages.ts). There
 * are two exceptions, after which everything is checked again: a transaction that was rolled back, whose pages SQLite
 * reads again, and one so large that it displaced kept pages.
 *
 * **One process.** The database uses SQLite's exclusive locking mode, which also does without shared memory. The kernel
 * releases the lock when the process dies. It is a POSIX lock, lost as soon as its process closes *any* descriptor of
 * the file. So nothing in the agent but SQLite may open the file.
 */
import {
  chmodSync,
  closeSync,
  fsyncSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  type Stats,
  lstatSync,
  statSync
} from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { randomUUID } from 'node:crypto'
import { DatabaseSync, type StatementSync } from 'node:sqlite'
import { asDeltamapperError, DeltamapperError } from '../../errors.ts'
import { systemRemedy } from '../../system-errors.ts'
import {
  eraIntentsTable,
  eraNamesTable,
  eraSnapshotsTable,
  eraVolumesTable,
  eraWritesTable
} from './store/era-tables.ts'
import { EraWrites } from './store/era-writes.ts'
import { KeptPages } from './store/kept-pages.ts'
import { leasesTable } from './lease-records.ts'
import {
  APPLICATION_ID,
  applyMigration,
  catalogTable,
  countedTables,
  type Migration,
  migrations
} from './store/migrations.ts'
import { intentsTable, poolsTable, thinsTable } from './owned-pools.ts'
import { basesTable } from './bases.ts'
import { classicTable } from './classic-served.ts'
import { poolClocksTable } from './pool-clocks.ts'
import { servedTable } from './served-targets.ts'
import { contents, damagedCatalog, type Statements } from './store/table.ts'

export interface DatabaseOptions {
  /** How long to wait for another process to release the file, in milliseconds; 3,000 by default. */
  lockWaitMs?: number | undefined
  /** The steps of the schema, for tests of the steps themselves. */
  steps?: readonly Migration[] | undefined
  /**
   * Pages of history that fit the cache beside all others; 16,384 by default. For tests that read from the disk again.
   */
  historyPages?: number | undefined
}

/** The result of opening. */
export interface Opening {
  readonly created: boolean
  /** The schema it had, and has now. */
  readonly schemaBefore: number
  readonly schema: number
}

/** The tables that are kept in memory, whose rows are counted. */
const keptTables = [
  ...[servedTable, poolsTable, thinsTable, intentsTable, leasesTable],
  ...[eraVolumesTable, eraIntentsTable, eraSnapshotsTable, eraNamesTable, poolClocksTable],
  ...[classicTable, basesTable]
]
/** Pages of 4 KiB, which makes 64 MiB. */
const HISTORY_PAGES = 16_384

/** The primary result codes of SQLite (sqlite.org/rescode.html) that are handled differently. */
const sqliteCode = { error: 1, busy: 5, corrupt: 11, constraint: 19, misuse: 21, notADatabase: 26 }

export class CatalogDatabase implements Statements {
  readonly path: string
  readonly opening: Opening
  /** What was written between the snapshots of tracked volumes. */
  readonly writes: EraWrites
  readonly #database: DatabaseSync
  readonly #statements: Map<string, StatementSync>
  readonly #checks: ContentChecks
  #closed = false

  constructor(
    path: string,
    database: DatabaseSync,
    statements: Map<string, StatementSync>,
    checks: ContentChecks,
    opening: Opening
  ) {
    this.path = path
    this.#database = database
    this.#statements = statements
    this.#checks = checks
    this.writes = checks.writes
    this.opening = opening
  }

  statement(sql: string): StatementSync {
    return prepared(this.#database, this.#statements, sql)
  }

  /**
   * Runs the action in a transaction, which is on disk when this returns. If the action throws, it is rolled back.
   *
   * @throws DM_CATALOG_UNAVAILABLE: if the disk failed, the transaction may or may not exist at the next opening;
   *   DM_CATALOG_DAMAGED: do not use the connection after that
   */
  write<T>(action: () => T): T {
    const { kept } = this.#checks
    const before = this.#changes()
    kept.beginTransaction()
    let result: T
    try {
      result = commit(this.#database, action)
    } catch (error) {
      // What is known of the history may be as wrong now as the pages.
      if (this.#changes() !== before) this.#checkAgain()
      throw error
    }
    if (!kept.endTransaction(this.#changes() - before)) this.#checkAgain()
    return result
  }

  /** Bytes of the file, and rows by table. */
  statistics(): { bytes: number; rows: Record<string, number> } {
    const rows = contents.find(this, {}).map(({ name, rowCount }) => [name, rowCount] as const)
    return { bytes: statSync(this.path).size, rows: Object.fromEntries(rows) }
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#statements.clear()
    this.#database.close()
  }

  #checkAgain(): void {
    checkPages(this)
    this.#checks.run()
  }

  /** Rows that were changed since it was opened, including changes that were rolled back. */
  #changes(): number {
    return Number(this.statement('SELECT total_changes() AS changes').get()?.['changes'])
  }
}

/**
 * Opens a catalog, or makes a new one if there is none.
 *
 * @throws DM_CATALOG_IN_USE, DM_CATALOG_DAMAGED, DM_CATALOG_NEWER, DM_CATALOG_UNAVAILABLE
 */
export function openDatabase(
  file: string,
  { lockWaitMs = 3000, steps = migrations, historyPages = HISTORY_PAGES }: DatabaseOptions = {}
): CatalogDatabase {
  const path = resolve(file)
  let database: DatabaseSync | undefined
  try {
    const created = !exists(path)
    if (created) create(path, steps)
    database = connect(path, lockWaitMs, historyPages)
    const statements = new Map<string, StatementSync>()
    const opened = { path, statement: (sql: string) => prepared(database!, statements, sql) }
    checkPages(opened)
    const schemaBefore = migrate(database, opened, steps)
    const checks = new ContentChecks(opened, steps, historyPages)
    checks.run()
    checkpoint(database)
    // From here on we have the lock, so nobody needs the remains of an interrupted creation.
    for (const each of readdirSync(dirname(path))) {
      if (each.startsWith(`${basename(path)}.new-`)) rmSync(join(dirname(path), each), { force: true })
    }
    return new CatalogDatabase(path, database, statements, checks, { created, schemaBefore, schema: steps.length })
  } catch (error) {
    // Closing copies the log into the database, which the next opening would do otherwise.
    database?.close()
    throw catalogError(path, error)
  }
}

/** Whether there is a catalog. An empty file, or a log without its database, is a catalog that was lost. */
function exists(path: string): boolean {
  // A symbolic link may lead to another user's file, which would then be made readable for us alone.
  if (lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink()) {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `the catalog ${path} is a symbolic link`,
      'configure the path of the file itself, or link its folder'
    )
  }
  const file = stat(path)
  if (file === undefined) {
    const log = stat(`${path}-wal`)
    if (log !== undefined && log.size > 0) throw damagedCatalog(path, `there is only its log, ${path}-wal`)
    return false
  }
  if (!file.isFile()) throw damagedCatalog(path, 'it is not a file')
  if (file.size === 0) throw damagedCatalog(path, 'it is empty')
  return true
}

/**
 * Makes an empty catalog, complete or not at all: it is written and synced under another name, then linked to its own.
 * If another process was faster, its catalog stays.
 */
function create(path: string, steps: readonly Migration[]): void {
  const folder = dirname(path)
  const topmostMade = mkdirSync(folder, { recursive: true, mode: 0o700 })
  const draft = `${path}.new-${randomUUID()}`
  try {
    closeSync(openSync(draft, 'wx', 0o600))
    const database = connect(draft, 0)
    try {
      const statements = new Map<string, StatementSync>()
      migrate(database, { path, statement: (sql) => prepared(database, statements, sql) }, steps)
    } finally {
      database.close()
    }
    linkSync(draft, path)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    // Another process has made it, or has removed the drafts after making it.
    if ((code !== 'EEXIST' && code !== 'ENOENT') || stat(path) === undefined) throw error
  } finally {
    rmSync(draft, { force: true })
  }
  for (let each = folder; ; each = dirname(each)) {
    syncFolder(each)
    if (topmostMade === undefined || each === dirname(topmostMade)) return
  }
}

/** Opens the file and takes its lock. A file that is no catalog is refused before it is changed. */
function connect(path: string, lockWaitMs: number, cachePages = HISTORY_PAGES): DatabaseSync {
  const database = new DatabaseSync(path, { timeout: lockWaitMs, enableForeignKeyConstraints: true })
  try {
    // Set the locking mode first: then the log's index is in our own memory, and never in a shared file.
    database.exec('PRAGMA locking_mode = EXCLUSIVE')
    const application = pragma(database, 'application_id')
    if (application !== APPLICATION_ID && !isEmpty(database)) {
      throw damagedCatalog(path, `its application id is ${application}, not ${APPLICATION_ID}`)
    }
    const mode = database.prepare('PRAGMA journal_mode = WAL').get()?.['journal_mode']
    if (mode !== 'wal') throw damagedCatalog(path, `it cannot have a write-ahead log (journal mode ${String(mode)})`)
    database.exec(`
      PRAGMA synchronous = FULL;
      PRAGMA wal_autocheckpoint = 0;
      PRAGMA mmap_size = 0;
      PRAGMA cache_size = ${cachePages};
      PRAGMA cell_size_check = ON;
      PRAGMA trusted_schema = OFF;
      PRAGMA temp_store = MEMORY;
    `)
    // Reading alone would not hold the lock.
    database.exec('BEGIN EXCLUSIVE; COMMIT')
    for (const each of [path, `${path}-wal`]) {
      const file = stat(each)
      if (file !== undefined && (file.mode & 0o777) !== 0o600) chmodSync(each, 0o600)
    }
    return database
  } catch (error) {
    database.close()
    throw error
  }
}

/** SQLite's own check of every page and index, or of those of one table. */
function checkPages(database: Statements, table?: string): void {
  const [result] = database.statement(`PRAGMA integrity_check(${table ?? 1})`).all()
  const verdict = String(result?.['integrity_check'])
  if (verdict !== 'ok') throw damagedCatalog(database.path, verdict)
}

/** Brings the schema up to the newest step. @returns the schema it had */
function migrate(database: DatabaseSync, statements: Statements, steps: readonly Migration[]): number {
  const schema = pragma(database, 'user_version')
  if (!isEmpty(database)) {
    // The schema's number is stored twice; the copy with a checksum counts.
    const own = catalogTable.find(statements, {})
    if (own.length !== 1 || own[0].schema !== schema) {
      throw damagedCatalog(statements.path, `it says both that its schema is ${own[0]?.schema} and ${schema}`)
    }
  }
  if (schema > steps.length) {
    throw new DeltamapperError(
      'DM_CATALOG_NEWER',
      `the catalog ${statements.path} has schema ${schema}, this version knows schemas up to ${steps.length}`,
      'use the version of deltamapper that wrote it, or a newer one'
    )
  }
  for (let from = schema; from < steps.length; from++) {
    commit(database, () => {
      applyMigration(database, statements, from, steps[from])
    })
  }
  return schema
}

/** Checks every row, and that none is missing. Afterwards, everything that must stay in memory is there. */
class ContentChecks {
  readonly kept: KeptPages
  readonly writes: EraWrites
  readonly #database: Statements
  readonly #steps: readonly Migration[]

  constructor(database: Statements, steps: readonly Migration[], historyPages: number) {
    this.#database = database
    this.#steps = steps
    this.kept = new KeptPages(database, eraWritesTable.name, historyPages)
    this.writes = new EraWrites(database, this.kept)
  }

  /** @throws DM_CATALOG_DAMAGED */
  run(): void {
    const { path } = this.#database
    contents.verify(this.#database)
    const counted = contents.find(this.#database, {}).map(({ name }) => name)
    const expected = countedTables(this.#steps)
    if (counted.join() !== [...expected].sort().join()) {
      throw damagedCatalog(path, `it counts the rows of ${counted.join(', ')}, not of ${expected.join(', ')}`)
    }
    if (this.#database.statement('PRAGMA foreign_key_check').all().length > 0) {
      throw damagedCatalog(path, 'a row refers to one that is not there')
    }
    // From here on, everything but the history stays in memory.
    this.kept.use()
    this.writes.verify()
    checkSchema(this.#database, this.#steps)
    for (const table of [contents, catalogTable, ...keptTables]) {
      checkPages(this.#database, table.name)
      table.verify(this.#database)
    }
    this.kept.use()
  }
}

function checkSchema(database: Statements, steps: readonly Migration[]): void {
  const text = 'SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name'
  const fresh = new DatabaseSync(':memory:')
  try {
    for (const { sql } of steps) fresh.exec(sql)
    if (JSON.stringify(fresh.prepare(text).all()) !== JSON.stringify(database.statement(text).all())) {
      throw damagedCatalog(database.path, 'its tables are not those of a catalog')
    }
  } finally {
    fresh.close()
  }
}

function commit<T>(database: DatabaseSync, action: () => T): T {
  database.exec('BEGIN IMMEDIATE')
  let result: T
  try {
    result = action()
    database.exec('COMMIT')
  } catch (error) {
    // Some errors have already rolled back the transaction.
    if (database.isTransaction) database.exec('ROLLBACK')
    throw error
  }
  checkpoint(database)
  return result
}

/** Copies the log into the database and empties it, synced in that order. Costs nothing when the log is empty. */
function checkpoint(database: DatabaseSync): void {
  const result = database.prepare('PRAGMA wal_checkpoint(TRUNCATE)').get()
  if (result?.['busy'] !== 0) {
    throw unavailable(
      database.location() ?? '',
      'its write-ahead log could not be emptied',
      'stop what else has it open'
    )
  }
}

function prepared(database: DatabaseSync, statements: Map<string, StatementSync>, sql: string): StatementSync {
  let statement = statements.get(sql)
  if (statement === undefined) statements.set(sql, (statement = database.prepare(sql)))
  return statement
}

function pragma(database: DatabaseSync, name: 'user_version' | 'application_id'): number {
  return Number(database.prepare(`PRAGMA ${name}`).get()?.[name])
}

function isEmpty(database: DatabaseSync): boolean {
  return database.prepare('SELECT 1 FROM sqlite_schema').get() === undefined
}

function stat(path: string): Stats | undefined {
  return statSync(path, { throwIfNoEntry: false })
}

function syncFolder(path: string): void {
  const folder = openSync(path, 'r')
  try {
    fsyncSync(folder)
  } finally {
    closeSync(folder)
  }
}

/** An error of SQLite or the file system, as one of the catalog's own. */
export function catalogError(path: string, error: unknown): DeltamapperError {
  if (error instanceof DeltamapperError) return error
  const { message, code, syscall, errcode } = error as NodeJS.ErrnoException & { errcode?: number }
  if (code !== 'ERR_SQLITE_ERROR' || errcode === undefined) {
    // A number beyond 2^53, which no catalog of ours contains.
    if (code === 'ERR_OUT_OF_RANGE') return damagedCatalog(path, message, error)
    if (syscall === undefined) return asDeltamapperError(error)
    return unavailable(
      path,
      message,
      systemRemedy(error, 'the right to write into its folder') ??
        'see that its folder exists, on a local file system that can be written to',
      error
    )
  }
  switch (errcode & 0xff) {
    case sqliteCode.busy: {
      const holder = lockHolder(path)
      return new DeltamapperError(
        'DM_CATALOG_IN_USE',
        `the catalog ${path} is in use by another process${holder === undefined ? '' : ` (${holder})`}`,
        'stop the other agent, or give this one a catalog of its own',
        { cause: error }
      )
    }
    // Our own statements are right, so a table without the columns they name is damaged.
    case sqliteCode.error:
    case sqliteCode.corrupt:
    case sqliteCode.notADatabase:
      return damagedCatalog(path, message, error)
    case sqliteCode.constraint:
    case sqliteCode.misuse:
      return asDeltamapperError(error)
    default:
      return unavailable(
        path,
        message,
        'see that its file system is writable and has space, and look into the kernel log',
        error
      )
  }
}

function unavailable(path: string, what: string, remedy: string, cause?: unknown): DeltamapperError {
  return new DeltamapperError(
    'DM_CATALOG_UNAVAILABLE',
    `the catalog ${path} cannot be read or written: ${what}`,
    remedy,
    { cause }
  )
}

/**
 * The process that holds a lock on the file, from /proc/locks; undefined if it is not visible (a process of another
 * container shows as 0).
 */
function lockHolder(path: string): string | undefined {
  try {
    const { ino } = statSync(path)
    const holder = readFileSync('/proc/locks', 'utf8')
      .split('\n')
      .map((line) => line.split(/\s+/))
      .find((words) => words[5]?.split(':')[2] === String(ino))?.[4]
    return Number(holder) > 0 ? `process ${holder}` : undefined
  } catch {
    return undefined
  }
}
