/**
 * What reading a live snapshot over NBD costs beside reading its device: in a kernel of the lab's (load-nbd.ts is what
 * runs there), turn by turn, in one run.
 */
import { ensureNbdTools } from '../test/lab/nbd-tools.ts'
import { measureInLab } from './lab-load.ts'
import type { NbdFigures } from './load-nbd.ts'
import { median } from './measure.ts'

/** The heading of its section in docs/benchmarks.md. */
export const nbdHeading = '## Reading over NBD'

/** @returns its section */
export async function measureNbd(rounds: number): Promise<string> {
  // The lab has no network.
  await ensureNbdTools('bookworm')
  const { bytes, dd, nbdcopy, serverCpu } = await measureInLab<NbdFigures>('load-nbd.ts', rounds, 1, 2 * 2 ** 30)
  const speed = (ms: readonly number[]) => bytes / 2 ** 20 / (median(ms) / 1000)
  const row = (what: string, ms: readonly number[], cpu: string) =>
    `| ${what} | ${speed(ms).toFixed(0)} MiB/s | ${((speed(ms) / speed(dd)) * 100).toFixed(0)} % | ${cpu} |`
  return `${nbdHeading}

A live LVM thin snapshot of ${bytes / 2 ** 20} MiB, all of it mapped, is read whole: from its device with dd (O_DIRECT, 2 MiB at once),
and from \`deltamapper nbd\` with nbdcopy, which keeps many requests under way on several connections. ${rounds} turns of
each, by turns, medians. Made by \`npm run bench -- --nbd\` in the kernel lab, whose one processor kernel, server, agent
and nbdcopy share.

| | speed | of dd's | CPU of the server |
|---|--:|--:|--:|
${row('dd from the device', dd, '')}
${row('nbdcopy from deltamapper nbd', nbdcopy, `${median(serverCpu).toFixed(2)} s`)}
`
}
