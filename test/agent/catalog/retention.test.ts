import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pino from 'pino'
import test from 'ava'
import { openCatalog } from '../../../src/agent/catalog/catalog.ts'
import { checkBase } from '../../../src/agent/catalog/fingerprint.ts'
import { forgetHistory, forgetOld, keepForgetting } from '../../../src/agent/catalog/retention.ts'
import { attach, take } from '../answers/history-server.ts'
import { servedTarget, testFolder } from './examples.ts'

const day = 86_400_000
const era = { keptMs: 730 * day, keep: 1000 }

test('the oldest of too many are forgotten, what was asked for since is not', async (t) => {
  const catalog = await openCatalog(join(testFolder(t), 'catalog.db'))
  t.teardown(() => catalog.close())
  const [old, again, young] = ['old', 'again', 'young'].map((name) =>
    servedTarget({ handle: `vg0/${name}`, identity: `lvm:${name}` })
  )
  await catalog.served.remember(old, day)
  await catalog.served.remember(again, day)
  await catalog.served.remember(again, 3 * day)
  await catalog.served.remember(young, 2 * day)
  t.is(await forgetOld(catalog, { keep: 2 }), 1)
  t.deepEqual(await catalog.served.find(old), [])
  t.is((await catalog.served.find(again)).length, 1)
  t.is((await catalog.served.find(young)).length, 1)
  t.is(await forgetOld(catalog, { keep: 2 }), 0)
})

test('a clock that was wrong while something was served, or is wrong now, makes nobody forget a base', async (t) => {
  const catalog = await openCatalog(join(testFolder(t), 'catalog.db'))
  t.teardown(() => catalog.close())
  // Before the network told the time.
  const base = servedTarget({ mappedBlocks: 10 })
  await catalog.served.remember(base, 1)
  const stop = keepForgetting(catalog, pino({ level: 'silent' }), era)
  t.teardown(stop)
  await forgetOld(catalog)
  const records = await catalog.served.find(base)
  t.is(checkBase(records, base), 'unchanged')
  t.throws(() => checkBase(records, { ...base, mappedBlocks: 9 }), { code: 'DM_BASE_CHANGED', message: /trimmed/ })
})

test('of tracked volumes, what is too old or too many is forgotten, and its bitmaps are put together', async (t) => {
  const catalog = await openCatalog(join(testFolder(t), 'catalog.db'))
  t.teardown(() => catalog.close())
  const sizeBytes = 2 ** 30
  await attach(catalog, 'vol', { sizeBytes })
  for (let i = 0; i < 6; i++) await take(catalog, `vol/s${i}`, [i], { sizeBytes, takenAt: i * day })
  t.is(await forgetHistory(catalog, { keptMs: 8 * day, keep: 3 }, 9 * day), 3)
  t.deepEqual(
    (await catalog.eraSnapshots.list('vol')).map(({ name }) => name),
    ['s3', 's4', 's5']
  )
  t.like((await catalog.eraSnapshots.facts())[0], { snapshots: 3, bitmaps: 2, oldestTakenAt: 3 * day })
  t.is(await forgetHistory(catalog, { keptMs: 730 * day, keep: 3 }, 9 * day), 0)
  // Their names are known for far longer.
  t.is(await catalog.eraSnapshots.nameUsedBefore('vol', 's2'), 2 * day)
  t.is(await forgetHistory(catalog, { keptMs: 8 * day, keep: 3 }, 738 * day + 2 * day), 3)
  t.is(await catalog.eraSnapshots.nameUsedBefore('vol', 's1'), day)
  t.is(await catalog.eraSnapshots.nameUsedBefore('vol', 's2'), 2 * day)
})

test('an agent does so from its start on, and a catalog that fails is no reason to stop', async (t) => {
  const catalog = await openCatalog(join(testFolder(t), 'catalog.db'))
  const lines: { msg: string }[] = []
  const logger = pino({ level: 'info' }, { write: (line: string) => lines.push(JSON.parse(line) as { msg: string }) })
  await attach(catalog, 'vol', { sizeBytes: 2 ** 30 })
  await take(catalog, 'vol/s', [1], { sizeBytes: 2 ** 30, takenAt: 1 })
  const stop = keepForgetting(catalog, logger, era)
  while (lines.length < 1) await sleep(10)
  stop()
  t.like(lines[0], { msg: 'forgot snapshots of tracked volumes', forgotten: 1 })
  await catalog.close()
  const stopAgain = keepForgetting(catalog, logger, era)
  while (lines.length < 3) await sleep(10)
  stopAgain()
  t.deepEqual(
    lines
      .slice(1)
      .map(({ msg }) => msg)
      .sort(),
    ['could not forget snapshots of tracked volumes', 'could not forget what was served long ago']
  )
})
