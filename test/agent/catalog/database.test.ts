import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync
} from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import test from 'ava'
import { type CatalogDatabase, openDatabase } from '../../../src/agent/catalog/database.ts'
import { migrations } from '../../../src/agent/catalog/store/migrations.ts'
import { remember, servedTable } from '../../../src/agent/catalog/served-targets.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { Random } from '../../support/random.ts'
import { contentOfDatabase, fill, servedTarget, testFolder } from './examples.ts'

/** More for a longer run: how many random damages are tried, of each kind. */
const TRIALS = Number(process.env['DELTAMAPPER_CATALOG_DAMAGES'] ?? 60)
/** Other damages. */
const SEED = Number(process.env['DELTAMAPPER_CATALOG_SEED'] ?? 1)

test('a new catalog is for its owner only, in a folder for its owner only', (t) => {
  const path = join(testFolder(t), 'lib', 'deltamapper', 'catalog.db')
  const database = openDatabase(path)
  t.deepEqual(database.opening, { created: true, schemaBefore: migrations.length, schema: migrations.length })
  t.is(statSync(join(path, '..')).mode & 0o777, 0o700)
  t.is(statSync(join(path, '../..')).mode & 0o777, 0o700)
  remember(database, servedTarget(), 0)
  for (const each of readdirSync(join(path, '..'))) t.is(statSync(join(path, '..', each)).mode & 0o777, 0o600, each)
  t.is(statSync(`${path}-wal`).size, 0, 'what was promised is not in the log alone')
  database.close()
  t.deepEqual(readdirSync(join(path, '..')), ['catalog.db'])
  t.deepEqual(readFileSync(path).subarray(0, 15).toString(), 'SQLite format 3')
})

test('permissions that were opened are closed again', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  openDatabase(path).close()
  chmodSync(path, 0o644)
  const database = openDatabase(path)
  t.is(statSync(path).mode & 0o777, 0o600)
  t.is(statSync(`${path}-wal`).mode & 0o777, 0o600)
  database.close()
})

test('it is the same after closing and opening', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  let database = openDatabase(path)
  fill(database)
  const content = contentOfDatabase(database)
  t.is(content.served.length, 21)
  t.is(content.view.thins.length, 3)
  t.is(content.view.intents.length, 1)
  t.is(content.leases.length, 1)
  database.close()
  database = openDatabase(path)
  t.deepEqual(database.opening, { created: false, schemaBefore: migrations.length, schema: migrations.length })
  t.deepEqual(contentOfDatabase(database), content)
  t.deepEqual(database.statistics(), {
    bytes: statSync(path).size,
    rows: {
      ...{ served: 21, pools: 2, thins: 3, intents: 1, leases: 1 },
      ...{
        era_volumes: 1,
        era_intents: 1,
        era_snapshots: 5,
        era_writes: 7,
        bases: 0,
        era_names: 0,
        pool_clocks: 0,
        classic_served: 0
      }
    }
  })
  database.close()
})

test('durable means durable: log with every commit, foreign keys, no shared memory', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const database = openDatabase(path)
  const pragma = (name: string) => Object.values(database.statement(`PRAGMA ${name}`).get() ?? {})[0]
  t.is(pragma('journal_mode'), 'wal')
  t.is(pragma('synchronous'), 2)
  t.is(pragma('foreign_keys'), 1)
  t.is(pragma('locking_mode'), 'exclusive')
  t.is(pragma('user_version'), migrations.length)
  t.is(pragma('application_id'), 0x646c746d)
  t.false(existsSync(`${path}-shm`))
  database.close()
})

test('what fails within a transaction leaves nothing', (t) => {
  const database = openDatabase(join(testFolder(t), 'catalog.db'))
  fill(database)
  const content = contentOfDatabase(database)
  t.throws(
    () =>
      database.write(() => {
        servedTable.delete(database, servedTable.find(database, {}))
        throw new Error('no')
      }),
    { message: 'no' }
  )
  t.deepEqual(contentOfDatabase(database), content)
  database.close()
})

// Locks

test('two cannot use one catalog, not even in one process', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const database = openDatabase(path)
  const error = t.throws(() => openDatabase(path, { lockWaitMs: 0 }), { code: 'DM_CATALOG_IN_USE' })
  t.true(error?.message.includes(path))
  // The first one is not disturbed by the attempt.
  remember(database, servedTarget(), 0)
  database.close()
  openDatabase(path, { lockWaitMs: 0 }).close()
})

