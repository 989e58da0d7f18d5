/**
 * A process that backs up, prunes and restores one volume, over and over, until it is killed: `node mortal.ts ROOT FOLDER HISTORY SEED`. Says
 * `ready` once it works.
 */
import { join } from 'node:path'
import { Chain } from '../../src/backup/chain.ts'
import { finishPrune, prune } from '../../src/backup/prune.ts'
import { restore } from '../../src/backup/restore.ts'
import { Random } from '../support/random.ts'
import { type HistoryOptions, numberOf, VolumeHistory } from '../support/volume-history.ts'
import { store, VOLUME } from './chain-life.ts'

const [, , root, folder, options, seed] = process.argv
const history = new VolumeHistory(JSON.parse(options) as HistoryOptions)
const random = new Random(Number(seed))

process.stdout.write('ready\n')
for (;;) {
  const chain = await Chain.open(root, VOLUME, 'exclusive')
  await finishPrune(chain)
  const last = chain.newest ? numberOf(chain.newest.snapshot.handle) : -1
  // (From the end of its life it begins anew, with a full one: nothing is the base of what came before it.)
  await store(chain, history, (last + 1) % history.count, { compress: random.chance(0.2) })
  if (random.chance(0.6)) await prune(chain, random.integer(2, 4))
  const [oldest] = chain.points
  await chain.close()
  if (random.chance(0.5)) {
    const shared = await Chain.open(root, VOLUME, 'shared')
    await restore(shared, oldest.point, join(folder, 'restored-by-mortal'), { force: true })
    await shared.close()
  }
}
