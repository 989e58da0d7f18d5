/**
 * One life of a kernel that is going to be killed: started on a disk that an earlier life has left behind, it looks whether everything is
 * as it has to be, and then keeps agent, pools and leases busy until it is gone. Runs inside the kernel lab, started by
 * test/lab/kernel-kills.ts:
 *
 *   node test/kernel/kernel-life.ts --journal FILE --seed S --life N [--last]
 *
 * The journal is a file of the host's, which is there when the kernel is not any more. On the lab's disk are an ext4 with the agent's
 * catalog; a pool run with dmsetup; one of which somebody else holds the metadata snapshot; and the agent's own pool.
 *
 * Says `up` when the pools are active and the agent is about to start, and `busy` when everything was right and it is at work, or holds its
 * first lease. The last life ends instead.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { closeSync, constants, mkdirSync, openSync, readSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { openDatabase } from '../../src/agent/catalog/database.ts'
import { findLease, listLeases } from '../../src/agent/catalog/lease-records.ts'
import { findServed } from '../../src/agent/catalog/served-targets.ts'
import { withNote } from '../../src/agent/leases/release-note.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { type AdminClient, connectAdmin } from '../../src/grpc/admin-client.ts'
import type { SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { Random } from '../support/random.ts'
import { AnswerCheck, ask, type Question } from './ask.ts'
import { alignedBuffer, createLinear, run } from './dmsetup.ts'
import { Journal, type LeaseFound, type PoolName } from './kernel-life-journal.ts'
import { lifeArguments } from './life-arguments.ts'
import { LiveAgent } from './live-agent.ts'
import { blockBytes, type Content, expectedAllocated, expectedDelta, RawPool } from './raw-pool.ts'

const mebibyte = 2 ** 20
const PART_BYTES = 64 * mebibyte
const METADATA_BYTES = 4 * mebibyte
const METADATA_BLOCK_BYTES = 4096
const VOLUME_BLOCKS = 256
/** The oldest snapshots of a pool go when there are more. */
const MOST_SNAPSHOTS = 5
const STREAMS = 4
/** How long the metadata snapshot is held at a time, at most, in milliseconds. */
const LONGEST_LEASE = 4000
/** What a life counts (writes, thin ids, of which there are 2^24) it counts from its own hundred thousand on. */
const COUNTS_PER_LIFE = 100_000

const folder = '/run/mnt/agent'
const catalog = `${folder}/catalog.sqlite`
const holder = fileURLToPath(new URL('lease-holder.ts', import.meta.url))

const { journalPath, life, isLast, random } = lifeArguments()
const journal = new Journal(journalPath, VOLUME_BLOCKS)
let counted = life * COUNTS_PER_LIFE

const rawPool = (name: string, part: number) =>
  new RawPool(
    {
      ...{ name, offsetBytes: part * PART_BYTES, metadataBytes: METADATA_BYTES },
      ...{ dataBytes: PART_BYTES - METADATA_BYTES, writesBefore: counted }
    },
    { fresh: journal.setUp === undefined }
  )
const disk = createLinear('catalog', '/dev/ubda', 0, PART_BYTES)
if (journal.setUp === undefined) run('mkfs.ext4', ['-q', disk])
mkdirSync(folder, { recursive: true })
run('mount', ['-t', 'ext4', disk, folder])
/** Its snapshots are taken here, and served from their tables. */
const raw = rawPool('raw', 1)
/** Of this one somebody else holds the metadata snapshot. */
const foreign = rawPool('foreign', 2)
const ownMetadata = createLinear('own-m', '/dev/ubda', 3 * PART_BYTES, METADATA_BYTES)
const ownData = createLinear('own-d', '/dev/ubda', 3 * PART_BYTES + METADATA_BYTES, PART_BYTES - METADATA_BYTES)
/** What the agent's own volume holds. */
let ownContent: Content = new Map()
const block = alignedBuffer(blockBytes)

let agent: LiveAgent
let admin: AdminClient

async function startAgent(): Promise<void> {
  agent = await LiveAgent.start({ config: { catalog } })
  admin = connectAdmin(agent.address)
}

async function stopAgent(): Promise<void> {
  admin.close()
  const status = await agent.stop()
  if (status !== 0) throw new Error(`the agent ended with status ${status}: ${agent.stderr}`)
}

