/**
 * The catalog's schema, as the steps that lead to it. Forward only: a published step never changes; later steps are
 * added.
 *
 * Each step is one transaction. It stores the schema's number twice: as `user_version`, which any SQLite tool shows,
 * and in the row of `catalog`, which has a checksum. A step that changes rows of an existing table must also renew
 * their checksums and the table's entry in `contents`. It reads and writes them through a `Table` that describes them
 * as they were.
 */
import { randomUUID } from 'node:crypto'
import type { DatabaseSync } from 'node:sqlite'
import { contents, type Statements, Table } from './table.ts'

/** "dltm": tells our databases from others. */
export const APPLICATION_ID = 0x646c746d

export interface Migration {
  readonly sql: string
  /** Tables that this step creates and whose rows are counted. */
  readonly adds: readonly string[]
  /** Counted tables that this step removes; a table that is created anew is in both lists. */
  readonly drops?: readonly string[]
  /** Converts rows whose form changes: reads them before the step's statements, and writes them after. */
  readonly carry?: (before: Statements) => (after: Statements) => void
}

/**
 * The one row about the catalog itself. The random `id` identifies the catalog. This table stays the same in every
 * schema, so that an older version can read that a catalog is newer.
 */
export const catalogTable = new Table(
  'catalog',
  { one: 'count', id: 'text', schema: 'count', createdAt: 'count' } as const,
  ['one'],
  { counted: false }
)

const first: Migration = {
  adds: ['served', 'pristine', 'pools', 'thins', 'intents', 'leases'],
  sql: `
    CREATE TABLE catalog (
      one INTEGER PRIMARY KEY CHECK (one = 1),
      id TEXT NOT NULL,
      schema INTEGER NOT NULL,
      created_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE contents (
      name TEXT PRIMARY KEY,
      row_count INTEGER NOT NULL,
      digest INTEGER NOT NULL,
      checksum INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE served (
      handle TEXT NOT NULL,
      identity TEXT NOT NULL,
      variant INTEGER NOT NULL CHECK (variant IN (0, 1)),
      pool TEXT NOT NULL,
      volume TEXT,
      thin_id INTEGER NOT NULL,
      creation_time INTEGER NOT NULL,
      transaction_id TEXT NOT NULL,
      root INTEGER NOT NULL,
      root_checksum INTEGER NOT NULL,
      mapped_blocks INTEGER NOT NULL,
      size_bytes INTEGER NOT NULL,
      first_served_at INTEGER NOT NULL,
      last_served_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL,
      PRIMARY KEY (handle, identity, variant)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX served_by_identity ON served (identity);
    CREATE INDEX served_by_age ON served (last_served_at);

    CREATE TABLE pristine (
      identity TEXT PRIMARY KEY,
      creation_time INTEGER NOT NULL,
      root INTEGER NOT NULL,
      root_checksum INTEGER NOT NULL,
      mapped_blocks INTEGER NOT NULL,
      found_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX pristine_by_age ON pristine (found_at);

    CREATE TABLE pools (
      name TEXT PRIMARY KEY,
      dm_name TEXT NOT NULL UNIQUE,
      data_device TEXT NOT NULL,
      metadata_device TEXT NOT NULL,
      data_block_sectors INTEGER NOT NULL,
      low_water_blocks INTEGER NOT NULL,
      features TEXT NOT NULL,
      transaction_id TEXT NOT NULL,
      created_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE thins (
      id TEXT PRIMARY KEY,
      pool TEXT NOT NULL REFERENCES pools (name),
      name TEXT NOT NULL,
      kind TEXT NOT NULL CHECK (kind IN ('volume', 'snapshot')),
      thin_id INTEGER NOT NULL,
      dm_name TEXT NOT NULL,
      size_bytes INTEGER NOT NULL,
      volume TEXT NOT NULL,
      origin TEXT,
      creation_time INTEGER NOT NULL,
      transaction_id TEXT NOT NULL,
      created_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL,
      UNIQUE (pool, name),
      UNIQUE (pool, thin_id)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE intents (
      pool TEXT PRIMARY KEY REFERENCES pools (name),
      kind TEXT NOT NULL,
      thin TEXT,
      name TEXT,
      thin_id INTEGER,
      dm_name TEXT,
      size_bytes INTEGER,
      origin TEXT,
      suspends TEXT,
      transaction_id TEXT,
      started_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE leases (
      device TEXT PRIMARY KEY,
      state TEXT NOT NULL CHECK (state IN ('reserving', 'held', 'releasing')),
      purpose TEXT NOT NULL,
      facts_before TEXT NOT NULL,
      held_root INTEGER,
      facts_held TEXT,
      taken_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
  `
}

