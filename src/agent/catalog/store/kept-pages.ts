/**
 * Which pages stay in SQLite's cache: all but those with the rows of `era_writes`. They are read from the disk once, when the catalog is opened
 * and checked, and never again.
 *
 * A row's checksum does not show that a row is missing: a bit that flips on the disk in its key, or in a page of an index, makes it one
 * that nobody finds. Of `era_writes`, which may be larger than any cache, the keys are known (era-writes.ts). Everything else is small, and
 * what stays in memory cannot flip on the disk. That goes for its indices too, which could lead a change astray, into the pages of another
 * table, and for the list of free pages, which could hand out one that is in use.
 *
 * The cache lets go of the page that was not used for longest. So it has room for all of these and for some of the history, and before as
 * many others were used as fill half of that room, these are used again. What they take is measured at the same time, because they grow. A
 * transaction is different: the pages it has changed stay until it is committed, and take the room of others. A quarter is for that. After a
 * larger one, as after one that was undone, whose pages SQLite reads again, nothing is taken for kept: see `CatalogDatabase.write`.
 */
import { damagedCatalog, type Statements } from './table.ts'

/** Bytes of a page that hold a part of a long value. */
const PAGE_BYTES = 4092
/** A page of the list of free pages has the numbers of so many, and some more. */
const FREE_PAGES_LISTED = 1000
/** The cache grows by so many pages, not by each. */
const GROWTH = 64

export class KeptPages {
  readonly #database: Statements
  /** Pages of history for which there is room as well. */
  readonly #room: number
  readonly #names: readonly string[]
  /** Pages that are kept, for which the cache has room. */
  #kept = 0
  /** At most so many others were used since the kept ones were, and for the transaction that runs. */
  #others = 0
  #ofTransaction = 0

  /** @param except the table whose pages are not kept */
  constructor(database: Statements, except: string, room: number) {
    this.#database = database
    this.#room = room
    const schema = database.statement('SELECT name FROM sqlite_schema WHERE rootpage > 0 AND name <> ?')
    this.#names = ['sqlite_schema', ...schema.all(except).map(({ name }) => String(name))]
  }

  /** Uses every page that is to be kept. */
  use(): void {
    const ofTree = this.#database.statement('SELECT pageno FROM dbstat WHERE aggregate = TRUE AND name = ?')
    let pages = 1
    for (const each of this.#names) pages += Number(ofTree.get(each)?.['pageno'] ?? 0)
    // Looks at the list of free pages as well.
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

  /** To be told of each row of the other table that is read. @param bytes of its value */
  readAnother(bytes: number): void {
    this.#used(pagesOfRow(bytes))
  }

  /** To be told of each that is changed. @param bytes of its value before and after */
  changedAnother(bytes: number): void {
    // The page beside it, too, where one becomes two or two become one.
    const pages = pagesOfRow(bytes) + 1
    this.#ofTransaction += pages
    this.#used(pages)
  }

  beginTransaction(): void {
    this.#ofTransaction = 0
  }

  /** @param rows that were changed, in whichever table @returns whether the pages are kept all the same */
  endTransaction(rows: number): boolean {
    // For each a page that is new, at most: what is kept grows.
    this.#used(rows)
    return this.#ofTransaction <= this.#room / 4
  }

  #used(pages: number): void {
    this.#others += pages
    if (this.#others > this.#room / 2) this.use()
  }
}

/** The one that it is in, and those of its value. The pages above are few, and there is a quarter of the room to spare. */
function pagesOfRow(bytes: number): number {
  return 1 + Math.ceil(bytes / PAGE_BYTES)
}
