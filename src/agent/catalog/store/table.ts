/**
 * A table whose every row carries a checksum, and which knows how many rows it holds.
 *
 * SQLite notices a damaged page only if the damage breaks its structure. A flipped bit in a value is returned as if it
 * had been written. Here that would be a wrong answer (a changed base taken for unchanged), so
 *
 * - each row ends in a CRC-32 over its table's name and all of its values: this shows a changed value, or a row from
 *   elsewhere;
 * - the table `contents` holds, for each other table, the number of rows and the sum of their checksums: this shows a
 *   row that vanished, or came back from an older state of a page.
 *
 * Both change in the transaction that changes the row. Everything is checked when the catalog is opened, and each row
 * whenever it is read. Between the two, no row can go missing: the pages stay in memory (kept-pages.ts), or the keys of
 * all rows are known (era-writes.ts).
 */
import { crc32 } from 'node:zlib'
import type { SQLInputValue, SQLOutputValue, StatementSync } from 'node:sqlite'
import { defect, DeltamapperError, invalid } from '../../../errors.ts'

/**
 * What a column holds. `count`: a whole number of at least 0 that a double holds exactly. `u64`: 64 bits unsigned, a
 * bigint, kept as decimal text because SQLite's integers are signed. `bytes`: a Uint8Array. With `?`, it may be absent
 * (undefined, NULL).
 */
export type ColumnKind = 'text' | 'count' | 'u64' | 'bytes' | 'text?' | 'count?' | 'u64?'
/** By the names the program uses; the database's are the same `in_snake_case`. */
export type Columns = Readonly<Record<string, ColumnKind>>

type Plain<K> = K extends 'text' ? string : K extends 'count' ? number : K extends 'bytes' ? Uint8Array : bigint
export type Value<K extends ColumnKind> = K extends `${infer P}?` ? Plain<P> | undefined : Plain<K>
export type Row<C extends Columns> = { readonly [N in keyof C]: Value<C[N]> }

/** The rows of a table. */
export type RowOf<T> = T extends Table<infer C> ? Row<C> : never

/** Prepared statements of the one open database. */
export interface Statements {
  statement(sql: string): StatementSync
  /** For messages. */
  readonly path: string
}

/** What records are written to: all that `action` does is on disk when this returns, or nothing of it. */
export interface Writable extends Statements {
  write<T>(action: () => T): T
}

/** The longest text that is kept, in bytes: paths have at most 4096. */
const LONGEST_TEXT = 4096
/** The largest value that is kept, in bytes: split larger ones into several rows. */
const MOST_BYTES = 2 ** 20
/** Sums of checksums are kept modulo this, so that a double holds them exactly. */
const DIGEST_MODULUS = 2 ** 48
const U64_END = 2n ** 64n

export class Table<C extends Columns> {
  readonly name: string
  readonly #columns: readonly { readonly name: string; readonly kind: ColumnKind; readonly column: string }[]
  readonly #key: readonly string[]
  readonly #counted: boolean
  readonly #select: string
  readonly #byKey: string
  readonly #insert: string
  readonly #update: string
  readonly #delete: string
  readonly #order: string