/** Another process that holds the catalog until it is killed. */
async function holder(path: string): Promise<ChildProcess> {
  const program = `
    const { openDatabase } = await import(process.argv[1])
    globalThis.database = openDatabase(process.argv[2])
    console.log('open')
    setInterval(() => {}, 1000)`
  const source = new URL('../../../src/agent/catalog/database.ts', import.meta.url).href
  const child = spawn(process.execPath, ['--input-type=module', '-e', program, source, path], {
    stdio: ['ignore', 'pipe', 'inherit']
  })
  await once(child.stdout, 'data')
  return child
}

test('another process that has it is named; when it is killed, it is free', async (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const child = await holder(path)
  t.teardown(() => child.kill('SIGKILL'))
  const error = t.throws(() => openDatabase(path, { lockWaitMs: 50 }), { code: 'DM_CATALOG_IN_USE' })
  t.true(error?.message.includes(path))
  t.regex(error?.message ?? '', new RegExp(`process ${child.pid}\\b`))
  const exit = once(child, 'exit')
  child.kill('SIGKILL')
  await exit
  const database = openDatabase(path, { lockWaitMs: 0 })
  t.false(database.opening.created)
  database.close()
})

test('a process that is about to let go is waited for', async (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const child = await holder(path)
  spawn('sh', ['-c', `sleep 0.3; kill -9 ${child.pid}`])
  t.notThrows(() => {
    openDatabase(path, { lockWaitMs: 10_000 }).close()
  })
})

// What is no catalog of ours

test('a newer schema is refused, and nothing is changed', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const next = [...migrations, { sql: 'CREATE TABLE later (a INTEGER) STRICT', adds: [] }]
  openDatabase(path, { steps: next }).close()
  const before = readFileSync(path)
  const error = t.throws(() => openDatabase(path), { code: 'DM_CATALOG_NEWER' })
  t.regex(error?.message ?? '', new RegExp(`schema ${next.length}.* up to ${migrations.length}$`))
  t.deepEqual(readFileSync(path), before)
  t.notThrows(() => {
    openDatabase(path, { steps: next }).close()
  })
})

test('an older schema is brought forward, with what it holds', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  let database = openDatabase(path)
  fill(database)
  const content = contentOfDatabase(database)
  database.close()
  const next = [
    ...migrations,
    {
      sql: 'CREATE TABLE later (a TEXT PRIMARY KEY, checksum INTEGER) STRICT, WITHOUT ROWID',
      adds: ['later']
    },
    { sql: 'CREATE INDEX later_by_checksum ON later (checksum)', adds: [] }
  ]
  database = openDatabase(path, { steps: next })
  t.deepEqual(database.opening, { created: false, schemaBefore: migrations.length, schema: next.length })
  t.deepEqual(contentOfDatabase(database), content)
  t.is(database.statistics().rows['later'], 0)
  database.close()
  database = openDatabase(path, { steps: next })
  t.is(database.opening.schemaBefore, next.length)
  database.close()
})

test('a step that fails leaves the schema before it', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  let database = openDatabase(path)
  fill(database)
  const content = contentOfDatabase(database)
  database.close()
  const broken = [...migrations, { sql: 'CREATE TABLE later (a TEXT) STRICT; SELECT nonsense', adds: [] }]
  t.throws(() => openDatabase(path, { steps: broken }), { instanceOf: DeltamapperError, message: /nonsense/ })
  database = openDatabase(path)
  t.deepEqual(contentOfDatabase(database), content)
  database.close()
})

