/**
 * What reading a snapshot over NBD costs beside reading what it is on: out of a pool's images on this machine's disk, and in a kernel
 * of the lab's (load-nbd.ts is what runs there), turn by turn, in one run.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream, existsSync } from 'node:fs'
import { mkdtemp, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { ensureNbdTools } from '../test/lab/nbd-tools.ts'
import { mappedPool } from './fragmented-pool.ts'
import { measureInLab } from './lab-load.ts'
import type { NbdFigures } from './load-nbd.ts'
import { cpuSeconds, median, timeProcess } from './measure.ts'
import { startNbdkit } from './nbdkit.ts'

/** The heading of its section in docs/benchmarks.md. */
export const nbdHeading = '## Reading over NBD'

const command = fileURLToPath(new URL('../bin/deltamapper.js', import.meta.url))
const BYTES = 2 ** 30

/** @returns its section */
export async function measureNbd(rounds: number): Promise<string> {
  // The lab has no network.
  const tools = await ensureNbdTools('bookworm')
  const images = await measureImages(tools, rounds)
  const lab = await measureInLab<NbdFigures>('load-nbd.ts', rounds, 1, 2 * 2 ** 30)
  return `${nbdHeading}

A thin snapshot of ${BYTES / 2 ** 20} MiB, all of it mapped, is read whole: with dd (O_DIRECT, 2 MiB at once), and with nbdcopy from
\`deltamapper nbd\`. ${rounds} turns of each, by turns, medians. Made by \`npm run bench -- --nbd\`.

nbdkit's file plugin, which is written in C and checks nothing, serves the same data to the same nbdcopy for comparison.

Out of a pool's images, without a kernel; dd and nbdkit read the file with the pool's data, on the same disk:

${table(images)}

A live LVM snapshot in the kernel lab. Its disk is memory, so dd shows what a system call costs there, and no disk. One processor
is shared by the kernel, the server, the agent and nbdcopy, and a switch between processes costs much more than on a machine:

${table(lab)}
`
}

function table({ bytes, dd, nbdkit, nbdcopy, serverCpu }: NbdFigures): string {
  const speed = (ms: readonly number[]) => bytes / 2 ** 20 / (median(ms) / 1000)
  const row = (what: string, ms: readonly number[], cpu: string) =>
    `| ${what} | ${speed(ms).toFixed(0)} MiB/s | ${((speed(ms) / speed(dd)) * 100).toFixed(0)} % | ${cpu} |`
  return [
    "| | speed | of dd's | CPU of the server |",
    '|---|--:|--:|--:|',
    row('dd', dd, ''),
    row('nbdcopy from nbdkit', nbdkit, ''),
    row('nbdcopy from deltamapper nbd', nbdcopy, `${median(serverCpu).toFixed(2)} s`)
  ].join('\n')
}

async function measureImages(tools: string, rounds: number): Promise<NbdFigures> {
  const nbdcopy = join(tools, 'nbdcopy')
  const folder = await mappedPool(BYTES / 65536)
  const data = join(folder, 'data.img')
  if (!existsSync(data)) await writeRandom(data)
  const work = await mkdtemp(join(tmpdir(), 'nbd-'))
  const socket = join(work, 's')
  const words = ['nbd', 'x/volume', '--recorded', `x=${folder}`, '--socket', socket]
  const server = spawn(process.execPath, [command, ...words], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(server.stdout, 'data')
  const kitSocket = join(work, 'k')
  const kit = startNbdkit(tools, kitSocket, data)
  while (!existsSync(kitSocket)) await sleep(20)
  const figures: NbdFigures = { bytes: BYTES, dd: [], nbdkit: [], nbdcopy: [], serverCpu: [] }
  for (let round = 0; round <= rounds; round++) {
    const dd = await timed('dd', [`if=${data}`, 'of=/dev/null', 'iflag=direct', 'bs=2M'])
    const kitCopied = await timed(nbdcopy, [`nbd+unix:///?socket=${kitSocket}`, 'null:'])
    const before = cpuSeconds(server.pid ?? 0)
    const copied = await timed(nbdcopy, [`nbd+unix:///?socket=${socket}`, 'null:'])
    // What is done only once is not what is measured.
    if (round === 0) continue
    figures.dd.push(dd)
    figures.nbdkit.push(kitCopied)
    figures.nbdcopy.push(copied)
    figures.serverCpu.push(cpuSeconds(server.pid ?? 0) - before)
  }
  for (const each of [server, kit]) {
    each.kill()
    await once(each, 'exit')
  }
  await rm(work, { recursive: true, force: true })
  return figures
}

export async function writeRandom(path: string): Promise<void> {
  const source = spawn('head', ['-c', String(BYTES), '/dev/urandom'], { stdio: ['ignore', 'pipe', 'inherit'] })
  await pipeline(source.stdout, createWriteStream(`${path}.unfinished`))
  await rename(`${path}.unfinished`, path)
}

async function timed(program: string, args: readonly string[]): Promise<number> {
  return (await timeProcess(program, args, process.env, 'ignore')).milliseconds
}
