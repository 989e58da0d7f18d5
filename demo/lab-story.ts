/**
 * What `npm run lab` tells, inside the kernel lab (demo/lab.ts boots it): a file system that is written all the time is backed up
 * incrementally through the agent and restored; first on LVM, then on a pool that is run with dmsetup alone. Everything that is said was
 * measured or compared a moment before, and the exit status is 0 only if all of it is as it should be.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { mkdir, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type MapStyle, VolumeMap } from '../src/cli/output/map.ts'
import { humanSize, percentage } from '../src/cli/command-line/quantities.ts'
import { parsePoolStatus } from '../src/devicemapper/thin/status.ts'
import { DeltamapperError, type ErrorCode } from '../src/errors.ts'
import { connect, type SnapshotMetadataClient } from '../src/grpc/client.ts'
import {
  createDevice,
  createLinear,
  kernelRelease,
  removeDevice,
  run,
  sendMessage,
  thinPoolTable,
  thinTable,
  zeroStart
} from '../test/kernel/dmsetup.ts'
import { createGroup, lvm, prepareLvm } from '../test/kernel/lvm-setup.ts'
import { type AgentProcess, startAgentProcess } from './agent-process.ts'
import { compare, type Extent, restore, takeBackup } from './stored-backup.ts'
import { type Progress, readRecords } from './workload.ts'

const mebibyte = 2 ** 20
const gibibyte = 2 ** 30
const blockBytes = 65536
const disk = '/dev/ubda'
const agentFolder = '/run/deltamapper'
const address = `unix://${agentFolder}/agent.sock`
/** Where the backups are kept, on a volume of their own. */
const store = '/run/mnt/store'
const restored = join(store, 'restored.img')

const style = JSON.parse(process.argv[2] ?? '{"columns":64,"colour":false}') as MapStyle
const [bold, dim, green, red, plain] = style.colour
  ? ['\u001b[1m', '\u001b[2m', '\u001b[32m', '\u001b[31m', '\u001b[0m']
  : ['', '', '', '', '']

/** A line of the table is 99 columns wide. */
const columnWidths = [8, 10, 10, 8, 6, 8, 10, 7]

/** What was not as it should be. */
const problems: string[] = []
/** The snapshots that there are, or were. */
const taken = new Set<string>()

let agent: AgentProcess
let client: SnapshotMetadataClient

/** Where snapshots are taken, by whatever means. */
interface Stage {
  /** What the handles of its snapshots begin with. */
  source: string
  /** Device-mapper name of the device that has the thin-pool target. */
  poolDevice: string
  /** Where the volume's file system is mounted. */
  folder: string
  shop: Shop
  takeSnapshot(name: string): void
  /** Makes a snapshot readable; returns its device. */
  show(name: string): string
  hide(name: string): void
}

interface Answer {
  capacityBytes: number
  extents: Extent[]
  /** From the question to the end of the answer. */
  ms: number
  /** Metadata nodes that the agent read for it, by its log. */
  nodes: number
}

interface Step {
  snapshot: string
  /** Undefined: a full backup. */
  base: string | undefined
  answer: Answer
}

say(`Linux ${kernelRelease()}, thin-pool target ${targetVersion('thin-pool')}, LVM ${lvmVersion()}`)
try {
  await openAgent()
  await lvmStory()
  await dmsetupStory()
  await closeAgent()
} catch (error) {
  problem(error instanceof Error ? error.message : String(error))
}
conclude()
// Where the story broke off, a workload may be running still: it ends with the kernel.
process.exit()