test('what is no catalog is refused, and not touched', (t) => {
  const folder = testFolder(t)
  const text = join(folder, 'passwd')
  writeFileSync(text, 'root:x:0:0:root:/root:/bin/bash\n'.repeat(100), { mode: 0o644 })
  const foreign = join(folder, 'foreign.db')
  const other = new DatabaseSync(foreign)
  other.exec('CREATE TABLE t (a); INSERT INTO t VALUES (1)')
  other.close()
  chmodSync(foreign, 0o644)
  const empty = join(folder, 'empty')
  writeFileSync(empty, '')
  const log = join(folder, 'gone.db')
  writeFileSync(`${log}-wal`, 'something')
  mkdirSync(join(folder, 'folder'))
  for (const [path, message] of [
    [text, /not a database/],
    [foreign, /application id is 0/],
    [empty, /it is empty/],
    [log, /there is only its log/],
    [join(folder, 'folder'), /it is not a file/]
  ] as const) {
    const before = existsSync(path) && statSync(path).isFile() ? readFileSync(path) : undefined
    const error = t.throws(() => openDatabase(path), { instanceOf: DeltamapperError, message })
    t.is(error.code, 'DM_CATALOG_DAMAGED')
    t.true(error.remedy.includes(`${path}-wal`))
    if (before === undefined) continue
    t.deepEqual(readFileSync(path), before)
    t.is(statSync(path).mode & 0o777, 0o644)
  }
})

test('where it cannot be written is said', (t) => {
  const folder = testFolder(t)
  writeFileSync(join(folder, 'file'), '')
  t.throws(() => openDatabase(join(folder, 'file', 'catalog.db')), {
    code: 'DM_CATALOG_UNAVAILABLE',
    message: /ENOTDIR|EEXIST/
  })
  symlinkSync(join(folder, 'nowhere', 'catalog.db'), join(folder, 'dangling.db'))
  t.throws(() => openDatabase(join(folder, 'dangling.db')), { instanceOf: DeltamapperError })
})

test('what an interrupted creation has left is cleared away', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  for (const each of ['new-1', 'new-1-wal', 'new-2-journal']) writeFileSync(`${path}.${each}`, 'half')
  writeFileSync(`${path}.old`, 'kept')
  openDatabase(path).close()
  t.deepEqual(readdirSync(join(path, '..')).sort(), ['catalog.db', 'catalog.db.old'])
})

// Damage

/** A filled catalog's bytes and what it answers. */
function example(folder: string): { bytes: Buffer; content: unknown } {
  const path = join(folder, 'example.db')
  const database = openDatabase(path)
  fill(database)
  // Pages that were used and no longer are.
  for (let i = 0; i < 100; i++) remember(database, servedTarget({ handle: `old/${i}`, identity: `old:${i}` }), i)
  servedTable.delete(
    database,
    servedTable.find(database, {}).filter(({ handle }) => handle.startsWith('old/'))
  )
  const content = contentOfDatabase(database)
  database.close()
  return { bytes: readFileSync(path), content }
}

/** Opens what may be damaged. */
function tryOpen(path: string): { content: unknown } | { error: unknown } {
  let database: CatalogDatabase | undefined
  try {
    database = openDatabase(path, { lockWaitMs: 0 })
    return { content: contentOfDatabase(database) }
  } catch (error) {
    return { error }
  } finally {
    database?.close()
  }
}

test('bytes flipped anywhere: an error that says so, or the same answers', (t) => {
  const folder = testFolder(t)
  const { bytes, content } = example(folder)
  const path = join(folder, 'catalog.db')
  const random = new Random(SEED)
  const verdicts: Record<string, number> = {}
  for (let trial = 0; trial < TRIALS; trial++) {
    const damaged = Buffer.from(bytes)
    // The first page, with the file's header and the schema's text, is where most can go wrong.
    const end = random.chance(0.3) ? 4096 : bytes.length
    const flips = random.chance(0.7) ? 1 : random.integer(2, 5)
    const places = Array.from({ length: flips }, () => random.integer(0, end - 1))
    for (const each of places) damaged[each] ^= random.integer(1, 255)
    writeFileSync(path, damaged)
    const what = `seed ${SEED}, trial ${trial}, bytes ${places.join()}`
    const outcome = tryOpen(path)
    if ('content' in outcome) {
      t.deepEqual(outcome.content, content, what)
      verdicts['same'] = (verdicts['same'] ?? 0) + 1
    } else {
      const { error } = outcome
      if (!(error instanceof DeltamapperError)) throw new Error(what, { cause: error })
      t.true(['DM_CATALOG_DAMAGED', 'DM_CATALOG_NEWER'].includes(error.code), `${what}: ${error.line}`)
      verdicts[error.code] = (verdicts[error.code] ?? 0) + 1
    }
    clear(path)
  }
  t.log(verdicts)
  t.true(verdicts['DM_CATALOG_DAMAGED'] > TRIALS / 10)
})

