/**
 * What the delta of two classic LVM snapshots costs, beside reading the areas with dd and beside reading both snapshots:
 * in a kernel of the lab's (load-cow.ts is what runs there), turn by turn, in one run.
 */
import { measureInLab } from './lab-load.ts'
import type { Cost, CowFigures } from './load-cow.ts'
import { median } from './measure.ts'

/** The heading of its section in docs/benchmarks.md. */
export const cowHeading = '## Classic snapshots'

/** The volume of ten million entries, and its store: sparse. */
const DISK_BYTES = 160 * 2 ** 30
/** The kernel keeps every entry in memory. */
const MEMORY_MIB = 2600

/** @returns its section */
export async function measureCow(rounds: number): Promise<string> {
  const figures = await measureInLab<CowFigures[]>('load-cow.ts', rounds, 1, DISK_BYTES, MEMORY_MIB)
  return `${cowHeading}

An LVM volume with two classic snapshots of 4 KiB chunks; the older one's store has an entry for every other chunk, in no
order that would be of help. *Delta*: the whole gRPC call, of a live agent that asks LVM, the kernel and its catalog as
always, until the last extent is decoded; processor time is the agent's. *dd*: as many areas, read from that store with
the same requests (O_DIRECT, 4 KiB). *Both snapshots*: what a backup would read that has no delta, computed from ${mib(figures[0].sampleBytes)}
MiB of one (O_DIRECT, 1 MiB). Turns of each: ${rounds}; medians. Made by \`npm run bench -- --cow\` in the kernel
lab, whose one processor kernel, agent, client and dd share, and whose system calls are dear.

| entries | extents | delta | its processor time | dd of the areas | its processor time | both snapshots | agent's peak memory |
|--:|--:|--:|--:|--:|--:|--:|--:|
${figures.map(row).join('\n')}
`
}

function row({ entries, extents, volumeBytes, delta, dd, sample, sampleBytes, peakMiB }: CowFigures): string {
  const [ours, theirs] = [middle(delta), middle(dd)]
  const whole = (2 * middle(sample).seconds * volumeBytes) / sampleBytes
  const cells = [
    entries.toLocaleString('en-US'),
    extents.toLocaleString('en-US'),
    `${ours.seconds.toFixed(1)} s`,
    `${ours.cpu.toFixed(2)} s`,
    `${theirs.seconds.toFixed(1)} s`,
    `${theirs.cpu.toFixed(2)} s`,
    `${whole.toFixed(0)} s`,
    `${peakMiB.toFixed(0)} MiB`
  ]
  return `| ${cells.join(' | ')} |`
}

function middle(costs: readonly Cost[]): Cost {
  return { seconds: median(costs.map(({ seconds }) => seconds)), cpu: median(costs.map(({ cpu }) => cpu)) }
}

function mib(bytes: number): number {
  return bytes / 2 ** 20
}
