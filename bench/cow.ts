/**
 * What the delta of two classic LVM snapshots costs, beside reading the areas with dd and beside reading both snapshots:
 * of an image on this machine, and in a kernel of the lab's (load-cow.ts is what runs there), turn by turn, in one run.
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, truncateSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { areasFor, CHUNK_BYTES, type Order, storeBytesFor, volumeBytesFor, writeHeader, writeList } from './cow-list.ts'
import { askServed, type ServedFigures, servings } from './cow-served.ts'
import type { Stages } from './cow-stages.ts'
import { measureInLab } from './lab-load.ts'
import { type Cost, type CowFigures, readWithDd } from './load-cow.ts'
import { median } from './measure.ts'

/** The heading of its section in docs/benchmarks.md. */
export const cowHeading = '## Classic snapshots'

/** The volume of ten million entries, and its store: sparse. */
const DISK_BYTES = 160 * 2 ** 30
/** The kernel keeps every entry in memory. */
const MEMORY_MIB = 2600

/** Of the store that is read on this machine. */
const HOST_ENTRIES = 10_000_000

/** @returns its section */
export async function measureCow(rounds: number): Promise<string> {
  const host: HostFigures[] = []
  for (const order of orders) host.push(await measureImage(order, rounds))
  const figures = await measureInLab<CowFigures[]>('load-cow.ts', rounds, 1, DISK_BYTES, MEMORY_MIB)
  const inLab = figures.map(({ entries, order, dd, stages }) => stageRow('the lab', { entries, order, dd, stages }))
  return `${cowHeading}

A store of 4 KiB chunks. *Scattered*: it has an entry for every other chunk of its volume, in no order that would be of
help, so that each is an extent of its own. *In order*: for its first chunks, one after the other. *Read*: all of the
list, each entry checked and marked, and its digest. *Encode*: from there to the last byte of the last message. *dd*: as
many areas, with the same requests (O_DIRECT, 4 KiB). Processor times in parentheses. *This machine*: an image on its
disk, read with O_DIRECT, and dd of a file with the same areas. *The lab*: the device, in a kernel whose one processor
all share, and whose system calls are dear. Turns of each: ${rounds}; medians. Made by \`npm run bench -- --cow\`.

| where | entries | dd of the areas | read | times dd | encode | peak memory |
|---|--:|--:|--:|--:|--:|--:|
${[...host.map((each) => stageRow('this machine', each)), ...inLab].join('\n')}

The same over gRPC, until a client has decoded the last extent, from a process that asks neither LVM nor the kernel nor a
catalog. *Ready-made*: its messages have lain in memory all along, so that this is gRPC and its client. *Read and
served*: the list is read, encoded and sent. *By hand*: \`deltamapper delta --cow STORE -o ranges >/dev/null\`, from its
start to its end.

| where | entries | dd of the areas | ready-made | times dd | read and served | times dd | by hand | times dd |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
${[...host.map((each) => servedRow('this machine', each, each.byHand)), ...figures.map((each) => servedRow('the lab', each))].join('\n')}

*Delta*: the whole gRPC call between two snapshots, the older of which has that store, of a live agent in the lab that
asks LVM, the kernel and its catalog as always, until the last extent is decoded; processor time is the agent's. Messages
have 8,192 extents, which is both the default and the most. *Both snapshots*: what a backup would read that has no
delta, computed from ${mib(figures[0].sampleBytes)} MiB of one (O_DIRECT, 1 MiB).

| entries | extents | delta | its processor time | times dd | both snapshots | agent's peak memory |
|--:|--:|--:|--:|--:|--:|--:|
${figures.map(callRow).join('\n')}

${why}
`
}

const why = `Reading takes no longer than dd, because many requests are under way at once. dd sends nothing; ten million scattered
extents are 1,221 messages, 116 MB, and read and served they take no longer either. The live call has a fixed part, which
shows with few entries: before its first message, LVM is asked twice over (six commands, and what starting each costs in
the lab), and both lists go on record. And every 50 ms the kernel is asked about the devices and the state of both
snapshots, on the one processor that agent, client and kernel share. (dd of these areas was seen to take 2.9 to 6.0 s in
the lab, from run to run; the live call 6.2 to 13.1 s.) A list in order is one extent, and the whole call is what reading
it takes, and LVM. By hand, \`-o ranges\` writes a line for each extent, which is nearly all of its time.`

const orders = ['scattered', 'in order'] as const

type StageFigures = Pick<CowFigures, 'entries' | 'order' | 'dd' | 'stages'>
interface HostFigures extends StageFigures {
  readonly served: ServedFigures
  readonly byHand: Cost[]
}