async function setUp(): Promise<void> {
  for (const pool of [raw, foreign]) {
    pool.createVolume(`${pool.name}-volume`, 0, VOLUME_BLOCKS)
    pool.write(`${pool.name}-volume`, 0, 100)
  }
  writeAndSnapshot(random)
  foreign.snapshot('foreign-volume', 'foreign-snapshot', 1)
  run('dmsetup', ['message', 'foreign', '0', 'reserve_metadata_snap'])
  await startAgent()
  // At the start the agent looks at all devices, one after the other, and has each for a moment: on a busy machine, for seconds.
  while (!agent.log.some(({ msg }) => msg === 'inventory')) await sleep(50)
  await admin.createPool({
    name: 'own',
    metadataDevice: ownMetadata,
    dataDevice: ownData,
    blockBytes,
    whenFull: 'error'
  })
  await admin.createVolume({ pool: 'own', name: 'volume', sizeBytes: VOLUME_BLOCKS * blockBytes, inactive: false })
  await stopAgent()
  journal.say({ kind: 'set up', foreignRoot: heldRoot('foreign'), foreignContent: foreignContent() })
}

/** Takes the raw pools into use again, as they are on the disk. @throws where a snapshot is lost, or is not what was written */
function takeUp(): void {
  for (const pool of [raw, foreign]) {
    const volume = `${pool.name}-volume`
    pool.thins.set(volume, { thinId: 0, blocks: VOLUME_BLOCKS, content: new Map() })
    pool.activate(volume)
    // What was written last may be lost, or not: nobody had asked for it to be on the disk.
    pool.thins.set(volume, { thinId: 0, blocks: VOLUME_BLOCKS, content: pool.read(volume) })
  }
  for (const [name, snapshot] of journal.of('raw')) {
    raw.thins.set(name, snapshot)
    try {
      raw.activate(name, { readOnly: true })
    } catch (error) {
      if (!snapshot.unsure) throw error
      raw.thins.delete(name)
      journal.say({ kind: 'removed', pool: 'raw', name })
      continue
    }
    expectSame(`raw/${name}`, raw.read(name), snapshot.content)
    journal.say({ kind: 'taken', pool: 'raw', name })
  }
  foreign.write('foreign-volume', random.integer(0, VOLUME_BLOCKS - 9), 8)
}

function expectSame(what: string, found: Content, due: Content): void {
  const text = (content: Content) => JSON.stringify([...content].sort(([a], [b]) => a - b))
  if (text(found) !== text(due)) throw new Error(`${what} holds ${text(found)}, and not ${text(due)}`)
}

/** The block of the metadata snapshot that a pool holds; `-` for none. */
function heldRoot(pool: string): string {
  return run('dmsetup', ['status', '--noflush', pool]).split(' ')[6] ?? ''
}

/** What is in the block that somebody else holds. */
function foreignContent(): string {
  const file = openSync(foreign.metadata, constants.O_RDONLY | constants.O_DIRECT)
  readSync(file, block, 0, METADATA_BLOCK_BYTES, Number(heldRoot('foreign')) * METADATA_BLOCK_BYTES)
  closeSync(file)
  return createHash('sha256').update(block.subarray(0, METADATA_BLOCK_BYTES)).digest('hex')
}

/** What is true of the catalog before an agent has it open. @returns what it says of a lease of the raw pool */
async function checkCatalog(): Promise<LeaseFound> {
  const database = openDatabase(catalog)
  try {
    for (const handle of journal.served) {
      const recorded = findServed(database, { handle, identity: '' })
      if (recorded.length === 0) throw new Error(`${handle} was served, and is not on record`)
    }
    const record = findLease(database, 'dm-name:raw')
    return record === undefined ? 'none' : (await withNote(record, catalog)).state
  } finally {
    database.close()
  }
}

/** What is true once an agent has started. @returns whether a lease could not be told from somebody else's */
function checkLeases(lease: LeaseFound): boolean {
  const { foreignRoot, foreignContent: content } = journal.setUp!
  if (heldRoot('foreign') !== foreignRoot || foreignContent() !== content)
    throw new Error('a foreign lease was touched')
  if (heldRoot('raw') === '-') return false
  if (lease !== 'reserving' && lease !== 'releasing') throw new Error(`a lease is left; on record it was ${lease}`)
  // Killed within one of the two messages: it is left to a person, who is here.
  run('dmsetup', ['message', 'raw', '0', 'release_metadata_snap'])
  return true
}

