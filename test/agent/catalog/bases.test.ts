/** When a record may stand for a snapshot that is gone, as far as looks on record decide. */
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import type { Admission, RecordAdmission } from '../../../src/agent/catalog/admission.ts'
import { type BaseLook, LONGEST_UNWATCHED_MS } from '../../../src/agent/catalog/bases.ts'
import { catalogCalls, runCall } from '../../../src/agent/catalog/calls.ts'
import { Catalog } from '../../../src/agent/catalog/catalog.ts'
import { openDatabase } from '../../../src/agent/catalog/database.ts'
import type { ServedTarget } from '../../../src/agent/catalog/fingerprint.ts'
import { packDevices } from '../../../src/devicemapper/thin/base-record/pool-moment.ts'
import type { ErrorCode } from '../../../src/errors.ts'

// Each test has a catalog of its own, in memory where that is possible, and without a thread: it is about rules, not disks.
const folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'deltamapper-bases-'))
test.after.always(() => {
  rmSync(folder, { recursive: true, force: true })
})

let catalogs = 0
async function newCatalog(t: ExecutionContext): Promise<Catalog> {
  const database = openDatabase(join(folder, `catalog-${++catalogs}.db`))
  t.teardown(() => {
    database.close()
  })
  const calls = catalogCalls(database)
  return new Catalog(database.path, {
    run: () => ({
      ...{ opening: Promise.resolve(database.opening), gone: Promise.resolve(), ended: false, stuck: false },
      call: async (call, args) => (call === 'close' ? undefined : runCall(calls, call, args))
    })
  })
}

function snapshot(name: string, creationTime: number, more: Partial<ServedTarget> = {}): ServedTarget {
  return {
    ...{ handle: `vg/${name}`, identity: `uuid of ${name}`, pool: 'pool', volume: 'data', thinId: creationTime },
    ...{ creationTime, mappedBlocks: 100, transactionId: 1n, sizeBytes: 2 ** 30, ...more }
  }
}

const look = (more: Partial<BaseLook> = {}): BaseLook => ({
  ...{ instance: 'boot/253:3/17', uptimeMs: 1000, writable: undefined, root: 7, rootChecksum: 8, ...more }
})

const [monday, tuesday] = [snapshot('monday', 1), snapshot('tuesday', 2)]

function asked(target: ServedTarget, targetLook: BaseLook | undefined, more: Partial<Admission> = {}): Admission {
  return {
    ...{ base: undefined, target, resumed: false, strictBases: false, wentBack: undefined },
    ...{ looks: { target: targetLook }, ...more }
  }
}

/** Monday is served and recorded. */
async function served(t: ExecutionContext, first = look()): Promise<Catalog> {
  const catalog = await newCatalog(t)
  await catalog.served.admit(asked(monday, first), 1)
  t.true(await catalog.bases.kept({ pool: 'pool', identity: monday.identity, record: 'monday.base', bytes: 10 }, 2))
  return catalog
}

function gone(more: Partial<RecordAdmission> = {}): RecordAdmission {
  return {
    ...{ handle: 'vg/monday', recorded: { identity: monday.identity, record: 'monday.base' } },
    ...{ pool: { instance: 'boot/253:3/17', uptimeMs: 2000 }, target: tuesday, resumed: false, wentBack: undefined },
    ...more
  }
}

async function refused(t: ExecutionContext, catalog: Catalog, code: ErrorCode, more: Partial<RecordAdmission> = {}) {
  const before = await catalog.statistics()
  await t.throwsAsync(catalog.served.admitFromRecord(gone(more), 3), { code })
  t.is((await catalog.statistics()).rows['served'], before.rows['served'], 'nothing was answered')
  // What was refused once stays refused.
  await t.throwsAsync(catalog.served.admitFromRecord(gone(more), 4), { code })
}

test('a record stands for a snapshot that was read-only from its answer to its end', async (t) => {
  const catalog = await served(t)
  const known = await catalog.served.admitFromRecord(gone({ looks: { target: look() } }), 3)
  t.like(known, { identity: monday.identity, record: 'monday.base', goneAt: 3 })
  t.like(await catalog.bases.find(monday), { answers: 1, goneAt: 3, spoilt: undefined })
  t.is((await catalog.bases.find(tuesday))?.spoilt, undefined, 'the target may be the next base')
  // It is gone for good: how long ago, does not matter.
  const later = { instance: 'boot/253:3/17', uptimeMs: 10 ** 9 }
  t.is((await catalog.served.admitFromRecord(gone({ pool: later }), 5)).identity, monday.identity)
})

