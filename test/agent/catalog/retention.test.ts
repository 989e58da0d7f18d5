import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pino from 'pino'
import test from 'ava'
import { openCatalog } from '../../../src/agent/catalog/catalog.ts'
import { forgetOld, keepForgetting, retention } from '../../../src/agent/catalog/retention.ts'
import { servedTarget, testFolder } from './examples.ts'

const day = 86_400_000

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

test('an agent does so from its start on, and a catalog that fails is no reason to stop', async (t) => {
  const catalog = await openCatalog(join(testFolder(t), 'catalog.db'))
  const lines: { msg: string }[] = []
  const logger = pino({ level: 'info' }, { write: (line: string) => lines.push(JSON.parse(line) as { msg: string }) })
  await catalog.remember(servedTarget(), 1)
  const stop = keepForgetting(catalog, logger)
  while (lines.length < 1) await sleep(10)
  stop()
  t.like(lines[0], { msg: 'forgot what was served long ago', forgotten: 1 })
  await catalog.close()
  const stopAgain = keepForgetting(catalog, logger)
  while (lines.length < 2) await sleep(10)
  stopAgain()
  t.is(lines[1].msg, 'could not forget what was served long ago')
})
