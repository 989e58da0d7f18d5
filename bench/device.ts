/**
 * A delta on a block device, as every pool in use is read: O_DIRECT, with the checks of live metadata. Beside the whole
 * thin_delta process of both versions, and beside a C program that reads the same nodes (node-reader.c), which is the
 * limit. Processor time stands beside every time, because machines are busy.
 *
 * The devices are loop devices with direct I/O, over a file on the disk and over one in memory (tmpfs).
 */
import { execFile, execFileSync } from 'node:child_process'
import { copyFile, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { cpus, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { type MetadataMedium, openMedium } from '../src/devicemapper/metadata-medium.ts'
import { openPoolMetadata } from '../src/devicemapper/thin/pool-metadata.ts'
import { connect, type SnapshotMetadataClient } from '../src/grpc/client.ts'
import { METADATA_BLOCK_BYTES } from '../src/units.ts'
import { type ThinTool, thinTool } from '../test/lab/tools.ts'
import { ensureTrixieTools, trixieTool } from '../test/lab/trixie-tools.ts'
import { startAgentProcess } from './agent-process.ts'
import { deltaRows, streamRows } from './aims.ts'
import { manyRows, measureMany } from './many-clients.ts'
import { cpuMilliseconds, median } from './measure.ts'
import { measureRouter } from './router.ts'
import { measureStream } from './stream.ts'

const run = promisify(execFile)

/** The heading of its section in docs/benchmarks.md. */
export const deviceHeading = '## A delta on a block device, beside what a C program needs'

/** Requests that the C program has under way at once: a window and two more of the walk's. */
const DEPTH = 128
/** Calls until V8 has compiled all that is hot. */
const CALLS_BEFORE = 20
const ways = ['pread', 'libaio', 'io_uring'] as const
export type Way = (typeof ways)[number]

export interface Question {
  readonly title: string
  /** Undefined: all that the target maps. */
  readonly base?: string
  readonly target: string
}

/** Milliseconds, of wall time and of processors' time. */
export interface Cost {
  readonly wall: number
  readonly cpu: number
}

interface Medium {
  readonly title: string
  /** A recorded pool's folder. */
  readonly folder: string
  /** Where its metadata really is. */
  readonly metadata: string
  readonly ways: readonly Way[]
}

export interface Figures {
  readonly medium: string
  readonly question: string
  extents: number
  nodes: number
  agent: Cost
  limits: Partial<Record<Way, Cost>>
  tools: { readonly name: string; readonly cost: Cost }[]
}

/** Runs of what takes seconds: the tools, and streams of many extents. */
const FEW = 3

/**
 * @param folder a recorded pool
 * @param streamed extents of the streams
 * @returns its section
 */
export async function measureDevice(
  folder: string,
  questions: readonly Question[],
  runs: number,
  streamed: number
): Promise<string> {
  const few = Math.min(runs, FEW)
  const work = await mkdtemp(join(tmpdir(), 'deltamapper-bench-'))
  const memory = await mkdtemp('/dev/shm/deltamapper-bench-')
  const loops: string[] = []
  try {
    const program = join(work, 'node-reader')
    await run('cc', ['-O2', '-o', program, join(import.meta.dirname, 'node-reader.c')])
    const image = join(folder, 'metadata.img')
    await copyFile(image, join(memory, 'metadata.img'))
    const attach = async (title: string, file: string): Promise<Medium> => {
      const device = execFileSync('losetup', ['-f', '--show', '--direct-io=on', '--read-only', file], {
        encoding: 'utf8'
      }).trim()
      loops.push(device)
      const own = await mkdtemp(join(work, 'pool-'))
      await copyFile(join(folder, 'pool.json'), join(own, 'pool.json'))
      await symlink(device, join(own, 'metadata.img'))
      return { title, folder: own, metadata: device, ways }
    }
    const media: Medium[] = [
      { title: 'image, page cache', folder, metadata: image, ways: ['pread'] },
      await attach('device on disk', image),
      await attach('device in memory', join(memory, 'metadata.img'))
    ]
    await ensureTrixieTools()
    const figures: Figures[] = []
    for (const medium of media) figures.push(...(await measureMedium(medium, questions, program, work, runs, few)))
    const many = await measureMany(media.at(-1)!.folder)
    const streams = streamRows(await measureStream(streamed, few), await measureRouter(streamed, few))
    return render(figures, [...deltaRows(figures), ...streams, ...manyRows(many)], runs)
  } finally {
    for (const device of loops) execFileSync('losetup', ['-d', device])
    await rm(work, { recursive: true, force: true })
    await rm(memory, { recursive: true, force: true })
  }
}

async function measureMedium(
  medium: Medium,
  questions: readonly Question[],
  program: string,
  work: string,
  runs: number,
  toolRuns: number
): Promise<Figures[]> {
  const agent = await startAgentProcess({ recorded: { bench: medium.folder }, logLevel: 'info' })
  const client = connect(agent.address)
  const ids = await thinIds(medium.folder)
  try {
    const measured: Figures[] = []
    for (const question of questions) {
      const ask = () => askOnce(client, question)
      const logged = agent.nextCall()
      const { extents } = await ask()
      const { statistics } = await logged
      for (let call = 1; call < CALLS_BEFORE; call++) await ask()
      const list = join(work, 'requests')
      await writeFile(list, await requestsOf(medium.metadata, ids, question))
      const ours: Cost[] = []
      const limits: Partial<Record<Way, Cost[]>> = {}
      for (let turn = 0; turn < runs; turn++) {
        for (const way of medium.ways) {
          const cost = await readAll(program, way, medium.metadata, list)
          if (cost) (limits[way] ??= []).push(cost)
        }
        const before = cpuMilliseconds(agent.pid)
        const { milliseconds } = await ask()
        ours.push({ wall: milliseconds, cpu: cpuMilliseconds(agent.pid) - before })
      }
      const tools: Figures['tools'] = []
      for (const [name, tool, args] of toolsFor(question, ids)) {
        const costs: Cost[] = []
        for (let turn = 0; turn < toolRuns; turn++) costs.push(await timed(tool, [...args, medium.metadata]))
        tools.push({ name, cost: middle(costs) })
      }
      measured.push({
        ...{ medium: medium.title, question: question.title, extents, nodes: statistics.nodesRead },
        ...{ agent: middle(ours), tools },
        limits: Object.fromEntries(Object.entries(limits).map(([way, costs]) => [way, middle(costs)]))
      })
      console.error(JSON.stringify(measured.at(-1)))
    }
    return measured
  } finally {
    client.close()
    await agent.stop()
  }
}

/** What the walk asks the kernel for, in its order: pairs of first block and number of blocks. */
async function requestsOf(path: string, ids: ReadonlyMap<string, number>, { base, target }: Question): Promise<Buffer> {
  const asked: number[] = []
  const metadata = await openPoolMetadata(path, {
    open: async (...opening) => recorded(await openMedium(...opening), asked)
  })
  try {
    const targetId = ids.get(target)!
    const { batches } =
      base === undefined
        ? await metadata.allocated({ deviceId: targetId })
        : await metadata.delta({ baseId: ids.get(base)!, targetId })
    // (The superblock is no node.)
    for await (const batch of batches) void batch
    return Buffer.from(Uint32Array.from(asked).buffer)
  } finally {
    await metadata.close()
  }
}

function recorded(medium: MetadataMedium, asked: number[]): MetadataMedium {
  const note = (bytes: number, position: number) => {
    if (position > 0) asked.push(position / METADATA_BLOCK_BYTES, bytes / METADATA_BLOCK_BYTES)
  }
  return {
    ...{ sizeBytes: medium.sizeBytes, device: medium.device, isDirect: medium.isDirect },
    descriptor: medium.descriptor,
    readRuns: (into, runs) => {
      for (let run = 0; run < runs.count; run++) note(runs.lengths[run], runs.positions[run])
      return medium.readRuns(into, runs)
    },
    readNow: (into, start, bytes, position) => {
      note(bytes, position)
      return medium.readNow(into, start, bytes, position)
    },
    close: () => medium.close()
  }
}

/** @returns undefined where this machine does not allow it */
async function readAll(program: string, way: Way, path: string, list: string): Promise<Cost | undefined> {
  try {
    const { stdout } = await run(program, [way, String(DEPTH), path, list])
    const [wall, cpu] = stdout.trim().split(' ').map(Number)
    return { wall: wall / 1000, cpu: cpu / 1000 }
  } catch (error) {
    if ((error as { code?: number }).code === 77) return undefined
    throw error
  }
}

/** A whole process, by bash's own clock. */
async function timed({ path, env }: ThinTool, args: readonly string[]): Promise<Cost> {
  const script = 'TIMEFORMAT="%3R %3U %3S"; time "$@" > /dev/null'
  const { stderr } = await run('bash', ['-c', script, 'bash', path, ...args], { env })
  const [wall, user, system] = stderr.trim().split('\n').at(-1)!.split(' ').map(Number)
  return { wall: wall * 1000, cpu: (user + system) * 1000 }
}

function toolsFor({ base, target }: Question, ids: ReadonlyMap<string, number>): [string, ThinTool, string[]][] {
  const name = base === undefined ? 'thin_dump' : 'thin_delta'
  const args =
    base === undefined
      ? ['--metadata-snap', '--dev-id', `${ids.get(target)}`]
      : ['--metadata-snap', '--thin1', `${ids.get(base)}`, '--thin2', `${ids.get(target)}`]
  return [
    ['0.9.0', thinTool(name), args],
    ['1.1.0', trixieTool(name), args]
  ]
}

async function thinIds(folder: string): Promise<Map<string, number>> {
  const { snapshots } = JSON.parse(await readFile(join(folder, 'pool.json'), 'utf8')) as {
    snapshots: { name: string; thin_id: number }[]
  }
  return new Map(snapshots.map(({ name, thin_id: id }) => [name, id]))
}

async function askOnce(client: SnapshotMetadataClient, { base, target }: Question) {
  const began = performance.now()
  const targetSnapshotId = `bench/${target}`
  const { batches } =
    base === undefined
      ? await client.allocated({ snapshotId: targetSnapshotId })
      : await client.delta({ baseSnapshotId: `bench/${base}`, targetSnapshotId })
  let extents = 0
  for await (const { count } of batches) extents += count
  return { milliseconds: performance.now() - began, extents }
}

function middle(costs: readonly Cost[]): Cost {
  return { wall: median(costs.map(({ wall }) => wall)), cpu: median(costs.map(({ cpu }) => cpu)) }
}

function render(figures: readonly Figures[], aims: readonly string[][], runs: number): string {
  return `${deviceHeading}

The pool above. *Device*: a loop device with direct I/O, read with O_DIRECT and with the checks of live metadata, as
every pool in use is read; over a file on the disk, and over one in memory, which is a fast device. *C*: a program that
reads the same nodes and checks of each the checksum, its number and its keys, and makes nothing of them: with pread, one
after the other, and with libaio and io_uring, ${DEPTH} requests at once. Wall time, and in parentheses processor time, in
milliseconds; of the agent its whole process, of a call over an open connection until the last extent was decoded by the
client. \`thin_delta\` (for *allocated* \`thin_dump\`) is the whole process. Medians of ${runs} runs. Made by \`npm run bench
-- --device\`; the machine had a load of ${loadavg()[2].toFixed(0)} on ${cpus().length} processors.

| | delta | extents | nodes | agent | C, pread | C, libaio | C, io_uring | tool 0.9.0 | tool 1.1.0 | CPU of C's | of the tool's |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
${figures.map(row).join('\n')}

What is aimed at, and what this run has measured. CPU is compared with CPU, of C with libaio (in the page cache: pread) and of the whole
\`thin_delta\` or \`thin_dump\`, 0.9.0 and 1.1.0. The last rows are of the device in memory; streams, of an image in the page cache.

| | aim | measured |
|---|---|---|
${aims.map((cells) => `| ${cells.join(' | ')} |`).join('\n')}

${outOfReach}`
}

/** Written by hand: it is not measured by each run. */
const outOfReach = `What of this cannot be had, and why. One profile (perf, on a busy machine) of answers over the page cache with 1 %
scattered changes: reading the nodes is a third of the agent's processor time, and their checksums are a seventh, and the
C program pays for both as well. All of JavaScript is less than a fifth, of which comparing and checking keys are not
half. Garbage collection, compiling and the main thread take as much again. So a faster comparison alone leads neither to
1.5 times C nor to ten times less than \`thin_delta\`, which would be 1.3 times C. Of a stream, finding and encoding an
extent costs 14 ns; the rest goes into messages and into waking threads for them ([decision
20](decisions/0020-reads-and-checks.md#answers-of-very-many-extents)). Of an agent's memory at rest, Node's program is
51 MiB, which all of Node's processes share. Node with three threads that do nothing, as many as an agent has, takes 85 MiB
in all; installed, as one file for each thread, an agent takes 111 MiB.
`

function row({ medium, question, extents, nodes, agent, limits, tools }: Figures): string {
  const limit = limits.libaio ?? limits.pread!
  const least = Math.min(...tools.map(({ cost }) => cost.cpu))
  const cells = [
    ...[medium, question, extents.toLocaleString('en-US'), nodes.toLocaleString('en-US'), shown(agent)],
    ...ways.map((way) => shown(limits[way])),
    ...tools.map(({ cost }) => shown(cost)),
    `${(agent.cpu / limit.cpu).toFixed(1)} ×`,
    `1 / ${(least / agent.cpu).toFixed(1)}`
  ]
  return `| ${cells.join(' | ')} |`
}

function shown(cost: Cost | undefined): string {
  if (cost === undefined) return '–'
  const digits = (value: number) => (value < 20 ? value.toFixed(1) : value.toFixed(0))
  return `${digits(cost.wall)} (${digits(cost.cpu)})`
}
