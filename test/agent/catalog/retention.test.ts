import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pino from 'pino'
import test from 'ava'
import { openCatalog } from '../../../src/agent/catalog/catalog.ts'
import { forgetHistory, forgetOld, keepForgetting, retention } from '../../../src/agent/catalog/retention.ts'
import { attach, take } from '../era/history-server.ts'
import { servedTarget, testFolder } from './examples.ts'

const day = 86_400_000
const era = { keptMs: 730 * day, keep: 1000 }

test('what was served two years ago is forgotten, what was asked for since is not', async (t) => {
  const catalog = await openCatalog(join(testFolder(t), 'catalog.db'))
  t.teardown(() => catalog.close())
  const now = 3000 * day
  const [old, again, young] = ['old', 'again', 'young'].map((name) =>
    servedTarget({ handle: `vg0/${name}`, identity: `lvm:${name}` })
  )
  await catalog.remember(old, now - retention.keptMs - 1)
  await catalog.remember(again, now - retention.keptMs - 1)
  await catalog.remember(again, now - day)
  await catalog.remember(young, now - retention.keptMs)
  t.is(await forgetOld(catalog, now), 1)
  t.deepEqual(await catalog.findServed(old), [])
  t.is((await catalog.findServed(again)).length, 1)
  t.is((await catalog.findServed(young)).length, 1)
  t.is(await forgetOld(catalog, now), 0)
})

test('of tracked volumes, what is too old or too many is forgotten, and its bitmaps are put together', async (t) => {
  const catalog = await openCatalog(join(testFolder(t), 'catalog.db'))
  t.teardown(() => catalog.close())
  const sizeBytes = 2 ** 30
  await attach(catalog, 'vol', { sizeBytes })
  for (let i = 0; i < 6; i++) await take(catalog, `vol/s${i}`, [i], { sizeBytes, takenAt: i * day })
  t.is(await forgetHistory(catalog, { keptMs: 8 * day, keep: 3 }, 9 * day), 3)
  t.deepEqual(
    (await catalog.eraSnapshots('vol')).map(({ name }) => name),
    ['s3', 's4', 's5']
  )
  t.like((await catalog.eraHistoryFacts())[0], { snapshots: 3, bitmaps: 2, oldestTakenAt: 3 * day })
  t.is(await forgetHistory(catalog, { keptMs: 730 * day, keep: 3 }, 9 * day), 0)
  // Their names are known for two years longer.
  t.is(await catalog.eraNameUsedBefore('vol', 's2'), 2 * day)
  t.is(await forgetHistory(catalog, { keptMs: 8 * day, keep: 3 }, 738 * day + 2 * day), 3)
  t.is(await catalog.eraNameUsedBefore('vol', 's1'), undefined)
  t.is(await catalog.eraNameUsedBefore('vol', 's2'), 2 * day)
})

test('an agent does so from its start on, and a catalog that fails is no reason to stop', async (t) => {
  const catalog = await openCatalog(join(testFolder(t), 'catalog.db'))
  const lines: { msg: string }[] = []
  const logger = pino({ level: 'info' }, { write: (line: string) => lines.push(JSON.parse(line) as { msg: string }) })
  await catalog.remember(servedTarget(), 1)
  const stop = keepForgetting(catalog, logger, era)
  while (lines.length < 1) await sleep(10)
  stop()
  t.like(lines[0], { msg: 'forgot what was served long ago', forgotten: 1 })
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