async function lvmStory(): Promise<void> {
  chapter('A shop on LVM, open all week')
  const stage = await openOnLvm()
  const { shop, folder } = stage
  say()
  say('Every evening a snapshot is taken and the agent asked which bytes of it to copy; nothing is activated for the')
  say(
    'answer. What it names is copied into a backup, the backup laid on what was restored before, and the result compared'
  )
  say(
    'with the whole snapshot, read around the page cache. The shop writes on all the while: "writes" are those it made'
  )
  say('durable meanwhile; "nodes" the metadata blocks that the agent read.')
  heading()

  const steps: Step[] = []
  await shop.writes(200)
  steps.push(await backUp(stage, 'monday', undefined, 'the shop opens: a database, pictures, mail'))

  await shop.writes(300)
  steps.push(await backUp(stage, 'tuesday', 'monday', "a day's orders, all over the database"))

  writeNoise(join(folder, 'film.mkv'), 48)
  await shop.writes(100)
  steps.push(await backUp(stage, 'wednesday', 'tuesday', 'a film is delivered: 48 MiB in one place'))

  // What LVM's default permission invites to.
  lvm('lvchange', '--permission', 'rw', 'vg0/wednesday')
  stage.show('wednesday')
  run('mount', ['/dev/vg0/wednesday', await folderFor('look')])
  run('umount', ['/run/mnt/look'])
  stage.hide('wednesday')
  await shop.writes(100)
  takeSnapshot(stage, 'thursday')
  say()
  say('  Somebody has mounted wednesday, to look for a file. That wrote to it: as a base it is refused.')
  await refused('wednesday to thursday', 'DM_BASE_CHANGED', () => ask(stage, 'thursday', 'wednesday'), '    ')
  say('  So thursday gets a full backup, as the error says.')
  say()
  steps.push(await backUp(stage, 'thursday', undefined, 'more orders'))

  await rm(join(folder, 'film.mkv'))
  for (const each of await readdir(join(folder, 'pictures'))) {
    if (/^1/.test(each)) await rm(join(folder, 'pictures', each))
  }
  trim(folder)
  await shop.writes(100)
  steps.push(await backUp(stage, 'friday', 'thursday', 'the film and old pictures are deleted, and trimmed: zeros now'))

  lvm('lvextend', '--size', '1280m', 'vg0/shop')
  run('resize2fs', ['/dev/vg0/shop'])
  writeNoise(join(folder, 'archive.tar'), 24)
  await shop.writes(200)
  steps.push(await backUp(stage, 'saturday', 'friday', 'the volume has grown to 1.25 GiB, mounted as it is'))

  await agent.kill()
  client.close()
  await startAgent()
  writeNoise(join(folder, 'pictures', 'poster.raw'), 12)
  await shop.writes(300)
  steps.push(await backUp(stage, 'sunday', 'saturday', 'the agent was killed (SIGKILL) and started again; a poster'))
  compareTotals(steps)

  await checkFileSystem(restored, 'sunday')

  say()
  say('What has no right answer gets an error, and none of the bytes:')
  lvm('lvremove', 'vg0/tuesday')
  await refused('tuesday, which is removed now, to friday', 'DM_SNAPSHOT_NOT_FOUND', () =>
    ask(stage, 'friday', 'tuesday')
  )
  await refused('sunday to monday', 'DM_ORDER_REVERSED', () => ask(stage, 'monday', 'sunday'))
  await refused('the volume of the backups, which is not thin', 'DM_NOT_TRACKED', () => ask(stage, 'store'))

  await checkTraces(stage)
  await shop.close()
  drawMap(steps[steps.length - 1])
}

