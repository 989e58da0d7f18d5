/**
 * One life of a kernel that is going to be killed while a volume of LVM's is tracked and written to: started on a disk that an earlier life
 * has left behind, it activates the volume, looks whether everything that was promised is there, whether each answer has everything that
 * differs, and then keeps writer and agent busy until it is gone. Runs inside the kernel lab, started by test/lab/era-kernel-kills.ts:
 *
 *   node test/kernel/era-life.ts --journal FILE --seed S --life N [--last]
 *
 * On the lab's disk are an ext4 with the agent's catalog, the metadata device, and a volume group with the volume and its snapshots. Says `up`
 * when the agent is about to start, and `busy` when everything was right and it is at work. The last life ends instead.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, constants, existsSync, mkdirSync, openSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { discardLimit } from '../../src/devicemapper/block-queue.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { connectAdmin } from '../../src/grpc/admin-client.ts'
import { collectExtents } from '../support/collect-extents.ts'
import { blockFingerprints } from './block-fingerprints.ts'
import { alignedBuffer, createDevice, run, sendMessage } from './dmsetup.ts'
import { EraLifeJournal } from './era-life-journal.ts'
import { lifeArguments } from './life-arguments.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, createThick, lvm, prepareLvm } from './lvm-setup.ts'

const mebibyte = 2 ** 20
const CATALOG_BYTES = 64 * mebibyte
const METADATA_BYTES = 4 * mebibyte
const GROUP_BYTES = 180 * mebibyte
/** At first, and at most. */
const VOLUME_MEBIBYTES = 16
const MOST_MEBIBYTES = 20
/** A lower snapshot has room for everything. */
const SNAPSHOT_SIZE = '24m'
const MOST_LOWER = 3
/** So many snapshots before the latest are compared with each other. */
const COMPARED = 10
const blockBytes = 65536
/** Blocks beyond are never written to, so that an answer is not everything. */
const WRITTEN_BLOCKS = (VOLUME_MEBIBYTES * mebibyte) / blockBytes - 32

const folder = '/run/mnt/agent'
const catalog = `${folder}/catalog.sqlite`
const lower = '/dev/vgl/data'
const volume = 'tracked'
const upper = `/dev/mapper/${volume}`

const { journalPath, life, isLast, random } = lifeArguments()
const journal = new EraLifeJournal(journalPath)
const isFirst = journal.line === undefined

run('/run/modprobe', ['dm-era'])
run('/run/modprobe', ['dm-delay'])
prepareLvm({ mapped: true })
const deviceMapper = new DeviceMapper()
const part = (name: string, offsetBytes: number, sizeBytes: number, delayMs = 0) => {
  const at = `/dev/ubda ${offsetBytes / 512}`
  const target = delayMs === 0 ? `linear ${at}` : `delay ${at} 0 ${at} ${delayMs}`
  return createDevice(name, `0 ${sizeBytes / 512} ${target}`, '--uuid', `TEST-${name}`)
}
const disk = part('catalog', 0, CATALOG_BYTES)
if (isFirst) run('mkfs.ext4', ['-q', disk])
mkdirSync(folder, { recursive: true })
run('mount', ['-t', 'ext4', disk, folder])
const metadata = part('metadata', CATALOG_BYTES, METADATA_BYTES)
// In some lives writes take a while, so that more of them are on their way at any moment.
const group = part('group', CATALOG_BYTES + METADATA_BYTES, GROUP_BYTES, isFirst ? 0 : random.pick([0, 10, 30]))
if (isFirst) {
  createGroup('vgl', group)
  createThick('vgl', 'data', VOLUME_MEBIBYTES)
} else lvm('vgchange', '--activate', 'y', 'vgl')

const buffer = alignedBuffer(blockBytes)

async function tracked() {
  for (const until = performance.now() + 300_000; ; await sleep(100)) {
    const [now] = (await admin.listEra({ volume })).volumes
    if (!now) throw new Error('the volume is not tracked any more')
    // (What takes long is settled after the start.)
    if (now.underWay === '') return now
    if (performance.now() > until) throw new Error(`${now.underWay} is not settled`)
  }
}