  /**
   * @param key the columns of the primary key; rows are listed in its order
   * @param counted whether `contents` has an entry for it
   */
  constructor(name: string, columns: C, key: readonly (keyof C & string)[], { counted = true } = {}) {
    this.name = name
    this.#columns = Object.entries(columns).map(([name, kind]) => ({ name, kind, column: snakeCase(name) }))
    this.#key = key
    this.#counted = counted
    const names = [...this.#columns.map(({ column }) => column), 'checksum']
    const where = key.map((each) => `${snakeCase(each)} = ?`).join(' AND ')
    this.#order = `ORDER BY ${key.map(snakeCase).join(', ')}`
    this.#select = `SELECT ${names.join(', ')} FROM ${name}`
    this.#byKey = `${this.#select} WHERE ${where}`
    this.#insert = `INSERT INTO ${name} (${names.join(', ')}) VALUES (${names.map(() => '?').join(', ')})`
    // Compares the checksum as well: a row that has changed since it was read is another row.
    this.#update = `UPDATE ${name} SET ${names.map((each) => `${each} = ?`).join(', ')} WHERE ${where} AND checksum = ?`
    this.#delete = `DELETE FROM ${name} WHERE ${where} AND checksum = ?`
  }

  /**
   * The rows in which these columns have these values, in the order of the key.
   *
   * @throws DM_CATALOG_DAMAGED
   */
  find(database: Statements, where: Partial<Row<C>>): Row<C>[] {
    const columns = Object.keys(where)
    if (columns.length === 0) return this.select(database, this.#order)
    const condition = columns.map((each) => `${snakeCase(each)} = ?`).join(' AND ')
    return this.select(database, `WHERE ${condition} ${this.#order}`, ...columns.map((each) => stored(where[each])))
  }

  /** The one row with these values, if there is one. */
  get(database: Statements, where: Partial<Row<C>>): Row<C> | undefined {
    return this.find(database, where)[0]
  }

  /** The one row with this key, if there is one. */
  byKey(database: Statements, ...key: SQLInputValue[]): Row<C> | undefined {
    const row = database.statement(this.#byKey).get(...key)
    return row && this.#read(database, row)
  }

  /** The rows that the rest of a SELECT, from WHERE on, names. */
  select(database: Statements, rest: string, ...values: SQLInputValue[]): Row<C>[] {
    const rows = database.statement(`${this.#select} ${rest}`).all(...values)
    return rows.map((each) => this.#read(database, each))
  }

  /** @throws DM_ARGUMENT_INVALID for a value its column cannot hold exactly */
  insert(database: Statements, row: Row<C>): void {
    const values = this.#write(row)
    database.statement(this.#insert).run(...values)
    this.#count(database, 1, checksumOf(values))
  }

  /**
   * Gives an existing row other values; its key stays. @param old the row as it is now @throws DM_INTERNAL when it has
   * changed
   */
  update(database: Statements, old: Row<C>, changes: Partial<Row<C>>): void {
    const [before, after] = [this.#write(old), this.#write({ ...old, ...changes })]
    this.#changeOne(database, this.#update, old, after)
    this.#count(database, 0, checksumOf(after) - checksumOf(before))
  }

  /** @param rows as they are now @throws DM_INTERNAL when one has changed */
  delete(database: Statements, rows: readonly Row<C>[]): void {
    let sum = 0
    for (const row of rows) {
      this.#changeOne(database, this.#delete, row)
      sum = (sum + checksumOf(this.#write(row))) % DIGEST_MODULUS
    }
    if (rows.length > 0) this.#count(database, -rows.length, -sum)
  }

  /** Reads every row, passes it to `found`, and compares all with `contents`. @throws DM_CATALOG_DAMAGED */
  verify(database: Statements, found?: (row: Row<C>) => void): void {
    let rows = 0
    let digest = 0
    for (const each of database.statement(this.#select).iterate()) {
      const row = this.#read(database, each)
      found?.(row)
      rows++
      digest = (digest + Number(each['checksum'])) % DIGEST_MODULUS
    }
    if (!this.#counted) return
    const expected = contents.get(database, { name: this.name })
    if (expected?.rowCount !== rows || expected.digest !== digest) {
      throw damagedCatalog(
        database.path,
        `its table ${this.name} holds ${rows} rows, which are not the ${expected?.rowCount ?? 'unknown number of'} rows written to it`
      )
    }
  }

  #changeOne(database: Statements, sql: string, row: Row<C>, values: readonly SQLInputValue[] = []): void {
    const key = this.#keyOf(row)
    const { changes } = database.statement(sql).run(...values, ...key, checksumOf(this.#write(row)))
    if (changes === 1) return
    // It was there when it was read.
    if (this.byKey(database, ...key) === undefined) {
      throw damagedCatalog(database.path, `a row of its table ${this.name} is not found by its key`)
    }
    throw defect(`a row of the catalog's table ${this.name} was to be changed as it was before it changed last`)
  }

  #keyOf(row: Row<C>): SQLInputValue[] {
    return this.#key.map((each) => stored(row[each]))
  }

  #count(database: Statements, rows: number, sum: number): void {
    if (!this.#counted) return
    const entry = contents.get(database, { name: this.name })
    if (entry === undefined) throw damagedCatalog(database.path, `it does not know how many rows ${this.name} has`)
    contents.update(database, entry, {
      rowCount: entry.rowCount + rows,
      digest: (entry.digest + (sum % DIGEST_MODULUS) + DIGEST_MODULUS) % DIGEST_MODULUS
    })
  }

  /** The values of a row as they are stored, its checksum last. */
  #write(row: Row<C>): SQLInputValue[] {
    const values = this.#columns.map(({ name, kind }) => {
      if (!fits(kind, row[name])) {
        throw invalid(
          `the catalog cannot keep ${show(row[name])} as ${name} of ${this.name}`,
          'give a value that it can keep: whole numbers below 2^53, text without control characters'
        )
      }
      return stored(row[name])
    })
    return [...values, this.#checksum(values)]
  }

  #read(database: Statements, raw: Record<string, SQLOutputValue>): Row<C> {
    if (this.#checksum(this.#columns.map(({ column }) => raw[column])) !== raw['checksum']) {
      throw damagedCatalog(database.path, `a row of its table ${this.name} does not have its checksum`)
    }
    const row: Record<string, unknown> = {}
    for (const { name, kind, column } of this.#columns) {
      const value = raw[column]
      row[name] = value === null ? undefined : kind.startsWith('u64') ? BigInt(value as string) : value
    }
    return row as Row<C>
  }

  /**
   * JSON tells a number from a text and from null, so no two different rows have the same form; bytes are in it by
   * their own checksum.
   */
  #checksum(values: readonly unknown[]): number {
    const spelt = values.map((value) =>
      typeof value === 'bigint'
        ? `${value}n`
        : value instanceof Uint8Array
          ? { length: value.length, checksum: crc32(value) }
          : value
    )
    return crc32(JSON.stringify([this.name, ...spelt]))
  }
}

/** How many rows each table has, and the sum of their checksums. */
export const contents = new Table('contents', { name: 'text', rowCount: 'count', digest: 'count' }, ['name'], {
  counted: false
})

/** The refusal of a damaged catalog. */
export function damagedCatalog(path: string, what: string, cause?: unknown): DeltamapperError {
  return new DeltamapperError(
    'DM_CATALOG_DAMAGED',
    `the catalog ${path} is damaged, or is no catalog: ${what}`,
    `move it away (with ${path}-wal if there is one) and start again: the agent then knows nothing of what it has served or created, so take ` +
      'full backups next, and let `deltamapper doctor` show what the kernel has; or, for pools of its own, restore a copy, which does not ' +
      'know what has voided the history of tracked volumes since: detach those, and attach them anew',
    { cause }
  )
}

function fits(kind: ColumnKind, value: unknown): boolean {
  if (value === undefined) return kind.endsWith('?')
  if (kind.startsWith('count')) return Number.isSafeInteger(value) && (value as number) >= 0
  if (kind.startsWith('u64')) return typeof value === 'bigint' && value >= 0n && value < U64_END
  if (kind === 'bytes') return value instanceof Uint8Array && value.length <= MOST_BYTES
  // SQLite would replace malformed text, and ends some texts at a NUL.
  return (
    typeof value === 'string' &&
    value.isWellFormed() &&
    !value.includes('\0') &&
    Buffer.byteLength(value) <= LONGEST_TEXT
  )
}

/** `undefined` is NULL, 64 bits are decimal text. */
function stored(value: unknown): SQLInputValue {
  return value === undefined ? null : typeof value === 'bigint' ? value.toString() : (value as SQLInputValue)
}

function checksumOf(values: readonly SQLInputValue[]): number {
  return values.at(-1) as number
}

function snakeCase(name: string): string {
  return name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}

function show(value: unknown): string {
  return typeof value === 'bigint' ? value.toString() : (JSON.stringify(value)?.slice(0, 100) ?? String(value))
}