async function dmsetupStory(): Promise<void> {
  chapter('The same on a pool that is run with dmsetup alone')
  const metadata = createLinear('depot-metadata', disk, 7 * gibibyte, 16 * mebibyte)
  const dataBytes = 512 * mebibyte
  const data = createLinear('depot-data', disk, 7 * gibibyte + 16 * mebibyte, dataBytes)
  zeroStart(metadata)
  createDevice('depot', thinPoolTable({ metadataDevice: metadata, dataDevice: data, dataBytes, blockBytes }))
  sendMessage('depot', 'create_thin 0')
  const sizeBytes = 512 * mebibyte
  const volume = createDevice('depot-volume', thinTable('depot', 0, sizeBytes))
  const folder = await mountNew(volume, 'depot')
  const thinIds = new Map<string, number>()
  const stage: Stage = {
    source: 'depot',
    poolDevice: 'depot',
    folder,
    shop: await openShop(folder, 32),
    takeSnapshot(name) {
      // (Suspending freezes the file system, so that the snapshot is a clean one.)
      run('dmsetup', ['suspend', 'depot-volume'])
      const id = thinIds.size + 1
      sendMessage('depot', `create_snap ${id} 0`)
      run('dmsetup', ['resume', 'depot-volume'])
      // Sizes are only in tables: a snapshot can be asked for while it has one.
      createDevice(name, thinTable('depot', id, sizeBytes), '--readonly')
      thinIds.set(name, id)
    },
    show: (name) => `/dev/mapper/${name}`,
    hide: () => undefined
  }
  const { shop } = stage
  say(
    `  pool      depot, ${humanSize(dataBytes)}, with blocks of ${humanSize(blockBytes)}; volume depot-volume, ${humanSize(sizeBytes)}, ext4`
  )
  heading()

  const steps: Step[] = []
  await shop.writes(100)
  steps.push(await backUp(stage, 'morning', undefined, 'a database and mail'))
  writeNoise(join(folder, 'delivery'), 24)
  await shop.writes(200)
  steps.push(await backUp(stage, 'noon', 'morning', 'a delivery of 24 MiB'))
  await rm(join(folder, 'delivery'))
  trim(folder)
  await shop.writes(200)
  takeSnapshot(stage, 'evening')
  // From here on the pool's only metadata snapshot is somebody else's: thin_delta's.
  sendMessage('depot', 'reserve_metadata_snap')
  steps.push(await backUp(stage, 'evening', 'noon', 'the delivery is gone; somebody else holds the metadata snapshot'))
  compareTotals(steps)

  await checkFileSystem(restored, 'evening')

  say()
  say("Debian's thin_delta, on the metadata snapshot it holds, as a second opinion:")
  for (const { base, snapshot, answer } of steps) {
    if (base === undefined) continue
    process.stdout.write(`  ${base} to ${snapshot}: `)
    const ids = ['--snap1', String(thinIds.get(base)), '--snap2', String(thinIds.get(snapshot))]
    const begin = performance.now()
    const xml = run('thin_delta', ['-m', ...ids, metadata])
    const ms = performance.now() - begin
    const theirs = JSON.stringify(merged(thinDeltaExtents(xml)))
    const same = theirs === JSON.stringify(merged(answer.extents))
    if (!same) problem(`thin_delta does not agree on ${base} to ${snapshot}`)
    say(
      `${verdict(same, 'the same blocks', 'OTHER BLOCKS')}, in ${duration(ms)} (ours ${duration(answer.ms)}, through gRPC)`
    )
  }
  sendMessage('depot', 'release_metadata_snap')
  await checkTraces(stage)
  await shop.close()
  run('umount', [folder])
  for (const device of [...thinIds.keys(), 'depot-volume', 'depot']) removeDevice(device)
  // Throws where it finds anything.
  run('thin_check', [metadata])
  say('thin_check finds nothing amiss in the metadata of the pool, which is shut down now.')
}

/** A volume group, a pool, a volume with a file system in which the shop has opened, and another volume for backups. */
async function openOnLvm(): Promise<Stage> {
  // The end of the disk is for the second story.
  lvm('pvcreate', '--setphysicalvolumesize', '6g', disk)
  createGroup('vg0', disk)
  const pool = ['--size', '2g', '--poolmetadatasize', '16m', '--chunksize', '64k']
  lvm('lvcreate', '--type', 'thin-pool', ...pool, '--name', 'pool', 'vg0')
  lvm('lvcreate', '--type', 'thin', '--virtualsize', '1g', '--thinpool', 'pool', '--name', 'shop', 'vg0')
  lvm('lvcreate', '--size', '3g', '--name', 'store', 'vg0')
  await mountNew('/dev/vg0/store', 'store')
  const folder = await mountNew('/dev/vg0/shop', 'shop')
  await mkdir(join(folder, 'pictures'))
  for (let number = 1; number <= 12; number++) writeNoise(join(folder, 'pictures', `${number}.raw`), 4)
  const shop = await openShop(folder, 64)
  say(`  pool      vg0/pool, 2 GiB, with blocks of ${humanSize(blockBytes)}`)
  say('  volume    vg0/shop, 1 GiB, thin; ext4, mounted')
  say('  workload  a process that changes records all over a database, appends to a journal, gets and deletes mail,')
  say('            and makes it all durable, again and again')
  say(`  agent     process ${agent.pid}, at ${address}`)
  return {
    source: 'vg0',
    poolDevice: 'vg0-pool-tpool',
    folder,
    shop,
    takeSnapshot: (name) => lvm('lvcreate', '--snapshot', '--permission', 'r', '--name', name, 'vg0/shop'),
    show(name) {
      lvm('lvchange', '--activate', 'y', '--ignoreactivationskip', `vg0/${name}`)
      return `/dev/vg0/${name}`
    },
    hide: (name) => lvm('lvchange', '--activate', 'n', `vg0/${name}`)
  }
}