test('blocks lost, swapped, or as they were before: an error that says so, or the same answers', (t) => {
  const folder = testFolder(t)
  const { bytes, content } = example(folder)
  const path = join(folder, 'catalog.db')
  writeFileSync(path, bytes)
  const database = openDatabase(path)
  remember(database, servedTarget({ handle: 'vg/s2', identity: 'lvm:2', mappedBlocks: 1 }), 5_000_000)
  const newContent = contentOfDatabase(database)
  database.close()
  const newBytes = readFileSync(path)
  const random = new Random(SEED + 1)
  const pages = newBytes.length / 4096
  for (let trial = 0; trial < TRIALS; trial++) {
    let damaged = Buffer.from(newBytes)
    const [one, other] = [random.integer(0, pages - 1) * 4096, random.integer(0, pages - 1) * 4096]
    const kind = random.pick(['truncated', 'zeroed', 'swapped', 'sector zeroed', 'old', 'longer'] as const)
    if (kind === 'truncated') damaged = damaged.subarray(0, random.integer(0, damaged.length - 1))
    else if (kind === 'zeroed') damaged.fill(0, one, one + 4096)
    else if (kind === 'swapped') {
      newBytes.copy(damaged, one, other, other + 4096)
      newBytes.copy(damaged, other, one, one + 4096)
    } else if (kind === 'sector zeroed') damaged.fill(0, one + 512, one + 1024)
    else if (kind === 'old') bytes.copy(damaged, one, one, one + 4096)
    else damaged = Buffer.concat([damaged, Buffer.alloc(random.integer(1, 9000))])
    writeFileSync(path, damaged)
    const what = `seed ${SEED}, trial ${trial}, ${kind} ${one} ${other}`
    const outcome = tryOpen(path)
    if ('content' in outcome) t.deepEqual(outcome.content, newContent, what)
    else {
      t.true(outcome.error instanceof DeltamapperError, what)
      t.is(
        (outcome.error as DeltamapperError).code,
        'DM_CATALOG_DAMAGED',
        `${what}: ${(outcome.error as Error).message}`
      )
    }
    clear(path)
  }
  t.notDeepEqual(content, newContent)
})

test('a log damaged at any moment of a write undoes nothing that was promised', (t) => {
  const folder = testFolder(t)
  const { bytes, content: promised } = example(folder)
  const path = join(folder, 'catalog.db')
  writeFileSync(path, bytes)

  // One more write, stopped after it was committed to the log.
  const database = openDatabase(path)
  database.statement('BEGIN').run()
  servedTable.insert(database, {
    ...servedTarget({ handle: 'vg/late', identity: 'late' }),
    ...{ role: 'target', variant: 0, firstServedAt: 0, lastServedAt: 0 }
  })
  database.statement('COMMIT').run()
  const underWay = contentOfDatabase(database)
  copyFileSync(`${path}-wal`, join(folder, 'log'))
  database.close()
  const log = readFileSync(join(folder, 'log'))
  const after = readFileSync(path)
  t.true(log.length > 3 * 4096)

  const random = new Random(SEED + 2)
  const verdicts = { promised: 0, underWay: 0, refused: 0 }
  for (let trial = 0; trial < TRIALS; trial++) {
    // Any of the blocks it changed may have reached the database already, or be torn.
    const torn = Buffer.from(
      bytes.length === after.length ? bytes : Buffer.concat([bytes, after.subarray(bytes.length)])
    )
    const copied = random.pick(['none', 'some', 'all'] as const)
    for (let page = 0; page < torn.length; page += 512) {
      if (copied === 'all' || (copied === 'some' && random.chance(0.5))) after.copy(torn, page, page, page + 512)
    }
    const damagedLog = Buffer.from(log)
    const intact = random.chance(0.2)
    if (!intact) damagedLog[random.integer(0, log.length - 1)] ^= random.integer(1, 255)
    writeFileSync(path, torn)
    writeFileSync(
      `${path}-wal`,
      random.chance(0.2) && !intact ? log.subarray(0, random.integer(0, log.length)) : damagedLog
    )
    const what = `seed ${SEED}, trial ${trial}, ${copied} copied`
    const outcome = tryOpen(path)
    if ('content' in outcome) {
      const isPromised = JSON.stringify(outcome.content, bigints) === JSON.stringify(promised, bigints)
      if (!isPromised || intact) t.deepEqual(outcome.content, underWay, what)
      verdicts[isPromised ? 'promised' : 'underWay']++
    } else {
      t.false(intact, `${what}: ${(outcome.error as Error).message}`)
      t.is((outcome.error as DeltamapperError).code, 'DM_CATALOG_DAMAGED', what)
      verdicts.refused++
    }
    clear(path)
  }
  t.log(verdicts)
  t.true(verdicts.promised > 0 && verdicts.underWay > 0)
})