/** Tracked volumes, their snapshots, and what was written between those. */
const second: Migration = {
  adds: ['era_volumes', 'era_intents', 'era_snapshots', 'era_writes'],
  sql: `
    CREATE TABLE era_volumes (
      name TEXT PRIMARY KEY,
      id TEXT NOT NULL UNIQUE,
      dm_name TEXT NOT NULL UNIQUE,
      data_device TEXT NOT NULL,
      data_identity TEXT NOT NULL,
      metadata_device TEXT NOT NULL,
      metadata_identity TEXT NOT NULL,
      block_sectors INTEGER NOT NULL,
      size_bytes INTEGER NOT NULL,
      line TEXT NOT NULL,
      line_because TEXT NOT NULL,
      newest_era INTEGER NOT NULL,
      fewest_blocks INTEGER NOT NULL,
      guard_checked_at INTEGER NOT NULL,
      lower_seen TEXT NOT NULL,
      allow_lossy_kernel INTEGER NOT NULL CHECK (allow_lossy_kernel IN (0, 1)),
      snapshot_by TEXT NOT NULL,
      boundary_era INTEGER,
      least_bytes INTEGER NOT NULL,
      open_exact INTEGER NOT NULL CHECK (open_exact IN (0, 1)),
      last_seq INTEGER NOT NULL,
      created_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE era_intents (
      volume TEXT PRIMARY KEY REFERENCES era_volumes (name),
      kind TEXT NOT NULL CHECK (kind IN ('attach', 'detach', 'grow', 'snapshot')),
      size_bytes INTEGER,
      snapshot TEXT,
      token TEXT,
      started_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE era_snapshots (
      id TEXT PRIMARY KEY,
      volume TEXT NOT NULL REFERENCES era_volumes (id),
      seq INTEGER NOT NULL,
      name TEXT NOT NULL,
      line TEXT NOT NULL,
      line_because TEXT NOT NULL,
      boundary_era INTEGER NOT NULL,
      size_bytes INTEGER NOT NULL,
      least_bytes INTEGER NOT NULL,
      exact INTEGER NOT NULL CHECK (exact IN (0, 1)),
      taken_at INTEGER NOT NULL,
      suspended_ms INTEGER NOT NULL,
      lower TEXT NOT NULL,
      removed_at INTEGER,
      checksum INTEGER NOT NULL,
      UNIQUE (volume, seq),
      UNIQUE (volume, name)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE era_writes (
      volume TEXT NOT NULL REFERENCES era_volumes (id),
      chunk INTEGER NOT NULL,
      seq INTEGER NOT NULL,
      line TEXT NOT NULL,
      blocks INTEGER NOT NULL,
      bytes BLOB NOT NULL,
      checksum INTEGER NOT NULL,
      PRIMARY KEY (volume, chunk, seq)
    ) STRICT;
    CREATE INDEX era_writes_by_boundary ON era_writes (volume, seq, line);
  `
}

/** Names of forgotten snapshots of tracked volumes. */
const eraNames: Migration = {
  adds: ['era_names'],
  sql: `
    CREATE TABLE era_names (
      handle TEXT PRIMARY KEY,
      taken_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX era_names_by_age ON era_names (taken_at);
  `
}

/** How far the clocks of pools had come. */
const poolClocks: Migration = {
  adds: ['pool_clocks'],
  sql: `
    CREATE TABLE pool_clocks (
      pool TEXT PRIMARY KEY,
      time INTEGER NOT NULL,
      transaction_id TEXT NOT NULL,
      devices BLOB NOT NULL,
      looked_at INTEGER NOT NULL,
      went_back_at INTEGER,
      went_back TEXT,
      checksum INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
  `
}

/** Shrinking is told from the last look, not from the smallest size ever. (Checksums are over values alone.) */
const seenBlocks: Migration = {
  adds: [],
  sql: 'ALTER TABLE era_volumes RENAME COLUMN fewest_blocks TO seen_blocks'
}

/** Served records as they were before bases were recorded too. */
const servedBefore = new Table(
  'served',
  {
    handle: 'text',
    identity: 'text',
    variant: 'count',
    pool: 'text',
    volume: 'text?',
    thinId: 'count',
    creationTime: 'count',
    transactionId: 'u64',
    root: 'count',
    rootChecksum: 'count',
    mappedBlocks: 'count',
    sizeBytes: 'count',
    firstServedAt: 'count',
    lastServedAt: 'count'
  } as const,
  ['handle', 'identity', 'variant']
)

/** The same as it is from then on. */
const servedWithRole = new Table(
  'served',
  {
    handle: 'text',
    identity: 'text',
    role: 'text',
    variant: 'count',
    pool: 'text',
    volume: 'text?',
    thinId: 'count',
    creationTime: 'count',
    transactionId: 'u64',
    mappedBlocks: 'count',
    sizeBytes: 'count',
    firstServedAt: 'count',
    lastServedAt: 'count'
  } as const,
  ['handle', 'identity', 'role', 'variant']
)

/**
 * Bases are recorded beside targets. The root of a tree proves nothing and is not kept, nor is what was concluded from
 * it.
 */