/**
 * One evening: takes a snapshot unless it is there, asks the agent, copies what it names into a backup, lays that on what was restored
 * before, and compares the result with the snapshot's device, all of it. That takes reading the snapshot as well, so it is known how
 * long a backup without the agent would have to read.
 */
async function backUp(stage: Stage, snapshot: string, base: string | undefined, description: string): Promise<Step> {
  process.stdout.write(`  ${snapshot.padEnd(11)}${(base === undefined ? 'full' : 'changes').padEnd(8)}`)
  if (!taken.has(snapshot)) takeSnapshot(stage, snapshot)
  const writesBefore = stage.shop.progress.writes
  const devices = run('dmsetup', ['ls'])
  const answer = await ask(stage, snapshot, base)
  if (run('dmsetup', ['ls']) !== devices) problem(`other devices are active since the agent was asked for ${snapshot}`)

  const device = stage.show(snapshot)
  const [copyMs, backup] = await timed(() => takeBackup(answer, device, join(store, `${stage.source}-${snapshot}`)))
  await restore(backup, base === undefined, restored)
  const { readMs, differsAt } = await compare(device, restored)
  stage.hide(snapshot)
  if (differsAt !== undefined) problem(`${snapshot}: the restored image differs at byte ${differsAt}`)
  const writes = stage.shop.progress.writes - writesBefore
  if (writes === 0) problem(`the shop stood still while ${snapshot} was backed up`)

  const bytes = sizeOf(answer.extents)
  const cells = row([
    String(answer.extents.length),
    humanSize(bytes),
    percentage(bytes, answer.capacityBytes),
    duration(answer.ms),
    String(answer.nodes),
    duration(copyMs),
    // (Where they differ, it was not read to its end.)
    differsAt === undefined ? duration(readMs) : '-',
    String(writes)
  ])
  say(`${cells}  ${verdict(differsAt === undefined, 'identical', `DIFFERENT at byte ${differsAt}`)}`)
  say(`    ${dim}${description}${plain}`)
  return { snapshot, base, answer }
}

/** Takes a snapshot, with a note in it that says which. */
function takeSnapshot(stage: Stage, name: string): void {
  run('bash', ['-c', `echo "This is ${name}." >${stage.folder}/note.txt`])
  stage.takeSnapshot(name)
  taken.add(name)
}

/** Asks the agent; without a base, for all that is allocated. */
async function ask({ source }: Stage, snapshot: string, base?: string): Promise<Answer> {
  const logged = agent.nextCall()
  const begin = performance.now()
  const target = `${source}/${snapshot}`
  const { capacityBytes, batches } =
    base === undefined
      ? await client.allocated({ snapshotId: target })
      : await client.delta({ baseSnapshotId: `${source}/${base}`, targetSnapshotId: target })
  if (capacityBytes === undefined) throw new Error('our own agent always says the capacity')
  const extents: Extent[] = []
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) extents.push({ offset: offsets[i], size: sizes[i] })
  }
  const ms = performance.now() - begin
  const { statistics } = await logged
  return { capacityBytes, extents, ms, nodes: statistics?.nodesRead ?? 0 }
}

/** Asks what must be refused, and shows how it is. */
async function refused(what: string, code: ErrorCode, question: () => Promise<Answer>, indent = '  '): Promise<void> {
  let said = 'it was answered'
  try {
    await question()
    problem(`${what}: it was answered, and should not have been`)
  } catch (error) {
    if (!(error instanceof DeltamapperError)) throw error
    if (error.code !== code) problem(`${what}: ${error.code} instead of ${code}`)
    said = `${error.code}: ${error.message}; ${error.remedy}`
  }
  say(`${indent}${bold}${what}${plain}`)
  for (const line of wrapped(said, 100)) say(`${indent}  ${line}`)
}

