/**
 * What era tracking costs: throughput and latency of a fio job on a linear device, and on an era target over that same device. In a kernel of
 * the lab's (load-era.ts is what runs there), turn by turn, in one run.
 */
import { QUEUE_DEPTH, WRITES_PER_SYNC } from './fio-job.ts'
import { measureInLab } from './lab-load.ts'
import type { EraLoadFigures, EraLoadTurn, Written } from './load-era.ts'
import { median } from './measure.ts'

/** The heading of its section in docs/benchmarks.md. */
export const eraLoadHeading = '## What era tracking costs'

/** @returns its section */
export async function measureEraLoad(rounds: number, seconds = 8): Promise<string> {
  return section(await measureInLab<EraLoadFigures>('load-era.ts', rounds, seconds, 2 * 2 ** 30), rounds, seconds)
}

function section({ sizeBytes, blockBytes, turns }: EraLoadFigures, rounds: number, seconds: number): string {
  const kinds = [...new Set(turns.map(({ to }) => to))]
  const middle = (to: Written, what: (turn: EraLoadTurn) => number) =>
    median(turns.filter((each) => each.to === to).map(what))
  const untracked = middle(kinds[0], ({ writesPerSecond }) => writesPerSecond)
  const row = (to: Written) => {
    const writes = middle(to, ({ writesPerSecond }) => writesPerSecond)
    const latencies = [
      middle(to, ({ meanMs }) => meanMs),
      middle(to, ({ p99Ms }) => p99Ms),
      middle(to, ({ worstMs }) => worstMs)
    ]
    const boundaries = middle(to, (turn) => turn.boundaries)
    const cells = [
      ...[to, Math.round(writes).toLocaleString('en-US'), `${((writes / untracked) * 100).toFixed(0)} %`],
      ...latencies.map((time) => `${time.toFixed(2)} ms`),
      boundaries === 0 ? '' : `${middle(to, ({ boundaryMs }) => boundaryMs).toFixed(0)} ms`
    ]
    return `| ${cells.join(' | ')} |`
  }
  return `${eraLoadHeading}

fio writes 4 KiB at random places of ${sizeBytes / 2 ** 20} MiB (queue depth ${QUEUE_DEPTH}, \`fdatasync\` after every ${WRITES_PER_SYNC} writes): of a linear device, and of an
era target over that same device, which tracks blocks of ${blockBytes / 1024} KiB. Before the first write to a block in an era goes on, the kernel marks the block
and commits that; later writes pass. So what tracking costs depends on how many writes are first ones: none where all
${(sizeBytes / blockBytes).toLocaleString('en-US')} blocks are marked already; as many as there can be, since the places are random, at the beginning of an era; and that again after
each boundary (suspended and resumed, as for a snapshot). ${rounds} turns of ${seconds} s of each, by turns, medians. Made by
\`npm run bench -- --era-load\` in the kernel lab, whose one processor kernel and fio share.

| fio writes to | writes/s | of those without | mean latency | 99 % below | longest | a boundary takes |
|---|--:|--:|--:|--:|--:|--:|
${kinds.map(row).join('\n')}
`
}