for (const [what, change, code] of [
  ['a device that can be written to', { writable: 'its device could be written to' }, 'DM_BASE_RECORD_WRITABLE'],
  ['another root', { root: 9 }, 'DM_BASE_RECORD_WRITABLE'],
  ['another checksum', { rootChecksum: 9 }, 'DM_BASE_RECORD_WRITABLE'],
  ['another activation of its pool', { instance: 'boot/253:3/18' }, 'DM_BASE_RECORD_INTERRUPTED']
] as const) {
  test(`a look at ${what} spoils a record, and no later look mends it`, async (t) => {
    for (const see of ['look', 'target', 'base'] as const) {
      const catalog = await served(t)
      const seen = look(change)
      if (see === 'look') await catalog.bases.saw(monday, seen)
      else if (see === 'target') await catalog.served.admit(asked(monday, seen), 2)
      else {
        const looks = { base: seen, target: look() }
        await catalog.served.admit(asked(snapshot('wednesday', 3), undefined, { base: monday, looks }), 2)
      }
      await catalog.bases.saw(monday, look())
      await refused(t, catalog, code)
    }
  })
}

test('a look spoils a record although the question is refused', async (t) => {
  for (const [base, target] of [
    [{ ...monday, mappedBlocks: 99 }, snapshot('wednesday', 3)],
    [monday, { ...snapshot('other', 3), volume: 'other' }]
  ] as const) {
    const catalog = await served(t)
    await catalog.served.remember(target, 1)
    const looks = { base: look({ root: 9 }), target: undefined }
    await t.throwsAsync(catalog.served.admit(asked(target, undefined, { base, looks }), 2))
    await catalog.bases.saw(monday, look())
    t.is((await catalog.bases.find(monday))?.spoiltBy, 'DM_BASE_RECORD_WRITABLE')
  }
})

for (const [field, value] of [
  ['mappedBlocks', 99],
  ['sizeBytes', 2 ** 29],
  ['thinId', 77],
  ['creationTime', 2],
  ['transactionId', 2n]
] as const) {
  test(`a look at another ${field} spoils a record`, async (t) => {
    const catalog = await served(t)
    await catalog.bases.saw({ ...monday, [field]: value }, look())
    await refused(t, catalog, 'DM_BASE_RECORD_WRITABLE')
  })
}

test('what was writable at its first answer has no record, also if it is made read-only and served again', async (t) => {
  const catalog = await newCatalog(t)
  await catalog.served.admit(asked(monday, look({ writable: 'it was not made read-only' })), 1)
  await catalog.served.admit(asked(monday, look()), 2)
  t.false(await catalog.bases.kept({ pool: 'pool', identity: monday.identity, record: 'monday.base', bytes: 10 }))
  await t.throwsAsync(catalog.bases.byHandle('vg/monday', 'pool'), { code: 'DM_BASE_RECORD_WRITABLE' })
})

test('what was served or used as a base before it was watched has no record', async (t) => {
  for (const role of ['target', 'base'] as const) {
    const catalog = await newCatalog(t)
    await catalog.served.remember(monday, 1, role)
    await catalog.served.admit(asked(monday, look()), 2)
    await t.throwsAsync(catalog.bases.byHandle('vg/monday', 'pool'), { code: 'DM_BASE_RECORD_UNWATCHED' })
  }
})

test('what is no snapshot has no record, nor has what a kernel cannot tell an activation of', async (t) => {
  for (const [target, seen] of [
    [snapshot('monday', 1, { volume: undefined }), look()],
    [monday, look({ instance: '' })]
  ] as const) {
    const catalog = await newCatalog(t)
    await catalog.served.admit(asked(target, seen), 1)
    await t.throwsAsync(catalog.bases.byHandle('vg/monday', 'pool'), { code: 'DM_BASE_RECORD_WRITABLE' })
  }
})

test('a snapshot that went while nobody looked has no record', async (t) => {
  const within = { instance: 'boot/253:3/17', uptimeMs: 1000 + LONGEST_UNWATCHED_MS }
  const beyond = { ...within, uptimeMs: within.uptimeMs + 1 }
  t.is((await (await served(t)).served.admitFromRecord(gone({ pool: within }), 3)).goneAt, 3)
  await refused(t, await served(t), 'DM_BASE_RECORD_UNWATCHED', { pool: beyond })
  const looked = await served(t)
  await looked.bases.saw(monday, look({ uptimeMs: 5000 }))
  t.is((await looked.served.admitFromRecord(gone({ pool: beyond }), 3)).goneAt, 3)
  const atLook = await served(t)
  await atLook.bases.sawGone(monday, beyond)
  await refused(t, atLook, 'DM_BASE_RECORD_UNWATCHED')
})

