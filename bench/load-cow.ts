/**
 * Runs inside the kernel lab, started by cow.ts: the delta of two classic LVM snapshots of which the older has so many
 * entries, read and served by an agent, beside dd of the same number of areas, and of the snapshot itself. Prints the
 * figures as JSON.
 *
 *   node bench/load-cow.ts --fio FILE --libraries FOLDERS --rounds N --seconds S
 *
 * The list is written while the snapshot is inactive (cow-list.ts).
 */
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { connect } from '../src/grpc/client.ts'
import { createDevice, removeDevice, run } from '../test/kernel/dmsetup.ts'
import { LiveAgent } from '../test/kernel/live-agent.ts'
import { createGroup, lvm, prepareLvm } from '../test/kernel/lvm-setup.ts'
import { areasFor, CHUNK_BYTES, type Order, storeBytesFor, volumeBytesFor, writeList } from './cow-list.ts'
import { askServed, type ServedFigures, servings } from './cow-served.ts'
import type { Stages } from './cow-stages.ts'
import { loadArguments } from './fio-job.ts'
import { cpuSeconds, peakMemoryMiB } from './measure.ts'

/** Of one number of entries. */
export interface CowFigures {
  readonly entries: number
  readonly order: Order
  readonly extents: number
  readonly volumeBytes: number
  /** Turn by turn: seconds, and seconds of the processor. */
  readonly delta: Cost[]
  readonly dd: Cost[]
  readonly stages: Stages[]
  readonly served: ServedFigures
  /** Of reading SAMPLE_MEBIBYTES of the snapshot. */
  readonly sample: Cost[]
  readonly sampleBytes: number
  /** The agent's, after all turns. */
  readonly peakMiB: number
}

export interface Cost {
  readonly seconds: number
  readonly cpu: number
}

const SAMPLE_MEBIBYTES = 512
const group = 'bench'

/** A volume with snapshots `NAME-1`, which has a list of so many entries, and `NAME-2`. @returns bytes of the volume */
function makeSnapshots(name: string, entries: number, order: Order): number {
  const mebibytes = volumeBytesFor(entries) / 2 ** 20
  lvm('lvcreate', '--size', `${mebibytes}m`, '--wipesignatures', 'n', '--name', name, group)
  const snapshot = (number: number, size: number) => {
    const options = ['--size', `${size}m`, '--chunksize', '4k', '--permission', 'r', '--name', `${name}-${number}`]
    lvm('lvcreate', '--snapshot', ...options, `${group}/${name}`)
  }
  snapshot(1, Math.ceil(storeBytesFor(entries) / 2 ** 20) + 1)
  const table = run('dmsetup', ['table', `${group}-${name}--1-cow`]).trim()
  lvm('lvchange', '--activate', 'n', `${group}/${name}`)
  writeList(createDevice('store', table), entries, order)
  removeDevice('store')
  lvm('lvchange', '--activate', 'y', `${group}/${name}`)
  snapshot(2, 16)
  return mebibytes * 2 ** 20
}

/** Reads with O_DIRECT, as the agent does. */
export function readWithDd(device: string, blockBytes: number, count: number): Cost {
  const dd = `dd if=${device} of=/dev/null iflag=direct bs=${blockBytes} count=${count} status=none`
  const said = run('bash', ['-c', `TIMEFORMAT='%R %U %S'; { time ${dd}; } 2>&1`])
  const [seconds, user, system] = said.trim().split(' ').map(Number)
  return { seconds, cpu: user + system }
}

async function askDelta(agent: LiveAgent, name: string): Promise<Cost & { extents: number }> {
  const [began, cpu] = [performance.now(), cpuSeconds(agent.pid)]
  const client = connect(agent.address)
  const question = { baseSnapshotId: `${group}/${name}-1`, targetSnapshotId: `${group}/${name}-2` }
  let extents = 0
  for await (const { count } of (await client.delta(question)).batches) extents += count
  client.close()
  return { extents, seconds: (performance.now() - began) / 1000, cpu: cpuSeconds(agent.pid) - cpu }
}

/** In a process of their own, which has nothing else to do. */
function askStages(name: string, volumeBytes: number, entries: number): Stages {
  const script = fileURLToPath(new URL('cow-stages.ts', import.meta.url))
  const store = `/dev/mapper/${group}-${name}--1-cow`
  return JSON.parse(run(process.execPath, [script, store, String(volumeBytes), String(entries)])) as Stages
}

async function measure(entries: number, order: Order, rounds: number): Promise<CowFigures> {
  const name = `v${entries}${order.slice(0, 2)}`
  const volumeBytes = makeSnapshots(name, entries, order)
  // (What is to be compared is the reading of lists: nothing was written after the target.)
  const agent = await LiveAgent.start()
  const [delta, dd, sample]: Cost[][] = [[], [], []]
  const stages: Stages[] = []
  let extents = 0
  for (let round = 0; round <= rounds; round++) {
    const { extents: found, ...cost } = await askDelta(agent, name)
    const beside = readWithDd(`/dev/mapper/${group}-${name}--1-cow`, CHUNK_BYTES, areasFor(entries))
    // What is done only once is not what is measured.
    if (round === 0) continue
    extents = found
    delta.push(cost)
    dd.push(beside)
    stages.push(askStages(name, volumeBytes, entries))
    sample.push(readWithDd(`/dev/mapper/${group}-${name}--1`, 2 ** 20, SAMPLE_MEBIBYTES))
  }
  const peakMiB = peakMemoryMiB(agent.pid)
  await agent.stop()
  const store = { path: `/dev/mapper/${group}-${name}--1-cow`, sizeBytes: volumeBytes, entries }
  const folder = mkdtempSync(join(tmpdir(), 'served-'))
  const served: ServedFigures = { 'ready-made': [], read: [] }
  for (const how of servings) served[how].push(...(await askServed(folder, how, rounds, store)))
  lvm('lvremove', '--force', `${group}/${name}`)
  const sampleBytes = SAMPLE_MEBIBYTES * 2 ** 20
  return { entries, order, extents, volumeBytes, delta, dd, stages, served, sample, sampleBytes, peakMiB }
}

if (import.meta.main) {
  const { rounds } = loadArguments()
  prepareLvm()
  createGroup(group, '/dev/ubda')
  const figures: CowFigures[] = []
  for (const [entries, order] of [
    [1_000_000, 'scattered'],
    [10_000_000, 'scattered'],
    [10_000_000, 'in order']
  ] as const) {
    figures.push(await measure(entries, order, rounds))
  }
  console.log(JSON.stringify(figures))
  process.exit(0)
}