/** The agent's own pool: catalog and kernel agree, nothing is lost, and snapshots hold what was written. */
async function checkOwned(): Promise<void> {
  await admin.activatePool({ pool: 'own', withVolumes: true })
  if (heldRoot('own') !== '-') throw new Error('a metadata snapshot of own is held')
  const { findings } = await admin.reconcile({ pool: 'own' })
  if (findings.length > 0) throw new Error(findings.map(({ what }) => what).join('; '))
  const { snapshots } = await admin.listSnapshots({ pool: 'own' })
  const names = new Set(snapshots.map(({ name }) => name))
  for (const [name, { unsure, content }] of journal.of('own')) {
    if (names.delete(name)) {
      const { device } = await admin.activateVolume({ pool: 'own', name, writable: false })
      expectSame(`own/${name}`, readOwned(device?.path ?? ''), content)
      await admin.deactivateVolume({ pool: 'own', name })
      journal.say({ kind: 'taken', pool: 'own', name })
    } else if (unsure) journal.say({ kind: 'removed', pool: 'own', name })
    else throw new Error(`own/${name} was taken, and is not there`)
  }
  if (names.size > 0) throw new Error(`nobody has taken own/${[...names].join()}, or they were deleted`)
  ownContent = readOwned('/dev/mapper/own-volume')
}

/** The numbers of the writes that the blocks of a device hold. */
function readOwned(path: string): Content {
  const file = openSync(path, constants.O_RDONLY | constants.O_DIRECT)
  const numbers = new Float64Array(block.buffer, 0, 1)
  const found: Content = new Map()
  for (let at = 0; at < VOLUME_BLOCKS; at++) {
    readSync(file, block, 0, 4096, at * blockBytes)
    if (numbers[0] !== 0) found.set(at, numbers[0])
  }
  closeSync(file)
  return found
}

/** Snapshots that there are for certain, oldest first. */
function settled(pool: PoolName) {
  return [...journal.of(pool)]
    .filter(([, { unsure }]) => !unsure)
    .map(([name, thin]) => ({ handle: `${pool}/${name}`, thin }))
}

/** Everything that can be asked of a pool, with the answers that are due. */
function questions(pool: PoolName): (Question & { due: AnswerCheck })[] {
  const all = settled(pool)
  return all.flatMap(({ handle: target, thin }, index) => [
    { target, due: new AnswerCheck(expectedAllocated(thin)) },
    ...all.slice(0, index).map((base) => ({
      ...{ base: base.handle, target },
      due: new AnswerCheck(expectedDelta(base.thin, thin))
    }))
  ])
}

/** @throws when the answer is not the one that is due */
async function check(client: SnapshotMetadataClient, question: Question, due: AnswerCheck, maxResults = 0) {
  const { batches } = await ask(client, question, { maxResults })
  if (!journal.served.has(question.target)) journal.say({ kind: 'served', handle: question.target })
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) due.take(offsets[i], sizes[i])
  }
  due.end()
}

async function checkAnswers(): Promise<number> {
  const client = agent.client()
  const all = [...questions('raw'), ...questions('own')]
  for (const { due, ...question } of all) {
    try {
      await check(client, question, due)
    } catch (error) {
      throw new Error(`${question.base ?? 'all'} to ${question.target}`, { cause: error })
    }
  }
  client.close()
  return all.length
}

// Until it is killed

async function keepAsking(own: Random): Promise<never> {
  const client = agent.client()
  for (;;) {
    const all = questions(own.chance(0.5) ? 'raw' : 'own')
    if (all.length === 0) {
      await sleep(20)
      continue
    }
    const { due, ...question } = own.pick(all)
    try {
      await check(client, question, due, own.pick([0, 1, 5]))
    } catch (error) {
      const there = (handle: string | undefined) =>
        handle === undefined || [...settled('raw'), ...settled('own')].some((each) => each.handle === handle)
      // What was removed while it was asked about.
      const gone = ['DM_SNAPSHOT_NOT_FOUND', 'DM_BASE_LOST', 'DM_SNAPSHOT_CHANGED', 'DM_READ_FAILED']
      const due =
        error instanceof DeltamapperError && (gone.includes(error.code) || error.code.startsWith('DM_BASE_RECORD_'))
      if (due && !(there(question.base) && there(question.target))) continue
      throw new Error(`${question.base ?? 'all'} to ${question.target}`, { cause: error })
    }
  }
}