test('a snapshot that was gone and is back has no record any more', async (t) => {
  const catalog = await served(t)
  await catalog.bases.sawGone(monday, { instance: 'boot/253:3/17', uptimeMs: 1500 })
  await catalog.bases.saw(monday, look({ uptimeMs: 1600 }))
  await refused(t, catalog, 'DM_BASE_RECORD_ROLLED_BACK')
})

test('another activation of the pool ends a record, seen at a look or at the question', async (t) => {
  const other = { instance: 'boot/253:3/18', uptimeMs: 1500 }
  await refused(t, await served(t), 'DM_BASE_RECORD_INTERRUPTED', { pool: other })
  const known = await served(t)
  await known.served.admitFromRecord(gone(), 3)
  await refused(t, known, 'DM_BASE_RECORD_INTERRUPTED', { pool: other })
  await refused(t, await served(t), 'DM_BASE_RECORD_INTERRUPTED', { pool: { ...other, instance: '' } })
  const looked = await served(t)
  await looked.bases.spoilPool('pool', 'DM_BASE_RECORD_INTERRUPTED', 'its pool was found not to be active')
  await refused(t, looked, 'DM_BASE_RECORD_INTERRUPTED')
})

test('a pool that went back ends its records, also once it has caught up', async (t) => {
  const catalog = await served(t)
  const clock = (time: number) => ({ pool: 'pool', time, transactionId: 5n, devices: packDevices([]) })
  await catalog.poolClocks.saw(clock(10), 2)
  await catalog.poolClocks.saw(clock(9), 3)
  await catalog.poolClocks.saw(clock(20), 4)
  await refused(t, catalog, 'DM_BASE_RECORD_ROLLED_BACK')
  // Whoever has seen it first: the answer's own look.
  await refused(t, await served(t), 'DM_BASE_RECORD_ROLLED_BACK', { wentBack: { at: 1, how: 'its clock' } })
})

test('a handle that has meant two snapshots, or one that changed, means none', async (t) => {
  for (const other of [snapshot('monday', 3, { identity: 'another' }), { ...monday, mappedBlocks: 101 }]) {
    const catalog = await served(t)
    await catalog.served.remember(other, 2)
    await refused(t, catalog, 'DM_BASE_RECORD_AMBIGUOUS')
  }
})

test('a handle that means another snapshot at a question, even one that is refused, means none once both are gone', async (t) => {
  const catalog = await served(t)
  const other = snapshot('monday', 3, { identity: 'another', transactionId: 3n })
  const question = asked(snapshot('wednesday', 4), undefined, { base: other })
  await t.throwsAsync(catalog.served.admit(question, 2), { code: 'DM_BASE_CHANGED' })
  await refused(t, catalog, 'DM_BASE_RECORD_AMBIGUOUS')
})

test('a record is for its own pool and volume', async (t) => {
  await t.throwsAsync((await served(t)).bases.byHandle('vg/monday', 'another pool'), { code: 'DM_POOLS_DIFFER' })
  await refused(t, await served(t), 'DM_VOLUMES_DIFFER', { target: { ...tuesday, volume: 'other' } })
  t.is(await (await served(t)).bases.byHandle('vg/never', 'pool'), undefined)
})

test('without a record, the reason is told; and a record is kept once', async (t) => {
  const catalog = await newCatalog(t)
  await catalog.served.admit(asked(monday, look()), 1)
  const error = await t.throwsAsync(catalog.bases.byHandle('vg/monday', 'pool'), { code: 'DM_BASE_RECORD_NONE' })
  t.regex(error?.message ?? '', /no answer about it has run to its end/)
  await catalog.bases.notKept(monday, 'no space left')
  const full = await t.throwsAsync(catalog.bases.byHandle('vg/monday', 'pool'), { code: 'DM_BASE_RECORD_NONE' })
  t.regex(full?.message ?? '', /no space left/)
  const kept = (record: string) => catalog.bases.kept({ pool: 'pool', identity: monday.identity, record, bytes: 10 })
  t.deepEqual([await kept('one.base'), await kept('two.base')], [true, false])
  await catalog.bases.notKept(monday, 'another answer failed')
  t.is((await catalog.bases.byHandle('vg/monday', 'pool'))?.record, 'one.base')
  await catalog.bases.lost(monday, 'dropped')
  await t.throwsAsync(catalog.bases.byHandle('vg/monday', 'pool'), { code: 'DM_BASE_RECORD_NONE' })
  await refused(t, catalog, 'DM_BASE_RECORD_NONE')
})