/** Writes a block in the middle that nobody has written before: to the volume, or to what is below while that is not active. */
function writeTo(path: string): void {
  const file = openSync(path, constants.O_WRONLY | constants.O_DIRECT)
  buffer.fill(life + 1)
  writeSync(file, buffer, 0, blockBytes, random.integer(4, WRITTEN_BLOCKS - 1) * blockBytes)
  closeSync(file)
}

/** Takes the volume into use again. @throws where its history has not gone on, or something can be written to it unseen */
async function takeUp(isVoid: boolean): Promise<void> {
  const before = await tracked()
  if (before.active) throw new Error('nobody has activated it yet')
  const refused = await refusal(admin.createEraSnapshot({ volume, name: 'early', deadlineMs: 0 }))
  if (refused !== 'DM_ERA_INACTIVE') throw new Error(`a snapshot of an inactive volume: ${refused}`)
  const { line, lineBecause, active, suspended, problem } = await admin.activateEra({ volume, startOver: false })
  if (!active || suspended || problem !== '')
    throw new Error(`activated, but ${JSON.stringify({ suspended, problem })}`)
  if ((line !== journal.line) !== isVoid) throw new Error(`another line, or not, where it is ${isVoid}: ${lineBecause}`)
  if (isVoid) journal.say({ kind: 'line', line })
  // Killed while it grew: before or after.
  if ((await tracked()).dataBytes !== (await tracked()).sizeBytes) await admin.growEra({ volume })
  for (const name of [volume, `${volume}-guard`]) {
    const info = await deviceMapper.info(name)
    if (!info || info.suspended || (await discardLimit(info)) !== 0) throw new Error(`${name} lets discards through`)
  }
  try {
    closeSync(openSync(lower, constants.O_RDWR | constants.O_EXCL))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EBUSY') return
    throw error
  }
  throw new Error('what is below can be mounted')
}

/** The code that something is refused with. @throws when it is not */
async function refusal(asked: Promise<unknown>): Promise<string> {
  const thrown = await asked.then(
    () => new Error('it was not refused'),
    (error: unknown) => error
  )
  if (thrown instanceof DeltamapperError) return thrown.code
  throw thrown
}

/** Holds what is on record against what was promised, and looks into what nobody has looked into yet. */
async function checkSnapshots(): Promise<void> {
  const { snapshots } = await admin.listEraSnapshots({ volume })
  const there = new Set(snapshots.map(({ name }) => name))
  for (const [name, snapshot] of [...journal.snapshots]) {
    if (snapshot.unsure && !there.has(name)) {
      if ((await refusal(delta(name, name))) !== 'DM_SNAPSHOT_NOT_FOUND') throw new Error(`${name} is half there`)
      journal.say({ kind: 'lost', name })
      continue
    }
    if (snapshot.unsure) journal.say({ kind: 'taken', name })
    if (there.has(name) !== (snapshot.below === 'there') && snapshot.below !== 'unsure') {
      throw new Error(`${name}: on record ${there.has(name) ? '' : 'no more '}, and is to be ${snapshot.below}`)
    }
    if (snapshot.below === 'unsure' && !there.has(name)) journal.say({ kind: 'removed', name })
    if (snapshot.below === 'unsure' && there.has(name)) {
      await admin.deleteSnapshot({ pool: volume, name })
      journal.say({ kind: 'removed', name })
    }
    if (snapshot.below !== 'there') continue
    const content = blockFingerprints(`/dev/vgl/${name}`, blockBytes)
    if (snapshot.content === undefined) journal.sayContent(name, content)
    else if (snapshot.content.join() !== content.join()) throw new Error(`what is below ${name} has changed`)
  }
  for (const name of there) if (!journal.snapshots.has(name)) throw new Error(`nobody has taken ${name}`)
  const made = lvm('lvs', '--noheadings', '-o', 'lv_name,lv_tags', 'vgl').split('\n')
  const tagged = made.filter((each) => each.includes('deltamapper_')).map((each) => each.trim().split(/\s+/)[0])
  const due = [...journal.snapshots].filter(([, { below }]) => below === 'there').map(([name]) => name)
  if (tagged.sort().join() !== due.sort().join())
    throw new Error(`LVM has ${tagged.join()}, and should have ${due.join()}`)
  const all = made.map((each) => each.trim().split(/\s+/)[0]).filter((each) => each !== '')
  if (all.length !== due.length + 1) throw new Error(`LVM has ${all.join()}: something is left`)
}

