/**
 * Which pages stay in SQLite's cache: all but those with the rows of `era_writes`. They are read from the disk once,
 * when the catalog is opened and checked, and never again.
 *
 * A row's checksum does not show that a row is missing: if a bit flips on the disk in its key or in an index, the row
 * is not found. For `era_writes`, which may be larger than any cache, the keys are known (era-writes.ts). Everything
 * else is small, and pages in memory cannot flip on the disk. This includes the indices, which could lead a change into
 * another table's pages. It also includes the list of free pages, which could hand out a page that is in use.
 *
 * SQLite evicts the least recently used page. So the cache has room for all kept pages and for some of the history. All
 * kept pages are touched again before other pages have used half of that room. Touching also measures how many kept
 * pages there are, because they grow. A transaction is different: its changed pages stay until it is committed, and
 * take the room of others. A quarter of the room is for that. After a larger transaction, or one that was rolled back,
 * the pages no longer count as kept: see `CatalogDatabase.write`.
 */
import { damagedCatalog, type Statements } from './table.ts'

/** Bytes of a page that hold a part of a long value. */
const PAGE_BYTES = 4092
/** A page of the list of free pages has at least so many numbers. */
const FREE_PAGES_LISTED = 1000
/** The cache grows in steps of so many pages. */
const GROWTH = 64

export class KeptPages {
  readonly #database: Statements
  /** Pages of history that fit in addition. */
  readonly #room: number
  readonly #names: readonly string[]
  /** Kept pages that fit the cache. */
  #kept = 0
  /** The most other pages that were used since the kept ones were, including those of the running transaction. */
  #others = 0
  #ofTransaction = 0

  /** @param except the table whose pages are not kept */
  constructor(database: Statements, except: string, room: number) {
    this.#database = database
    this.#room = room
    const schema = database.statement('SELECT name FROM sqlite_schema WHERE rootpage > 0 AND name <> ?')
    this.#names = ['sqlite_schema', ...schema.all(except).map(({ name }) => String(name))]
  }

  /** Touches every kept page. */
  use(): void {
    const ofTree = this.#database.statement('SELECT pageno FROM dbstat WHERE aggregate = TRUE AND name = ?')
    let pages = 1
    for (const each of this.#names) pages += Number(ofTree.get(each)?.['pageno'] ?? 0)
    // Reads the list of free pages as well.
    const verdict = this.#database.statement("PRAGMA integrity_check('sqlite_schema')").get()?.['integrity_check']
    if (verdict !== 'ok') throw damagedCatalog(this.#database.path, String(verdict))
    const free = Number(this.#database.statement('PRAGMA freelist_count').get()?.['freelist_count'])
    pages += Math.ceil(free / FREE_PAGES_LISTED)
    if (pages > this.#kept) {
      this.#kept = Math.ceil(pages / GROWTH) * GROWTH
      this.#database.statement(`PRAGMA cache_size = ${this.#kept + this.#room}`).run()
    }
    this.#others = 0
  }

  /** Call for each row of the other table that is read. @param bytes of its value */
  readAnother(bytes: number): void {
    this.#used(pagesOfRow(bytes))
  }

  /** Call for each one that is changed. @param bytes of its value before and after */
  changedAnother(bytes: number): void {
    // The neighbouring page, too, if a page splits or two pages merge.
    const pages = pagesOfRow(bytes) + 1
    this.#ofTransaction += pages
    this.#used(pages)
  }

  beginTransaction(): void {
    this.#ofTransaction = 0
  }

  /** @param rows that were changed, in any table @returns whether the pages are still kept */
  endTransaction(rows: number): boolean {
    // At most one new page for each: the kept pages grow.
    this.#used(rows)
    return this.#ofTransaction <= this.#room / 4
  }

  #used(pages: number): void {
    this.#others += pages
    if (this.#others > this.#room / 2) this.use()
  }
}

/** Its own page, and those of its value. The pages above are few, and a quarter of the room is to spare. */
function pagesOfRow(bytes: number): number {
  return 1 + Math.ceil(bytes / PAGE_BYTES)
}
