/**
 * Runs inside the kernel lab, started by pool-load.ts: puts load on a thin pool with fio, alone and with deltas being asked for beside it,
 * in turn, and prints the figures as JSON.
 *
 *   node bench/load-pool.ts --fio FILE --libraries FOLDERS --rounds N --seconds S
 *
 * The volume is written to at random. Each turn begins with a new snapshot of it, so that the pool has to copy blocks, write metadata and
 * commit all the time, and not only pass writes on. The deltas are of two other snapshots; every answer is checked.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { SnapshotMetadataClient } from '../src/grpc/client.ts'
import { AnswerCheck, ask } from '../test/kernel/ask.ts'
import { LiveAgent } from '../test/kernel/live-agent.ts'
import { expectedDelta, RawPool } from '../test/kernel/raw-pool.ts'
import { Random } from '../test/support/random.ts'
import { loadArguments, type WriteFigures, writeAtRandom } from './fio-job.ts'

export interface LoadTurn extends WriteFigures {
  beside: Company
  /** Deltas that were answered meanwhile, and what one took, in milliseconds. */
  deltasPerSecond: number
  deltaMs: number
}

/** What goes on beside fio. */
export type Company = 'nothing' | 'a delta a second' | 'one delta after the other'

export interface LoadFigures {
  /** Blocks of the volume, and extents of the delta that is asked for. */
  blocks: number
  extents: number
  turns: LoadTurn[]
}

const mebibyte = 2 ** 20
const VOLUME_BLOCKS = 16_384
/** Of the volume's blocks, so many are changed between the two snapshots, here and there. */
const CHANGED_BLOCKS = 800
const companies: readonly Company[] = ['nothing', 'a delta a second', 'one delta after the other']

const { fio, rounds, seconds } = loadArguments()
const random = new Random(1)
const place = { offsetBytes: 0, metadataBytes: 64 * mebibyte, dataBytes: 3584 * mebibyte }
const pool = new RawPool({ name: 'load', ...place })
pool.createVolume('volume', 0, VOLUME_BLOCKS)
pool.write('volume', 0, VOLUME_BLOCKS)
pool.snapshot('volume', 'base', 1)
for (let write = 0; write < CHANGED_BLOCKS; write++) pool.write('volume', random.integer(0, VOLUME_BLOCKS - 1))
pool.snapshot('volume', 'target', 2)
const due = expectedDelta(pool.thin('base'), pool.thin('target'))

const agent = await LiveAgent.start()
const client = agent.client()
// What is done only once is not what is measured.
await delta(client)

const turns: LoadTurn[] = []
for (let round = 0; round < rounds; round++) {
  for (let turn = 0; turn < companies.length; turn++) {
    const beside = companies[(round + turn) % companies.length]
    pool.snapshot('volume', 'shared', 3)
    const over = new AbortController()
    const asking = askBeside(beside, over.signal)
    const figures = await writeAtRandom('/dev/mapper/volume', seconds, fio)
    over.abort()
    turns.push({ beside, ...figures, ...(await asking) })
    pool.remove('shared')
  }
}
await agent.stop()
pool.close()
const figures: LoadFigures = { blocks: VOLUME_BLOCKS, extents: due.length, turns }
console.log(JSON.stringify(figures))
process.exit(0)

async function delta(from: SnapshotMetadataClient): Promise<void> {
  const check = new AnswerCheck(due)
  for await (const { count, offsets, sizes } of (await ask(from, { base: 'load/base', target: 'load/target' }))
    .batches) {
    for (let i = 0; i < count; i++) check.take(offsets[i], sizes[i])
  }
  check.end()
}

async function askBeside(beside: Company, over: AbortSignal): Promise<Pick<LoadTurn, 'deltasPerSecond' | 'deltaMs'>> {
  let [deltas, spent] = [0, 0]
  const start = performance.now()
  while (beside !== 'nothing' && !over.aborted) {
    const begun = performance.now()
    await delta(client)
    const took = performance.now() - begun
    deltas++
    spent += took
    if (beside === 'a delta a second') await sleep(1000 - took, undefined, { signal: over }).catch(() => undefined)
  }
  const seconds = (performance.now() - start) / 1000
  return { deltasPerSecond: deltas / seconds, deltaMs: spent / Math.max(1, deltas) }
}
