/**
 * The bitmaps of tracked volumes' histories as they are stored: one row for each chunk and boundary with at least one
 * write.
 *
 * A missing row would be a block that is not reported as changed, and SQLite does not notice one. If a bit flips on the
 * disk in a row's key, or in a page of an index, the row is not found. The history may be far larger than memory, so it
 * is read from the disk when it is needed. Therefore the keys of all rows are kept in memory, from the check of the
 * whole table on. Rows are only read by key, never searched for, and a row that does not come is damage.
 */
import { eraWritesTable } from './era-tables.ts'
import type { KeptPages } from './kept-pages.ts'
import { damagedCatalog, type RowOf, type Statements } from './table.ts'

export type WritesRow = RowOf<typeof eraWritesTable>

/** Which bitmap. `volume` is the volume's id. */
export type WritesKey = Pick<WritesRow, 'volume' | 'chunk' | 'seq'>

/** Bitmaps of one boundary of a volume. */
interface Boundary {
  /** All rows of one boundary belong to one history. */
  readonly line: string
  /** Bytes of each chunk's bitmap. As plain numbers, because there may be hundreds of thousands. */
  readonly sizes: Map<number, number>
  /** No chunk comes after this one. */
  lastChunk: number
}

export class EraWrites {
  readonly #database: Statements
  readonly #kept: KeptPages
  /** By volume and `seq`. */
  readonly #volumes = new Map<string, Map<number, Boundary>>()

  constructor(database: Statements, kept: KeptPages) {
    this.#database = database
    this.#kept = kept
  }

  /** Checks every row, and from then on knows which exist. @throws DM_CATALOG_DAMAGED */
  verify(): void {
    this.#volumes.clear()
    eraWritesTable.verify(this.#database, (row) => {
      this.#kept.readAnother(row.bytes.length)
      this.#add(row)
    })
  }

  has({ volume, chunk, seq }: WritesKey): boolean {
    return this.#volumes.get(volume)?.get(seq)?.sizes.has(chunk) ?? false
  }

  /** @param key of an existing bitmap @throws DM_CATALOG_DAMAGED */
  get({ volume, chunk, seq }: WritesKey): WritesRow {
    const row = eraWritesTable.byKey(this.#database, volume, chunk, seq)
    // A damaged index may lead to another row, whose checksum is right.
    if (row?.volume !== volume || row.chunk !== chunk || row.seq !== seq) {
      throw damagedCatalog(
        this.#database.path,
        `what was written in chunk ${chunk} before boundary ${seq} of tracked volume ${volume} is missing`
      )
    }
    this.#kept.readAnother(row.bytes.length)
    return row
  }

  insert(row: WritesRow): void {
    eraWritesTable.insert(this.#database, row)
    this.#kept.changedAnother(row.bytes.length)
    this.#add(row)
  }

  update(row: WritesRow, changes: Pick<WritesRow, 'blocks' | 'bytes'>): void {
    eraWritesTable.update(this.#database, row, changes)
    this.#kept.changedAnother(row.bytes.length + changes.bytes.length)
    this.#add({ ...row, ...changes })
  }

  delete(row: WritesRow): void {
    eraWritesTable.delete(this.#database, [row])
    this.#kept.changedAnother(row.bytes.length)
    const boundaries = this.#volumes.get(row.volume)
    const boundary = boundaries?.get(row.seq)
    boundary?.sizes.delete(row.chunk)
    if (boundary?.sizes.size === 0) boundaries?.delete(row.seq)
    if (boundaries?.size === 0) this.#volumes.delete(row.volume)
  }

  /** The boundaries of a volume that have bitmaps, in their order. */
  boundaries(volume: string): { seq: number; line: string }[] {
    const all = [...(this.#volumes.get(volume) ?? [])]
    return all.map(([seq, { line }]) => ({ seq, line })).sort((one, other) => one.seq - other.seq)
  }

  /** The chunks written before a boundary; those that were stored first come first. */
  chunks(volume: string, seq: number): number[] {
    return [...(this.#volumes.get(volume)?.get(seq)?.sizes.keys() ?? [])]
  }

  /**
   * The bitmaps of the boundaries after `from`, up to and including `to`, by chunk and boundary. @param after begin
   * behind this place
   */
  *places(
    volume: string,
    from: number,
    to: number,
    after: { chunk: number; seq: number }
  ): Generator<{ chunk: number; seq: number }> {
    const between = [...(this.#volumes.get(volume) ?? [])]
      .filter(([seq]) => seq > from && seq <= to)
      .sort(([one], [other]) => one - other)
    const lastChunk = between.reduce((last, [, boundary]) => Math.max(last, boundary.lastChunk), 0)
    for (let { chunk } = after; chunk <= lastChunk; chunk++) {
      for (const [seq, { sizes }] of between) {
        if (sizes.has(chunk) && (chunk > after.chunk || seq > after.seq)) yield { chunk, seq }
      }
    }
  }

  /** How many bitmaps a volume has, and their bytes. */
  totals(volume: string): { bitmaps: number; bytes: number } {
    let [bitmaps, bytes] = [0, 0]
    for (const { sizes } of this.#volumes.get(volume)?.values() ?? []) {
      bitmaps += sizes.size
      for (const size of sizes.values()) bytes += size
    }
    return { bitmaps, bytes }
  }

  #add({ volume, chunk, seq, line, bytes }: WritesRow): void {
    let boundaries = this.#volumes.get(volume)
    if (boundaries === undefined) this.#volumes.set(volume, (boundaries = new Map<number, Boundary>()))
    let boundary = boundaries.get(seq)
    if (boundary === undefined) boundaries.set(seq, (boundary = { line, sizes: new Map(), lastChunk: 0 }))
    boundary.sizes.set(chunk, bytes.length)
    boundary.lastChunk = Math.max(boundary.lastChunk, chunk)
  }
}
