/**
 * Runs inside the kernel lab, started by nbd.ts: reads a live snapshot whole with dd, and with nbdcopy from
 * `deltamapper nbd` and from nbdkit, by turns, and prints the figures as JSON.
 *
 *   node bench/load-nbd.ts --fio FILE --libraries FOLDERS --rounds N --seconds S
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { LiveAgent } from '../test/kernel/live-agent.ts'
import { createGroup, createThin, lvm, prepareLvm } from '../test/kernel/lvm-setup.ts'
import { ensureNbdTools } from '../test/lab/nbd-tools.ts'
import { loadArguments } from './fio-job.ts'
import { cpuSeconds, timeProcess } from './measure.ts'
import { startNbdkit } from './nbdkit.ts'

/** What reading all of the snapshot takes. */
export interface NbdFigures {
  readonly bytes: number
  /** Milliseconds, turn by turn. */
  readonly dd: number[]
  readonly nbdkit: number[]
  readonly nbdcopy: number[]
  /** Processor seconds of the server, turn by turn. */
  readonly serverCpu: number[]
}

const mebibytes = 1024
const command = fileURLToPath(new URL('../bin/deltamapper.js', import.meta.url))
const { rounds } = loadArguments()
const tools = await ensureNbdTools('bookworm')
const nbdcopy = join(tools, 'nbdcopy')

prepareLvm()
createGroup('vg', '/dev/ubda')
lvm('lvcreate', '--type', 'thin-pool', '--size', '1200m', '--chunksize', '64k', '--name', 'pool', 'vg')
const volume = createThin('vg', 'pool', 'volume', mebibytes)
await timeProcess('dd', ['if=/dev/urandom', `of=${volume}`, 'bs=1M', 'conv=fsync'], process.env, 'ignore').catch(ended)
lvm('lvcreate', '--snapshot', '--setactivationskip', 'n', '--permission', 'r', '--name', 'tuesday', 'vg/volume')

const agent = await LiveAgent.start()
const folder = await mkdtemp(join(tmpdir(), 'nbd-'))
const socket = join(folder, 's')
const words = ['nbd', 'vg/tuesday', '--endpoint', agent.address, '--socket', socket]
const server = spawn(process.execPath, [command, ...words], { stdio: ['ignore', 'ignore', 'inherit'] })
const kitSocket = join(folder, 'k')
const kit = startNbdkit(tools, kitSocket, '/dev/vg/tuesday')
while (!existsSync(socket) || !existsSync(kitSocket)) await sleep(50)

const figures: NbdFigures = { bytes: mebibytes * 2 ** 20, dd: [], nbdkit: [], nbdcopy: [], serverCpu: [] }
for (let round = 0; round <= rounds; round++) {
  const dd = await timed('dd', ['if=/dev/vg/tuesday', 'of=/dev/null', 'iflag=direct', 'bs=2M'])
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
await agent.stop()
console.log(JSON.stringify(figures))
process.exit(0)

async function timed(program: string, args: readonly string[]): Promise<number> {
  return (await timeProcess(program, args, process.env, 'ignore')).milliseconds
}

/** dd ends with a failure where the volume is full, which is the aim. */
function ended(): void {}
