/**
 * Runs inside the kernel lab, started by cow.ts: the delta of two classic LVM snapshots of which the older has so many
 * entries, read and served by an agent, beside dd of the same number of areas, and of the snapshot itself. Prints the
 * figures as JSON.
 *
 *   node bench/load-cow.ts --fio FILE --libraries FOLDERS --rounds N --seconds S
 *
 * The list is written as the kernel would have written it (drivers/md/dm-snap-persistent.c), and activated: it would
 * take days to make it by writing to the volume.
 */
import { closeSync, constants, openSync, writeSync } from 'node:fs'
import { connect } from '../src/grpc/client.ts'
import { alignedBuffer, createDevice, removeDevice, run } from '../test/kernel/dmsetup.ts'
import { LiveAgent } from '../test/kernel/live-agent.ts'
import { createGroup, lvm, prepareLvm } from '../test/kernel/lvm-setup.ts'
import { loadArguments } from './fio-job.ts'
import { cpuSeconds, peakMemoryMiB } from './measure.ts'

/** Of one number of entries. */
export interface CowFigures {
  readonly entries: number
  /** Of the areas that the entries are in. */
  readonly areas: number
  readonly extents: number
  readonly volumeBytes: number
  /** Turn by turn: seconds, and seconds of the processor. */
  readonly delta: Cost[]
  readonly dd: Cost[]
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

const CHUNK_BYTES = 4096
const ENTRIES_PER_AREA = CHUNK_BYTES / 16
const SAMPLE_MEBIBYTES = 512
const { rounds } = loadArguments()
const group = 'bench'

/** A volume with snapshots `NAME-1`, which has a list of so many entries, and `NAME-2`. @returns bytes of the volume */
function makeSnapshots(name: string, entries: number): number {
  const areas = Math.floor(entries / ENTRIES_PER_AREA) + 1
  const mebibytes = Math.ceil((2 * entries * CHUNK_BYTES) / 2 ** 20)
  const storeMebibytes = Math.ceil(((1 + areas * (ENTRIES_PER_AREA + 1)) * CHUNK_BYTES) / 2 ** 20) + 1
  lvm('lvcreate', '--size', `${mebibytes}m`, '--wipesignatures', 'n', '--name', name, group)
  const snapshot = (number: number, size: number) => {
    const options = ['--size', `${size}m`, '--chunksize', '4k', '--permission', 'r', '--name', `${name}-${number}`]
    lvm('lvcreate', '--snapshot', ...options, `${group}/${name}`)
  }
  snapshot(1, storeMebibytes)
  const table = run('dmsetup', ['table', `${group}-${name}--1-cow`]).trim()
  lvm('lvchange', '--activate', 'n', `${group}/${name}`)
  writeList(createDevice('store', table), entries, areas)
  removeDevice('store')
  lvm('lvchange', '--activate', 'y', `${group}/${name}`)
  snapshot(2, 16)
  return mebibytes * 2 ** 20
}

/** Every other chunk of the volume, at no order that would be of help. */
function writeList(device: string, entries: number, areas: number): void {
  const bytes = alignedBuffer(CHUNK_BYTES)
  const numbers = new BigUint64Array(bytes.buffer, bytes.byteOffset, CHUNK_BYTES / 8)
  const file = openSync(device, constants.O_WRONLY | constants.O_DIRECT)
  for (let area = 0; area < areas; area++) {
    numbers.fill(0n)
    for (let i = 0, index = area * ENTRIES_PER_AREA; i < ENTRIES_PER_AREA && index < entries; i++, index++) {
      numbers[2 * i] = BigInt(2 * ((index * 7919) % entries))
      numbers[2 * i + 1] = BigInt(2 + index + area)
    }
    writeSync(file, bytes, 0, CHUNK_BYTES, (1 + area * (ENTRIES_PER_AREA + 1)) * CHUNK_BYTES)
  }
  closeSync(file)
}

/** Reads with O_DIRECT, as the agent does. */
function readWithDd(device: string, blockBytes: number, count: number): Cost {
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

async function measure(entries: number): Promise<CowFigures> {
  const name = `v${entries}`
  const volumeBytes = makeSnapshots(name, entries)
  const areas = Math.ceil(entries / ENTRIES_PER_AREA)
  // (What is to be compared is the reading of lists: nothing was written after the target.)
  const agent = await LiveAgent.start()
  const [delta, dd, sample]: Cost[][] = [[], [], []]
  let extents = 0
  for (let round = 0; round <= rounds; round++) {
    const { extents: found, ...cost } = await askDelta(agent, name)
    const beside = readWithDd(`/dev/mapper/${group}-${name}--1-cow`, CHUNK_BYTES, areas)
    const some = readWithDd(`/dev/mapper/${group}-${name}--1`, 2 ** 20, SAMPLE_MEBIBYTES)
    // What is done only once is not what is measured.
    if (round === 0) continue
    extents = found
    delta.push(cost)
    dd.push(beside)
    sample.push(some)
  }
  const peakMiB = peakMemoryMiB(agent.pid)
  await agent.stop()
  lvm('lvremove', '--force', `${group}/${name}`)
  const sampleBytes = SAMPLE_MEBIBYTES * 2 ** 20
  return { entries, areas, extents, volumeBytes, delta, dd, sample, sampleBytes, peakMiB }
}

prepareLvm()
createGroup(group, '/dev/ubda')
const figures: CowFigures[] = []
for (const entries of [1_000_000, 10_000_000]) figures.push(await measure(entries))
console.log(JSON.stringify(figures))
process.exit(0)
