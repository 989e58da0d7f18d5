/**
 * What reading a snapshot over NBD costs beside reading what it is on: out of a pool's images on this machine's disk, and in a kernel
 * of the lab's (load-nbd.ts is what runs there), in one run.
 */
import { spawn } from 'node:child_process'
import { createWriteStream, existsSync } from 'node:fs'
import { mkdtemp, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { ensureNbdTools } from '../test/lab/nbd-tools.ts'
import { mappedPool } from './fragmented-pool.ts'
import { measureInLab } from './lab-load.ts'
import { median } from './measure.ts'
import { type CopyFigures, type NbdFigures, nbdTurns } from './nbd-turns.ts'

/** The heading of its section in docs/benchmarks.md. */
export const nbdHeading = '## Reading over NBD'

const BYTES = 2 ** 30

/** @returns its section */
export async function measureNbd(rounds: number): Promise<string> {
  // The lab has no network.
  const tools = await ensureNbdTools('bookworm')
  const images = await measureImages(tools, rounds)
  const lab = await measureInLab<NbdFigures>('load-nbd.ts', rounds, 1, 2 * 2 ** 30)
  return `${nbdHeading}

A thin snapshot of ${BYTES / 2 ** 20} MiB, all of it mapped, is read whole: with dd (O_DIRECT, 2 MiB at once), and with nbdcopy from
\`deltamapper nbd\`. nbdkit's file plugin, which is written in C and checks nothing, serves the same data to the same nbdcopy for
comparison. ${rounds} turns of dd, nbdkit, dd, deltamapper; medians. A copy is held against the dd just before it. Made by
\`npm run bench -- --nbd\`.

Out of a pool's images, without a kernel; dd and nbdkit read the file with the pool's data, on the same disk:

${table(images)}

A live LVM snapshot in the kernel lab. Its disk is memory, so dd shows what a system call costs there, and no disk. One processor
is shared by the kernel, the server, the agent and nbdcopy, and a switch between processes costs much more than on a machine:

${table(lab)}
`
}

function table({ bytes, nbdkit, own }: NbdFigures): string {
  const speed = (ms: readonly number[]) => `${(bytes / 2 ** 20 / (median(ms) / 1000)).toFixed(0)} MiB/s`
  const row = (what: string, { milliseconds, ddMilliseconds, cpu }: CopyFigures) => {
    const shares = milliseconds.map((ms, i) => ddMilliseconds[i] / ms)
    return `| ${what} | ${speed(milliseconds)} | ${(median(shares) * 100).toFixed(0)} % | ${median(cpu).toFixed(2)} s |`
  }
  return [
    "| | speed | of dd's | CPU of the server |",
    '|---|--:|--:|--:|',
    `| dd | ${speed([...nbdkit.ddMilliseconds, ...own.ddMilliseconds])} | 100 % |  |`,
    row('nbdcopy from nbdkit', nbdkit),
    row('nbdcopy from deltamapper nbd', own)
  ].join('\n')
}

async function measureImages(tools: string, rounds: number): Promise<NbdFigures> {
  const images = await mappedPool(BYTES / 65536)
  const path = join(images, 'data.img')
  if (!existsSync(path)) await writeRandom(path)
  const folder = await mkdtemp(join(tmpdir(), 'nbd-'))
  const words = ['x/volume', '--recorded', `x=${images}`]
  const figures = await nbdTurns({ tools, folder, words, path, bytes: BYTES }, rounds)
  await rm(folder, { recursive: true, force: true })
  return figures
}

export async function writeRandom(path: string): Promise<void> {
  const source = spawn('head', ['-c', String(BYTES), '/dev/urandom'], { stdio: ['ignore', 'pipe', 'inherit'] })
  await pipeline(source.stdout, createWriteStream(`${path}.unfinished`))
  await rename(`${path}.unfinished`, path)
}