async function delta(base: string, target: string) {
  const client = agent.client()
  try {
    return await collectExtents(
      await client.delta({ baseSnapshotId: `${volume}/${base}`, targetSnapshotId: `${volume}/${target}` })
    )
  } finally {
    client.close()
  }
}

/** Everything that differs is in the answer, for each pair. @throws where it is not */
async function checkAnswers() {
  const found = { answers: 0, differing: 0, refused: 0 }
  const all = [...journal.snapshots].slice(-COMPARED).map(([name, { line, content }]) => {
    if (content === undefined) throw new Error(`nobody has looked into ${name}`)
    return { name, line, content }
  })
  for (const [index, { name: target, content, line }] of all.entries()) {
    for (const from of all.slice(0, index)) {
      const base = from.name
      const what = `${base} to ${target}`
      if (from.line !== line) {
        const thrown: unknown = await delta(base, target).catch((error: unknown) => error)
        if (!(thrown instanceof DeltamapperError) || thrown.status !== 'FAILED_PRECONDITION') {
          throw new Error(`${what} is not refused as void`, { cause: thrown })
        }
        found.refused++
        continue
      }
      const extents = await delta(base, target)
      for (const [block, is] of content.entries()) {
        if (is === from.content[block]) continue
        const at = block * blockBytes
        if (!extents.some(([offset, size]) => offset <= at && offset + size >= at + blockBytes)) {
          throw new Error(`block ${block} differs from ${what}, and is not in the answer`)
        }
        found.differing++
      }
      const bytes = extents.reduce((sum, [, size]) => sum + size, 0)
      if (bytes >= content.length * blockBytes) throw new Error(`${what}: everything`)
      found.answers++
    }
  }
  return found
}

/** Takes a snapshot, looks into it, and removes the oldest when there are many. @returns whether a person had to drop a metadata snapshot */
async function takeSnapshot(): Promise<boolean> {
  const name = `s${life}-${journal.snapshots.size}`
  let ambiguous = false
  journal.say({ kind: 'taking', name })
  const create = () => admin.createEraSnapshot({ volume, name, deadlineMs: 0 })
  await create().catch((error: unknown) => {
    // Killed within the message that takes one: whose it is cannot be proved, and it is left to a person, who is here.
    if (!(error instanceof DeltamapperError) || !/the metadata snapshot of .* is taken/.test(error.message)) throw error
    ambiguous = true
    sendMessage(volume, 'drop_metadata_snap')
    return create()
  })
  journal.say({ kind: 'taken', name })
  journal.sayContent(name, blockFingerprints(`/dev/vgl/${name}`, blockBytes))
  await removeOldest(MOST_LOWER)
  return ambiguous
}

/** @param keep so many are left */
async function removeOldest(keep: number): Promise<void> {
  const there = [...journal.snapshots].filter(([, { below }]) => below === 'there').map(([each]) => each)
  for (const name of there.slice(0, Math.max(0, there.length - keep))) {
    journal.say({ kind: 'removing', name })
    await admin.deleteSnapshot({ pool: volume, name })
    journal.say({ kind: 'removed', name })
  }
}

