/**
 * What a pool feels of deltas: throughput and latency of a fio job that writes to it, alone and with deltas being asked for beside it. In a
 * kernel of the lab's (load-pool.ts is what runs there), turn by turn, in one run.
 */
import { QUEUE_DEPTH, WRITES_PER_SYNC } from './fio-job.ts'
import { measureInLab } from './lab-load.ts'
import type { Company, LoadFigures, LoadTurn } from './load-pool.ts'
import { median } from './measure.ts'

/** The heading of its section in docs/benchmarks.md. */
export const poolLoadHeading = '## What a pool feels'

/** @returns its section */
export async function measurePoolLoad(rounds: number, seconds = 8): Promise<string> {
  return section(await measureInLab<LoadFigures>('load-pool.ts', rounds, seconds, 4 * 2 ** 30), rounds, seconds)
}

function section({ blocks, extents, turns }: LoadFigures, rounds: number, seconds: number): string {
  const of = (beside: Company) => turns.filter((each) => each.beside === beside)
  const middle = (beside: Company, what: (turn: LoadTurn) => number) => median(of(beside).map(what))
  const alone = middle('nothing', (turn) => turn.writesPerSecond)
  const row = (beside: Company) => {
    const writes = middle(beside, (turn) => turn.writesPerSecond)
    const times = [(turn: LoadTurn) => turn.meanMs, (turn: LoadTurn) => turn.p99Ms].map((what) =>
      middle(beside, what).toFixed(2)
    )
    const deltas = middle(beside, (turn) => turn.deltasPerSecond)
    const each = deltas === 0 ? '' : `${middle(beside, (turn) => turn.deltaMs).toFixed(0)} ms`
    const cells = [beside, Math.round(writes).toLocaleString('en-US'), `${((writes / alone) * 100).toFixed(0)} %`]
    return `| ${[...cells, ...times.map((time) => `${time} ms`), deltas.toFixed(1), each].join(' | ')} |`
  }
  return `${poolLoadHeading}

fio writes 4 KiB at random places of a ${blocks / 16} MiB volume (queue depth ${QUEUE_DEPTH}, \`fdatasync\` after every ${WRITES_PER_SYNC} writes) that shares all its blocks with
a snapshot when each turn begins, so that the pool copies blocks, writes metadata and commits. Beside it a client asks an agent for the
delta of two other snapshots of the pool (${extents.toLocaleString('en-US')} extents): never, once a second, or again and again without a pause. ${rounds} turns of ${seconds} s of
each, by turns, medians; every answer was checked. Made by \`npm run bench -- --pool-load\` in the kernel lab, whose one processor kernel, fio, agent
and client share, and whose system calls are dear: what deltas cost a pool is at most this. What a walk reads of the pool's metadata, it
reads as any other user of the device would; it reserves nothing and suspends nothing.

| beside fio | writes/s | of those alone | mean latency | 99 % below | deltas/s | a delta takes |
|---|--:|--:|--:|--:|--:|--:|
${(['nothing', 'a delta a second', 'one delta after the other'] as const).map(row).join('\n')}
`
}
