/**
 * The demo's workload: it goes on until it is told to stop, and whoever reads its database back notices a record that is not whole.
 */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { type Progress, readRecords } from '../../demo/workload.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)

test('it writes until it is told to stop, and a damaged record shows', async (t) => {
  const child = fork(fileURLToPath(new URL('../../demo/workload.ts', import.meta.url)), [folder, '2'])
  const ended = once(child, 'exit')
  const progress: Progress[] = []
  for (let round = 0; round < 6; round++) progress.push(((await once(child, 'message')) as [Progress])[0])
  child.send('close')
  t.deepEqual(await ended, [0, null])
  for (const [i, { writes }] of progress.entries()) t.true(i === 0 || writes > progress[i - 1].writes)
  t.true(statSync(join(folder, 'journal.log')).size > 0)

  t.deepEqual(await readRecords(folder), { records: 512, whole: 512 })
  const path = join(folder, 'orders.db')
  const database = readFileSync(path)
  database[100 * 4096 + 2000] ^= 1
  database.copy(database, 300 * 4096, 200 * 4096, 201 * 4096)
  writeFileSync(path, database)
  t.deepEqual(await readRecords(folder), { records: 512, whole: 510 })
})