async function grow(): Promise<void> {
  const mebibytes = (await tracked()).sizeBytes / mebibyte
  if (mebibytes >= MOST_MEBIBYTES) return
  // LVM does not resize what has snapshots.
  await removeOldest(0)
  lvm('lvextend', '--size', `${mebibytes + 1}m`, 'vgl/data')
  await admin.growEra({ volume })
}

/** Keeps four writes under way to a few blocks, others every now and then. What it writes nobody has written before. */
const writeInFlight = `
const { open } = require('node:fs/promises')
const { constants } = require('node:fs')
const [, path, blocks, life] = process.argv
let hot = []
const move = () => (hot = Array.from({ length: 6 }, () => Math.floor(Math.random() * blocks)))
const lane = async (file, lane) => {
  const buffer = Buffer.from(new WebAssembly.Memory({ initial: 1 }).buffer, 0, 4096)
  for (let i = 1; ; i++) {
    for (const [at, number] of [i, lane, Number(life), process.pid].entries()) buffer.writeUInt32LE(number, 4 * at)
    await file.write(buffer, 0, 4096, hot[Math.floor(Math.random() * 6)] * ${blockBytes} + lane * 4096)
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 8))
  }
}
;(async () => {
  const file = await open(path, constants.O_WRONLY | constants.O_DIRECT)
  move()
  setInterval(move, 300)
  process.stdout.write('begun')
  await Promise.all([0, 1, 2, 3].map((each) => lane(file, each)))
})()`

async function startWriter(): Promise<ChildProcess> {
  const words = ['-e', writeInFlight, upper, String(WRITTEN_BLOCKS), String(life)]
  const writer = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(writer.stdout, 'data')
  return writer
}

// Nothing is said to be up between the start of a life in which the history begins anew and the activation that sees to it: the next life would
// not know. What an interrupted boot does to a volume that is not active leaves no trace, and whoever lets things be written to it has to know
// (docs/tracked-volumes.md).
const beside = life % 5 === 4 && !isLast
// In most lives somebody vouches for what was booted since the crash, as nothing was: what was written before it is not to be lost.
const trustRestarts = life % 3 !== 1 || isLast
const isVoid = !isFirst && (beside || !trustRestarts)
if (beside) writeTo(lower)
if (!isVoid) console.log('up')
const agent = await LiveAgent.start({ config: { catalog, walkers: 1, drainSeconds: 1, era: { trustRestarts } } })
const admin = connectAdmin(agent.address)
if (isFirst) {
  const { line } = await admin.attachEra({
    ...{ name: volume, dataDevice: lower, metadataDevice: metadata, blockBytes },
    ...{ snapshotSize: SNAPSHOT_SIZE, allowLossyKernel: false }
  })
  journal.say({ kind: 'line', line })
} else await takeUp(isVoid)
if (isVoid) console.log('up')
const settled = agent.log.some(({ msg }) => msg === 'recovered what was interrupted')
await checkSnapshots()
// What was written last, by whoever was killed, belongs to what differs from the last snapshot before.
const ambiguous = await takeSnapshot()
journal.say({ kind: 'checked', life, ...(await checkAnswers()), settled, ambiguous })
if (isLast) {
  await removeOldest(0)
  await checkAnswers()
  await admin.detachEra({ volume })
  admin.close()
  if ((await agent.stop()) !== 0) throw new Error(`the agent did not end in order: ${agent.stderr}`)
  await deviceMapper.close()
  process.exit(0)
}
writeTo(upper)
let writer = await startWriter()
console.log('busy')
for (;;) {
  await sleep(random.integer(0, 300))
  if (random.chance(0.15)) {
    writer.kill('SIGKILL')
    await once(writer, 'exit')
    await admin.deactivateEra({ volume, atShutdown: false })
    if (existsSync(upper)) throw new Error('it is deactivated, and still there')
    const { line } = await admin.activateEra({ volume, startOver: false })
    if (line !== journal.line) throw new Error('another line, and nobody has written beside')
    writer = await startWriter()
  } else if (random.chance(0.3)) await grow()
  else await takeSnapshot()
}