/** Writes to the raw pool's volume, takes a snapshot of it, and removes the oldest when there are many. */
function writeAndSnapshot(own: Random): void {
  for (let write = 0; write < 6; write++) raw.write('raw-volume', own.integer(0, VOLUME_BLOCKS - 4), own.integer(1, 4))
  if (own.chance(0.3)) raw.discard('raw-volume', own.integer(0, VOLUME_BLOCKS - 8), own.integer(1, 8))
  const [thinId, name] = [++counted, `snapshot-${counted}`]
  journal.say({ kind: 'taking', pool: 'raw', name, thinId, content: [...raw.thin('raw-volume').content] })
  raw.snapshot('raw-volume', name, thinId)
  journal.say({ kind: 'taken', pool: 'raw', name })
  const [oldest = ''] = journal.of('raw').keys()
  if (journal.of('raw').size <= MOST_SNAPSHOTS) return
  journal.say({ kind: 'removing', pool: 'raw', name: oldest })
  raw.remove(oldest)
  journal.say({ kind: 'removed', pool: 'raw', name: oldest })
}

async function keepSnapshotting(own: Random): Promise<never> {
  for (;;) {
    writeAndSnapshot(own)
    await sleep(own.integer(0, 200))
  }
}

/** Writes to the agent's own volume, and has snapshots of it taken and deleted. */
async function keepOrdering(own: Random): Promise<never> {
  const file = openSync('/dev/mapper/own-volume', constants.O_WRONLY | constants.O_DIRECT | constants.O_SYNC)
  for (;;) {
    for (let write = 0; write < 4; write++) {
      const at = own.integer(0, VOLUME_BLOCKS - 1)
      new Float64Array(block.buffer, 0, blockBytes / 8).fill(++counted)
      writeSync(file, block, 0, blockBytes, at * blockBytes)
      ownContent.set(at, counted)
    }
    const name = `s${++counted}`
    journal.say({ kind: 'taking', pool: 'own', name, thinId: 0, content: [...ownContent] })
    await admin.createSnapshot({ pool: 'own', origin: 'volume', name })
    journal.say({ kind: 'taken', pool: 'own', name })
    const [oldest = ''] = journal.of('own').keys()
    if (journal.of('own').size <= MOST_SNAPSHOTS) continue
    journal.say({ kind: 'removing', pool: 'own', name: oldest })
    await admin.deleteSnapshot({ pool: 'own', name: oldest })
    journal.say({ kind: 'removed', pool: 'own', name: oldest })
  }
}

/** Takes leases of the raw pool's metadata snapshot with the agent's catalog, and gives them back. */
async function keepLeasing(own: Random): Promise<never> {
  const words = [holder, catalog, 'raw', String(LONGEST_LEASE), String(own.uint32())]
  const child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'] })
  child.stdout.once('data', () => console.log('busy'))
  child.stdout.resume()
  const status = await new Promise((resolve) => child.once('exit', resolve))
  throw new Error(`the lease holder ended (${String(status)})`)
}

if (journal.setUp === undefined) await setUp()
else takeUp()
const heldBefore = heldRoot('raw') !== '-'
const lease = await checkCatalog()
console.log('up')
await startAgent()
const ambiguous = checkLeases(lease)
await checkOwned()
const answers = await checkAnswers()
journal.say({ kind: 'checked', life, answers, lease, heldBefore, ambiguous })
if (isLast) {
  await stopAgent()
  const database = openDatabase(catalog)
  const left = listLeases(database)
  database.close()
  if (left.length > 0 && !ambiguous) throw new Error(`leases are left on record: ${JSON.stringify(left)}`)
  process.exit(0)
}
if (random.chance(0.5)) {
  await stopAgent()
  await Promise.all([keepLeasing(random.fork()), keepSnapshotting(random.fork())])
} else {
  console.log('busy')
  const asking = Array.from({ length: STREAMS }, () => keepAsking(random.fork()))
  await Promise.all([...asking, keepOrdering(random.fork()), keepSnapshotting(random.fork())])
}