test('a row that is damaged while the catalog is open is not served', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const database = openDatabase(path)
  fill(database)
  database.statement("UPDATE served SET mapped_blocks = mapped_blocks + 1 WHERE handle = 'vg/s5'").run()
  t.throws(() => contentOfDatabase(database), { code: 'DM_CATALOG_DAMAGED', message: /a row of its table served/ })
  database.close()
  t.throws(() => openDatabase(path), { code: 'DM_CATALOG_DAMAGED' })
})

test('a row that goes missing before it is changed is damage', (t) => {
  const database = openDatabase(join(testFolder(t), 'catalog.db'))
  fill(database)
  const [row] = servedTable.find(database, { handle: 'vg/s5' })
  database.statement("DELETE FROM served WHERE handle = 'vg/s5'").run()
  const change = { code: 'DM_CATALOG_DAMAGED', message: /a row of its table served is not found by its key/ }
  t.throws(() => {
    servedTable.update(database, row, { lastServedAt: 7 })
  }, change)
  t.throws(() => {
    servedTable.delete(database, [row])
  }, change)
  database.close()
})

for (const [what, sql] of [
  ['a row that was removed', "DELETE FROM served WHERE handle = 'vg/s5'"],
  ['a row under another key', "UPDATE served SET handle = 'vg/s5' WHERE handle = 'vg/s6'"],
  ['an older state of a table', 'UPDATE contents SET row_count = 1'],
  ['a table that is no longer counted', "DELETE FROM contents WHERE name = 'leases'"],
  ['a number as text', "UPDATE pools SET transaction_id = '0' || transaction_id"],
  ['another schema number', 'PRAGMA user_version = 0'],
  ['a larger schema number', 'PRAGMA user_version = 99'],
  ['another text of the schema', 'DROP INDEX served_by_age'],
  ['a table that does not belong', 'CREATE TABLE extra (a)']
] as const) {
  test(`made by another program, ${what} is found out`, (t) => {
    const path = join(testFolder(t), 'catalog.db')
    const database = openDatabase(path)
    fill(database)
    database.close()
    const other = new DatabaseSync(path)
    other.exec(sql)
    other.close()
    t.throws(() => openDatabase(path), { code: 'DM_CATALOG_DAMAGED' })
  })
}

test('a catalog cut off to nothing is not taken for a new one', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  openDatabase(path).close()
  truncateSync(path, 0)
  t.throws(() => openDatabase(path), { code: 'DM_CATALOG_DAMAGED' })
})

function clear(path: string): void {
  for (const each of [path, `${path}-wal`, `${path}-journal`]) if (existsSync(each)) truncateSync(each, 0)
  if (existsSync(`${path}-wal`)) writeFileSync(`${path}-wal`, '')
}

function bigints(_: string, value: unknown): unknown {
  return typeof value === 'bigint' ? `${value}n` : value
}

test('a catalog behind a symbolic link is not opened, and what the link leads to stays as it is', (t) => {
  const folder = testFolder(t)
  const [path, target] = [join(folder, 'linked.db'), join(folder, 'somebody-elses')]
  writeFileSync(target, 'theirs', { mode: 0o644 })
  symlinkSync(target, path)
  const error = t.throws<DeltamapperError>(() => openDatabase(path), { instanceOf: DeltamapperError })
  t.is(error?.code, 'DM_CONFIG_INVALID')
  t.regex(error?.message ?? '', /is a symbolic link/)
  t.is(statSync(target).mode & 0o777, 0o644)
  t.is(readFileSync(target, 'utf8'), 'theirs')
})