/** The restored file system has to be one: clean, with the note of the evening, and every record of the database whole. */
async function checkFileSystem(image: string, snapshot: string): Promise<void> {
  const device = run('losetup', ['--find', '--show', '--read-only', image]).trim()
  run('e2fsck', ['-f', '-n', device])
  const folder = await folderFor('restored')
  run('mount', ['-o', 'ro', device, folder])
  const note = (await readFile(join(folder, 'note.txt'), 'utf8')).trim()
  const { records, whole } = await readRecords(folder)
  run('umount', [folder])
  run('losetup', ['--detach', device])
  const right = note === `This is ${snapshot}.` && records > 0 && whole === records
  if (!right) problem(`the restored file system of ${snapshot} says "${note}" and has ${whole} of ${records} records`)
  say(`What was restored of ${snapshot}, as a file system: e2fsck finds it clean; mounted, its note says "${note}",`)
  say(`and ${whole} of ${records} records of the database are whole.`)
}

/** What the agent left behind, or did not. */
async function checkTraces({ poolDevice }: Stage): Promise<void> {
  const status = parsePoolStatus(run('dmsetup', ['status', '--noflush', poolDevice]).split(' ').slice(3).join(' '))
  const heldRoot = status.state === 'working' ? status.heldRoot : undefined
  const folder = `/proc/${agent.pid}/fd`
  const open = await Promise.all((await readdir(folder)).map((fd) => readlink(join(folder, fd)).catch(() => '')))
  const devices = open.filter((path) => /^\/dev\/(mapper\/(?!control)|dm-)/.test(path))
  const left = [...(heldRoot === undefined ? [] : ['a metadata snapshot']), ...devices]
  if (left.length > 0) problem(`the agent has left behind: ${left.join(', ')}`)
  const memory = /^VmHWM:\s+(\d+) kB$/m.exec(await readFile(`/proc/${agent.pid}/status`, 'utf8'))?.[1] ?? '0'
  say()
  say(
    `Left behind by the agent: ${verdict(left.length === 0, 'nothing; no metadata snapshot held, no device open', left.join(', '))}. ` +
      `Its memory peaked at ${Math.round(Number(memory) / 1024)} MiB.`
  )
}

function compareTotals(steps: readonly Step[]): void {
  const increments = steps.filter(({ base }) => base !== undefined)
  const copied = increments.reduce((sum, { answer }) => sum + sizeOf(answer.extents), 0)
  const full = increments.reduce((sum, { answer }) => sum + answer.capacityBytes, 0)
  say()
  say(
    `${increments.length} incremental backups copied ${bold}${humanSize(copied)}${plain} instead of ${humanSize(full)}: ${percentage(copied, full)}.`
  )
}

function drawMap({ snapshot, base, answer }: Step): void {
  const map = new VolumeMap(answer.capacityBytes, style.columns)
  for (const { offset, size } of answer.extents) map.add(offset, size)
  say()
  say(`Where ${bold}${snapshot}${plain} differs from ${bold}${base}${plain}:`)
  for (const line of map.lines('changed', style.colour)) say(line)
}

async function openAgent(): Promise<void> {
  prepareLvm()
  await mkdir(agentFolder)
  await startAgent()
}

/** The catalog outlives an agent that was killed, and so does its socket's file. */
async function startAgent(): Promise<void> {
  const configFile = join(agentFolder, 'agent.yaml')
  await writeFile(configFile, `live: true\ncatalog: ${agentFolder}/catalog.sqlite\n`)
  agent = await startAgentProcess(address, { configFile })
  client = connect(address)
}

async function closeAgent(): Promise<void> {
  client.close()
  const status = await agent.stop()
  if (status !== 0) problem(`the agent ended with ${status ?? 'a signal'} instead of 0`)
}

/** The workload, a process of its own (workload.ts). */
interface Shop {
  readonly progress: Progress
  /** Resolves when so many more writes are durable. */
  writes(count: number): Promise<void>
  close(): Promise<void>
}

