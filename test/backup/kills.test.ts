/**
 * Whatever moment a backup, a prune or a restore is killed at: every point that was finished restores byte for byte, and nothing is left once the
 * next run is over.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { Chain } from '../../src/backup/chain.ts'
import { finishPrune } from '../../src/backup/prune.ts'
import { toolFolder } from '../support/nbd-clients.ts'
import { Random } from '../support/random.ts'
import { testFolder } from '../support/test-folder.ts'
import { type HistoryOptions, numberOf, VolumeHistory } from '../support/volume-history.ts'
import { store, unnamedFiles, VOLUME, wrongPoints } from './chain-life.ts'

const folder = testFolder(test)
const { LAB_SEED = '1', LAB_COUNT = '5' } = process.env
const mortal = fileURLToPath(new URL('mortal.ts', import.meta.url))
const cluster = 65536

/** Tools that work in a folder. */
function toolsIn(root: string): string[] {
  return readdirSync('/proc').flatMap((each) => {
    if (!/^\d+$/.test(each)) return []
    try {
      const words = readFileSync(`/proc/${each}/cmdline`, 'utf8')
      const environment = readFileSync(`/proc/${each}/environ`, 'utf8')
      return words.includes('qemu-') && environment.includes(`BACKUP_ROOT=${root}\0`)
        ? [words.replaceAll('\0', ' ')]
        : []
    } catch {
      return []
    }
  })
}

test.serial('kills at random moments', async (t) => {
  t.timeout(120 * 60_000)
  process.env['PATH'] = `${toolFolder('trixie')}:${process.env['PATH']}`
  const random = new Random(Number(LAB_SEED))
  const root = await mkdtemp(join(folder, 'root-'))
  process.env['BACKUP_ROOT'] = root
  const sizes = Array.from({ length: 40 }, () => random.integer(1, 30) * cluster + 512 * random.integer(0, 127))
  const options: HistoryOptions = { seed: random.integer(1, 1e9), sizes, blockBytes: cluster }
  const history = new VolumeHistory(options)
  /** Points that were finished before a kill, and may have been pruned since. */
  let finished = 0
  for (let kill = 0; kill < Number(LAB_COUNT); kill++) {
    const again = `LAB_SEED=${LAB_SEED}, kill ${kill}`
    const words = [mortal, root, folder, JSON.stringify(options), String(random.integer(1, 1e9))]
    const child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'] })
    await Promise.race([once(child.stdout, 'data'), once(child, 'exit')])
    await sleep(random.integer(0, 2500))
    t.is(child.exitCode, null, `it ended by itself: ${again}`)
    child.kill('SIGKILL')
    await once(child, 'exit')
    // What is finished can be restored before anybody has tidied up.
    if (existsSync(join(root, VOLUME, 'chain.json'))) t.deepEqual(await wrongPoints(root, folder, history), [], again)
    const chain = await Chain.open(root, VOLUME, 'exclusive')
    await finishPrune(chain)
    const last = chain.newest ? numberOf(chain.newest.snapshot.handle) : -1
    if (chain.points.length > 0) finished++
    await store(chain, history, (last + 1) % history.count)
    t.deepEqual(await unnamedFiles(chain), [], again)
    const sockets = readdirSync(tmpdir()).filter((name) => name.startsWith(`deltamapper-${chain.mark}-`))
    t.deepEqual(sockets, [], again)
    await chain.close()
    t.deepEqual(toolsIn(root), [], again)
  }
  t.deepEqual(await wrongPoints(root, folder, history), [])
  t.true(finished > 0)
  t.log(`${LAB_COUNT} kills`)
})