/** The same without a kernel that knows it: of an image. */
async function measureImage(order: Order, rounds: number): Promise<HostFigures> {
  const folder = mkdtempSync(join(tmpdir(), 'cow-'))
  const [store, areas] = [join(folder, 'store'), join(folder, 'areas')]
  writeHeader(store)
  writeList(store, HOST_ENTRIES, order)
  truncateSync(store, storeBytesFor(HOST_ENTRIES))
  writeList(areas, HOST_ENTRIES, order, (area) => area * CHUNK_BYTES)
  const script = fileURLToPath(new URL('cow-stages.ts', import.meta.url))
  const words = [script, store, String(volumeBytesFor(HOST_ENTRIES)), String(HOST_ENTRIES)]
  const [dd, stages, byHand]: [Cost[], Stages[], Cost[]] = [[], [], []]
  const sizeBytes = volumeBytesFor(HOST_ENTRIES)
  for (let round = 0; round < rounds; round++) {
    dd.push(readWithDd(areas, CHUNK_BYTES, areasFor(HOST_ENTRIES)))
    stages.push(JSON.parse(execFileSync(process.execPath, words, { encoding: 'utf8' })) as Stages)
    byHand.push(timeByHand(store, sizeBytes))
  }
  const served: ServedFigures = { 'ready-made': [], read: [] }
  for (const how of servings) {
    served[how].push(...(await askServed(folder, how, rounds, { path: store, sizeBytes, entries: HOST_ENTRIES })))
  }
  rmSync(folder, { recursive: true })
  return { entries: HOST_ENTRIES, order, dd, stages, served, byHand }
}

function timeByHand(store: string, sizeBytes: number): Cost {
  const command = join(import.meta.dirname, '../bin/deltamapper.js')
  const ask = `${process.execPath} ${command} delta --cow ${store} --size ${sizeBytes} -o ranges >/dev/null 2>&1`
  const said = execFileSync('bash', ['-c', `TIMEFORMAT='%R %U %S'; { time ${ask}; } 2>&1`], { encoding: 'utf8' })
  const [seconds, user, system] = said.trim().split(' ').map(Number)
  return { seconds, cpu: user + system }
}

function servedRow(
  where: string,
  { entries, order, dd, served }: StageFigures & { readonly served: ServedFigures },
  byHand?: readonly Cost[]
): string {
  const theirs = middle(dd)
  const each = [served['ready-made'], served.read, byHand].flatMap((costs) =>
    costs ? [cost(middle(costs)), times(middle(costs), theirs)] : ['', '']
  )
  return `| ${[where, `${entries.toLocaleString('en-US')} ${order}`, cost(theirs), ...each].join(' | ')} |`
}

function stageRow(where: string, { entries, order, dd, stages }: StageFigures): string {
  const [theirs, read, encode] = [
    middle(dd),
    middle(stages.map((each) => each.read)),
    middle(stages.map((each) => each.encode))
  ]
  const cells = [
    where,
    `${entries.toLocaleString('en-US')} ${order}`,
    cost(theirs),
    cost(read),
    times(read, theirs),
    cost(encode),
    `${median(stages.map(({ peakMiB }) => peakMiB)).toFixed(0)} MiB`
  ]
  return `| ${cells.join(' | ')} |`
}

function callRow({
  entries,
  order,
  extents,
  volumeBytes,
  delta,
  dd,
  sample,
  sampleBytes,
  peakMiB
}: CowFigures): string {
  const ours = middle(delta)
  const whole = (2 * middle(sample).seconds * volumeBytes) / sampleBytes
  const cells = [
    `${entries.toLocaleString('en-US')} ${order}`,
    extents.toLocaleString('en-US'),
    `${ours.seconds.toFixed(1)} s`,
    `${ours.cpu.toFixed(2)} s`,
    times(ours, middle(dd)),
    `${whole.toFixed(0)} s`,
    `${peakMiB.toFixed(0)} MiB`
  ]
  return `| ${cells.join(' | ')} |`
}

function cost({ seconds, cpu }: Cost): string {
  return `${seconds.toFixed(2)} s (${cpu.toFixed(2)} s)`
}

/** Of the times, and of the processor times. */
function times(ours: Cost, theirs: Cost): string {
  return `${(ours.seconds / theirs.seconds).toFixed(1)} (${(ours.cpu / theirs.cpu).toFixed(1)})`
}

function middle(costs: readonly Cost[]): Cost {
  return { seconds: median(costs.map(({ seconds }) => seconds)), cpu: median(costs.map(({ cpu }) => cpu)) }
}

function mib(bytes: number): number {
  return bytes / 2 ** 20
}