async function openShop(folder: string, databaseMebibytes: number): Promise<Shop> {
  const child: ChildProcess = fork(fileURLToPath(new URL('workload.ts', import.meta.url)), [
    folder,
    String(databaseMebibytes)
  ])
  const ended = Promise.withResolvers<never>()
  child.once('exit', (status) => {
    ended.reject(new Error(`the workload has ended with status ${status}`))
  })
  // It is looked at only while somebody waits.
  ended.promise.catch(() => undefined)
  let progress: Progress = { writes: 0, bytes: 0 }
  let onProgress: () => void = () => undefined
  child.on('message', (message) => {
    progress = message as Progress
    onProgress()
  })
  const shop: Shop = {
    get progress() {
      return progress
    },
    async writes(count) {
      const goal = progress.writes + count
      while (progress.writes < goal) {
        await Promise.race([ended.promise, new Promise<void>((resolve) => (onProgress = resolve))])
      }
    },
    async close() {
      const gone = new Promise<number | null>((resolve) => child.once('exit', resolve))
      child.send('close')
      const status = await gone
      if (status !== 0) problem(`the workload ended with status ${status}`)
    }
  }
  await shop.writes(1)
  return shop
}

async function folderFor(name: string): Promise<string> {
  const folder = join('/run/mnt', name)
  await mkdir(folder, { recursive: true })
  return folder
}

async function mountNew(device: string, name: string): Promise<string> {
  const folder = await folderFor(name)
  run('mkfs.ext4', ['-q', '-m', '0', device])
  run('mount', ['-o', 'noatime,noinit_itable', device, folder])
  return folder
}

function writeNoise(path: string, mebibytes: number): void {
  run('bash', ['-c', `head -c ${mebibytes}M /dev/urandom >${path} && sync -d ${path}`])
}

/** (What was deleted is free once the journal says so.) */
function trim(folder: string): void {
  run('sync', ['-f', folder])
  run('fstrim', [folder])
}

function targetVersion(target: string): string {
  return new RegExp(`^${target} +v(\\S+)`, 'm').exec(run('dmsetup', ['targets']))?.[1] ?? 'unknown'
}

function lvmVersion(): string {
  return /LVM version: +(\S+)/.exec(run('lvm', ['version']))?.[1] ?? 'unknown'
}

/** What `thin_delta` calls anything but the same. */
function thinDeltaExtents(xml: string): Extent[] {
  const changed = xml.matchAll(/<(?:different|left_only|right_only) begin="(\d+)" length="(\d+)"/g)
  return [...changed].map(([, begin, length]) => ({
    offset: Number(begin) * blockBytes,
    size: Number(length) * blockBytes
  }))
}

/** Ascending extents with those that touch made one. */
function merged(extents: readonly Extent[]): Extent[] {
  const result: Extent[] = []
  for (const { offset, size } of extents) {
    const last = result.at(-1)
    if (last?.offset !== undefined && last.offset + last.size === offset) last.size += size
    else result.push({ offset, size })
  }
  return result
}

function sizeOf(extents: readonly Extent[]): number {
  return extents.reduce((sum, { size }) => sum + size, 0)
}

async function timed<T>(what: () => Promise<T>): Promise<[number, T]> {
  const begin = performance.now()
  const result = await what()
  return [performance.now() - begin, result]
}

function chapter(title: string): void {
  say()
  say(`${bold}${title}${plain}`)
}

function heading(): void {
  const cells = row(['extents', 'copied', 'of volume', 'answer', 'nodes', 'copy', 'full read', 'writes'])
  say()
  say(`  ${dim}${'snapshot'.padEnd(11)}${'backup'.padEnd(8)}${cells}${plain}`)
}

function row(cells: readonly string[]): string {
  return cells.map((cell, i) => cell.padStart(columnWidths[i])).join('')
}

function wrapped(text: string, width: number): string[] {
  const lines = ['']
  for (const word of text.split(' ')) {
    const line = lines[lines.length - 1]
    if (line.length + word.length >= width) lines.push(word)
    else lines[lines.length - 1] = line === '' ? word : `${line} ${word}`
  }
  return lines
}

function verdict(good: boolean, yes: string, no: string): string {
  return good ? `${green}${yes}${plain}` : `${red}${no}${plain}`
}

function duration(ms: number): string {
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`
}

function conclude(): void {
  say()
  if (problems.length > 0) {
    say(`${red}Not everything agreed:${plain}`)
    for (const each of problems) say(`  ${each}`)
    process.exitCode = 1
  } else say(`${green}Everything agreed.${plain}`)
}

function problem(what: string): void {
  problems.push(what)
}

function say(line = ''): void {
  console.log(line)
}
