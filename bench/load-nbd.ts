/**
 * Runs inside the kernel lab, started by nbd.ts: reads a live snapshot whole with dd, and with nbdcopy from
 * `deltamapper nbd` and from nbdkit, by turns, and prints the figures as JSON.
 *
 *   node bench/load-nbd.ts --fio FILE --libraries FOLDERS --rounds N --seconds S
 */
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LiveAgent } from '../test/kernel/live-agent.ts'
import { createGroup, createThin, lvm, prepareLvm } from '../test/kernel/lvm-setup.ts'
import { ensureNbdTools } from '../test/lab/nbd-tools.ts'
import { loadArguments } from './fio-job.ts'
import { timeProcess } from './measure.ts'
import { nbdTurns } from './nbd-turns.ts'

const mebibytes = 1024
const { rounds } = loadArguments()
const tools = await ensureNbdTools('bookworm')

prepareLvm()
createGroup('vg', '/dev/ubda')
lvm('lvcreate', '--type', 'thin-pool', '--size', '1200m', '--chunksize', '64k', '--name', 'pool', 'vg')
const volume = createThin('vg', 'pool', 'volume', mebibytes)
await timeProcess('dd', ['if=/dev/urandom', `of=${volume}`, 'bs=1M', 'conv=fsync'], process.env, 'ignore').catch(ended)
lvm('lvcreate', '--snapshot', '--setactivationskip', 'n', '--permission', 'r', '--name', 'tuesday', 'vg/volume')

const agent = await LiveAgent.start()
const folder = await mkdtemp(join(tmpdir(), 'nbd-'))
const words = ['vg/tuesday', '--endpoint', agent.address]
const path = '/dev/vg/tuesday'
const figures = await nbdTurns({ tools, folder, words, path, bytes: mebibytes * 2 ** 20 }, rounds)
await agent.stop()
console.log(JSON.stringify(figures))
process.exit(0)

/** dd ends with a failure where the volume is full, which is the aim. */
function ended(): void {}