const basesBeside: Migration = {
  adds: ['served'],
  drops: ['served', 'pristine'],
  carry(before) {
    const rows = servedBefore.find(before, {})
    return (after) => {
      // A table writes the columns that it has: the root is left behind.
      for (const row of rows) servedWithRole.insert(after, { ...row, role: 'target' })
    }
  },
  sql: `
    DROP TABLE pristine;
    DROP TABLE served;
    CREATE TABLE served (
      handle TEXT NOT NULL,
      identity TEXT NOT NULL,
      role TEXT NOT NULL CHECK (role IN ('target', 'base')),
      variant INTEGER NOT NULL CHECK (variant IN (0, 1)),
      pool TEXT NOT NULL,
      volume TEXT,
      thin_id INTEGER NOT NULL,
      creation_time INTEGER NOT NULL,
      transaction_id TEXT NOT NULL,
      mapped_blocks INTEGER NOT NULL,
      size_bytes INTEGER NOT NULL,
      first_served_at INTEGER NOT NULL,
      last_served_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL,
      PRIMARY KEY (handle, identity, role, variant)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX served_by_identity ON served (identity);
    CREATE INDEX served_by_age ON served (last_served_at);
  `
}

/** Classic snapshots that were answered about. */
const classicSnapshots: Migration = {
  adds: ['classic_served'],
  sql: `
    CREATE TABLE classic_served (
      handle TEXT NOT NULL,
      identity TEXT NOT NULL,
      link TEXT NOT NULL,
      role TEXT NOT NULL CHECK (role IN ('target', 'base')),
      origin TEXT NOT NULL,
      size_bytes INTEGER NOT NULL,
      chunk_bytes INTEGER NOT NULL,
      entries INTEGER NOT NULL,
      digest TEXT NOT NULL,
      read_only INTEGER NOT NULL CHECK (read_only IN (0, 1)),
      first_served_at INTEGER NOT NULL,
      last_served_at INTEGER NOT NULL,
      checksum INTEGER NOT NULL,
      PRIMARY KEY (handle, identity, link, role)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX classic_served_by_identity ON classic_served (identity);
    CREATE INDEX classic_served_by_age ON classic_served (last_served_at);
  `
}

/** Snapshots that a record may stand for once they are gone. */
const basesOnRecord: Migration = {
  adds: ['bases'],
  sql: `
    CREATE TABLE bases (
      pool TEXT NOT NULL,
      identity TEXT NOT NULL,
      handle TEXT NOT NULL,
      volume TEXT,
      thin_id INTEGER NOT NULL,
      creation_time INTEGER NOT NULL,
      transaction_id TEXT NOT NULL,
      mapped_blocks INTEGER NOT NULL,
      size_bytes INTEGER NOT NULL,
      root INTEGER NOT NULL,
      root_checksum INTEGER NOT NULL,
      instance TEXT NOT NULL,
      first_served_at INTEGER NOT NULL,
      seen_at INTEGER NOT NULL,
      gone_at INTEGER,
      spoilt_by TEXT,
      spoilt TEXT,
      record TEXT,
      record_bytes INTEGER,
      recorded_at INTEGER,
      not_kept TEXT,
      answers INTEGER NOT NULL,
      checksum INTEGER NOT NULL,
      PRIMARY KEY (pool, identity)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX bases_by_identity ON bases (identity);
  `
}

/** Step n leads from schema n to schema n + 1. */
export const migrations: readonly Migration[] = [
  ...[first, second, eraNames, poolClocks, seenBlocks, basesBeside],
  ...[classicSnapshots, basesOnRecord]
]

/** The tables whose rows are counted after these steps. */
export function countedTables(steps: readonly Migration[]): string[] {
  const names = new Set<string>()
  for (const { adds, drops = [] } of steps) {
    for (const name of drops) names.delete(name)
    for (const name of adds) names.add(name)
  }
  return [...names]
}

/**
 * Takes one step, inside the caller's transaction.
 *
 * @param from the schema that the database has; 0 for an empty one
 */
export function applyMigration(
  database: DatabaseSync & object,
  statements: Statements,
  from: number,
  step: Migration
): void {
  const write = step.carry?.(statements)
  database.exec(step.sql)
  if (from === 0) {
    database.exec(`PRAGMA application_id = ${APPLICATION_ID}`)
    catalogTable.insert(statements, { one: 1, id: randomUUID(), schema: 1, createdAt: Date.now() })
  } else {
    const [row] = catalogTable.find(statements, {})
    catalogTable.update(statements, row, { schema: from + 1 })
  }
  for (const name of step.drops ?? []) contents.delete(statements, contents.find(statements, { name }))
  for (const name of step.adds) contents.insert(statements, { name, rowCount: 0, digest: 0 })
  write?.(statements)
  database.exec(`PRAGMA user_version = ${from + 1}`)
}
