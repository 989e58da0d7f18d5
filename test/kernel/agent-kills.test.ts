/**
 * The agent is killed at random moments, while it starts, while streams run, while snapshots are taken and the catalog is written. After the
 * next start the catalog opens and agrees with the kernel, every fingerprint that was promised is in it, no metadata snapshot of ours is
 * left, a foreign one is as it was, and the next delta is right. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/agent-kills.test.ts
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, constants, mkdirSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { inspect } from 'node:util'
import test from 'ava'
import { openDatabase } from '../../src/agent/catalog/database.ts'
import type { LeaseRecord } from '../../src/agent/catalog/lease.ts'
import { findLease } from '../../src/agent/catalog/lease-records.ts'
import { findServed } from '../../src/agent/catalog/served-targets.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { type AdminClient, connectAdmin } from '../../src/grpc/admin-client.ts'
import type { SnapshotMetadataClient } from '../../src/grpc/client.ts'
import type { Random } from '../support/random.ts'
import { AnswerCheck, answerTo, ask, failure } from './ask.ts'
import { createLinear, run } from './dmsetup.ts'
import { labRun } from './lab-run.ts'
import { LiveAgent, processes } from './live-agent.ts'
import { blockBytes, expectedAllocated, expectedDelta, RawPool, type RawThin } from './raw-pool.ts'

const mebibyte = 2 ** 20
const STREAMS = 6
const VOLUME_BLOCKS = 512
/** The oldest snapshots go when there are more. */
const MOST_SNAPSHOTS = 6
/** Of a whole life, in milliseconds; most of it is the start. */
const LONGEST_LIFE = 2000

const { random, count: kills, again } = labRun(3)
const catalog = join('/run/mnt/agent', 'catalog.sqlite')
const holder = fileURLToPath(new URL('lease-holder.ts', import.meta.url))

/** Run with dmsetup: its snapshots are taken here, and served from their tables. */
let raw: RawPool
/** The agent's own pool. Its snapshots by name, the volume's content when each was taken. */
const owned = new Map<string, RawThin>()
let ownedVolume: RawThin
/** What the agent was asked to do there and had not said about when it was killed. */
const unsettled = new Set<string>()
/** Handles of which a message has arrived: their fingerprints are promised to be on record. */
const promised = new Set<string>()
let taken = 0

let agent: LiveAgent
let admin: AdminClient

test.before(async () => {
  // What the agent has to know again is on a file system of the lab's own disk, as it would be on a node.
  const disk = createLinear('catalog', '/dev/ubda', 0, 64 * mebibyte)
  run('mkfs.ext4', ['-q', disk])
  mkdirSync('/run/mnt/agent', { recursive: true })
  run('mount', ['-t', 'ext4', disk, '/run/mnt/agent'])
  raw = makePool('raw', 1)
  // Of this one somebody else holds the metadata snapshot.
  makePool('foreign', 2)
  run('dmsetup', ['message', 'foreign', '0', 'reserve_metadata_snap'])

  agent = await startAgent()
  admin = connectAdmin(agent.address)
  const metadataDevice = createLinear('own-m', '/dev/ubda', 3 * 64 * mebibyte, 4 * mebibyte)
  const dataDevice = createLinear('own-d', '/dev/ubda', 3 * 64 * mebibyte + 4 * mebibyte, 56 * mebibyte)
  await admin.createPool({ name: 'own', metadataDevice, dataDevice, blockBytes, whenFull: 'error' })
  await admin.createVolume({
    ...{ pool: 'own', name: 'volume', inactive: false },
    sizeBytes: VOLUME_BLOCKS * blockBytes
  })
  ownedVolume = { thinId: 0, blocks: VOLUME_BLOCKS, content: new Map() }
  await agent.kill()
})
test.after.always(async () => {
  if (agent.child.exitCode === null) await agent.kill()
})

const startAgent = () => LiveAgent.start({ config: { catalog } })

function makePool(name: string, slot: number): RawPool {
  const place = { offsetBytes: slot * 64 * mebibyte, metadataBytes: 4 * mebibyte, dataBytes: 56 * mebibyte }
  const pool = new RawPool({ name, ...place })
  pool.createVolume(`${name}-volume`, 0, VOLUME_BLOCKS)
  for (let each = 0; each < 3; each++) writeAndSnapshot(pool)
  return pool
}

/** Another snapshot of a pool's volume, which has been written to since the last. */
function writeAndSnapshot(pool: RawPool): void {
  const volume = `${pool.name}-volume`
  for (let write = 0; write < 8; write++) pool.write(volume, random.integer(0, VOLUME_BLOCKS - 4), random.integer(1, 4))
  if (random.chance(0.3)) pool.discard(volume, random.integer(0, VOLUME_BLOCKS - 8), random.integer(1, 8))
  taken++
  pool.snapshot(volume, `${pool.name}-${taken}`, taken)
  const [oldest] = snapshotsOf(pool)
  if (snapshotsOf(pool).length > MOST_SNAPSHOTS) pool.remove(oldest)
}

/** Oldest first. */
function snapshotsOf(pool: RawPool): string[] {
  return [...pool.thins.keys()].filter((name) => pool.thin(name).isSnapshot)
}

/** The block of the metadata snapshot that a pool holds; `-` for none. */
function heldRoot(pool: string): string {
  return run('dmsetup', ['status', '--noflush', pool]).split(' ')[6]
}

function releaseByHand(pool: string): void {
  if (heldRoot(pool) !== '-') run('dmsetup', ['message', pool, '0', 'release_metadata_snap'])
}

/** Two snapshots of one pool, and the answer that is due; with luck only one. */
function question(own: Random) {
  const inOwned = owned.size > 1 && own.chance(0.3)
  const all = inOwned
    ? [...owned].map(([name, thin]) => ({ handle: `own/${name}`, thin }))
    : snapshotsOf(raw).map((name) => ({ handle: raw.handle(name), thin: raw.thin(name) }))
  const target = own.integer(1, all.length - 1)
  const { handle, thin } = all[target]
  if (own.chance(0.3)) return { base: undefined, target: handle, due: expectedAllocated(thin) }
  const base = all[own.integer(0, target - 1)]
  return { base: base.handle, target: handle, due: expectedDelta(base.thin, thin) }
}

/** Asks one question after the other, until the agent is gone. @throws when an answer is wrong, or refused while it lives */
async function keepAsking(own: Random, client: SnapshotMetadataClient, isOver: () => boolean): Promise<number> {
  for (let answered = 0; ; answered++) {
    const { base, target, due } = question(own)
    const check = new AnswerCheck(due)
    try {
      const options = { maxResults: own.pick([0, 1, 5]) }
      const { batches } = await ask(client, { target, ...(base !== undefined && { base }) }, options)
      promised.add(target)
      for await (const { count, offsets, sizes } of batches) {
        for (let i = 0; i < count; i++) check.take(offsets[i], sizes[i])
      }
      check.end()
    } catch (error) {
      if (isOver()) return answered
      // What was removed while it was asked about.
      const gone = ['DM_SNAPSHOT_NOT_FOUND', 'DM_BASE_LOST', 'DM_SNAPSHOT_CHANGED', 'DM_READ_FAILED']
      if (
        error instanceof DeltamapperError &&
        (gone.includes(error.code) || error.code.startsWith('DM_BASE_RECORD_')) &&
        !exists(base, target)
      )
        continue
      throw new Error(`${base ?? 'all'} to ${target}`, { cause: error })
    }
  }
}

function exists(...handles: (string | undefined)[]): boolean {
  return handles.every((handle) => {
    const [pool = '', name = ''] = handle?.split('/') ?? []
    return handle === undefined || (pool === 'own' ? owned.has(name) : raw.thins.has(name))
  })
}

/** Writes to the agent's own volume, has snapshots of it taken and the oldest deleted, until the agent is gone. */
async function keepOrdering(own: Random, isOver: () => boolean): Promise<void> {
  const device = openSync('/dev/mapper/own-volume', constants.O_WRONLY | constants.O_SYNC)
  const file = {
    write: (block: number) => writeSync(device, new Uint8Array(4096).fill(1), 0, 4096, block * blockBytes)
  }
  try {
    for (;;) {
      for (let write = 0; write < 4; write++) {
        const block = own.integer(0, VOLUME_BLOCKS - 1)
        file.write(block)
        ownedVolume.content.set(block, ++taken)
      }
      const name = `s${++taken}`
      unsettled.add(name)
      const thin = { ...ownedVolume, content: new Map(ownedVolume.content) }
      ordered.set(name, thin)
      await admin.createSnapshot({ pool: 'own', origin: 'volume', name })
      unsettled.delete(name)
      owned.set(name, thin)
      const [oldest] = owned.keys()
      if (owned.size <= MOST_SNAPSHOTS) continue
      unsettled.add(oldest)
      owned.delete(oldest)
      await admin.deleteSnapshot({ pool: 'own', name: oldest })
      unsettled.delete(oldest)
    }
  } catch (error) {
    if (!isOver()) throw error
  } finally {
    closeSync(device)
  }
}

/** What each snapshot of the agent's own pool holds if there is one of that name. */
const ordered = new Map<string, RawThin>()

/** Takes leases of the raw pool's metadata snapshot with the agent's catalog, and is killed while it holds one, with its keeper. */
async function leaveLease(): Promise<void> {
  const words = [holder, catalog, 'raw', '3000', String(random.uint32())]
  const child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'ignore'] })
  let said = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (said += text))
  while (!said.includes('held') && child.exitCode === null) await sleep(5)
  await sleep(random.integer(0, 100))
  // Both at once: stopped, it does not see its keeper's end, nor does the keeper see its.
  child.kill('SIGSTOP')
  for (const { pid, words } of processes()) if (words.includes('lease-keeper')) process.kill(pid, 'SIGKILL')
  child.kill('SIGKILL')
  if (child.signalCode === null && child.exitCode === null) await once(child, 'exit')
}

/** What is true of the catalog while no agent has it open. @returns the state of the lease that is on record, if one is */
function checkCatalog(): LeaseRecord['state'] | undefined {
  const database = openDatabase(catalog)
  try {
    for (const handle of promised) {
      const recorded = findServed(database, { handle, identity: '' })
      if (recorded.length === 0) throw new Error(`${handle} was served, and is not on record`)
    }
    return findLease(database, 'dm-name:raw')?.state
  } finally {
    database.close()
  }
}

/** Whoever was killed within one of the two messages has left a lease of which nobody knows whose it is. */
function isAmbiguous(lease: LeaseRecord['state'] | undefined): boolean {
  return lease === 'reserving' || lease === 'releasing'
}

const QUESTIONS = 3

/** What is true of an agent that has just started. @returns how many questions it has answered */
async function checkAgent(): Promise<number> {
  const { findings } = await admin.reconcile({ pool: '' })
  const about = findings.filter(({ pool, kind }) => pool === 'own' || kind !== 'pool-unknown')
  if (about.length > 0) throw new Error(about.map(({ what }) => what).join('; '))
  const { snapshots } = await admin.listSnapshots({ pool: 'own' })
  const names = new Set(snapshots.map(({ name }) => name))
  for (const name of owned.keys()) if (!names.has(name)) throw new Error(`own/${name} was taken, and is not there`)
  for (const name of names) {
    if (!owned.has(name) && !unsettled.has(name)) throw new Error(`own/${name} was deleted, and is there`)
    owned.set(name, ordered.get(name)!)
  }
  for (const name of [...owned.keys()]) if (!names.has(name)) owned.delete(name)
  unsettled.clear()
  const inKernel = run('dmsetup', ['ls']).match(/^own-s\d+/gm) ?? []
  if (inKernel.some((each) => !names.has(each.slice(4)))) throw new Error(`active: ${inKernel.join()}`)
  const client = agent.client()
  for (let each = 0; each < QUESTIONS; each++) {
    const { base, target, due } = question(random)
    const got = await answerTo(client, { target, ...(base !== undefined && { base }) })
    if (JSON.stringify(got) !== JSON.stringify(due)) throw new Error(`${base} to ${target}: ${JSON.stringify(got)}`)
    promised.add(target)
  }
  client.close()
  return QUESTIONS
}

/** A snapshot that was served is written to while no agent looks. */
async function tamper(): Promise<string | undefined> {
  // The oldest may be removed when the next one is taken.
  const [, ...lasting] = snapshotsOf(raw)
  const name = lasting.findLast((each) => promised.has(raw.handle(each)))
  if (name === undefined) return undefined
  raw.deactivate(name)
  raw.activate(name)
  raw.write(name, random.integer(0, VOLUME_BLOCKS - 1))
  raw.deactivate(name)
  raw.activate(name, { readOnly: true })
  return name
}

const helpers = () => processes().filter(({ words }) => /device-mapper-worker|lease-keeper/.test(words))

/** What an agent has started does not outlive it for long. */
async function helpersGone(): Promise<void> {
  for (let look = 0; helpers().length > 0; look++) {
    if (look === 500) throw new Error(`left behind: ${JSON.stringify(helpers())}`)
    await sleep(20)
  }
}

test('killed at any moment', async (t) => {
  t.timeout(3 * 3_600_000)
  const foreignRoot = heldRoot('foreign')
  t.regex(foreignRoot, /^\d+$/)
  let answers = 0
  let startsKilled = 0
  const leasesLeft = new Map<string, number>()
  let killed = 0
  for (let round = 1; killed < kills; round++) {
    const own = random.fork()
    // (Of everything there is some in a few rounds, too.)
    const special = round === 2
    try {
      if (special || own.chance(0.2)) await leaveLease()
      const lease = checkCatalog()
      let ambiguous = isAmbiguous(lease)
      if (lease !== undefined) leasesLeft.set(lease, (leasesLeft.get(lease) ?? 0) + 1)
      const tampered = (special || own.chance(0.2)) && promised.size > 0 ? await tamper() : undefined
      // While it starts, or just after.
      for (; killed < kills - 1 && own.chance(0.5); killed++) {
        agent = LiveAgent.launch({ config: { catalog } })
        await sleep(own.integer(0, 3000))
        await agent.kill()
        await helpersGone()
        startsKilled++
        ambiguous ||= isAmbiguous(checkCatalog())
      }
      agent = await startAgent()
      admin = connectAdmin(agent.address)
      // It cannot be told from somebody else's, and is left to a person.
      if (ambiguous) releaseByHand('raw')
      // A slow machine's agent listens before it has looked after what was left behind.
      const held = () => ['raw', 'own'].filter((pool) => heldRoot(pool) !== '-')
      for (let look = 0; held().length > 0 && look < 1000; look++) await sleep(50)
      t.deepEqual(held(), [])
      t.is(heldRoot('foreign'), foreignRoot)
      if (tampered !== undefined) {
        writeAndSnapshot(raw)
        const target = raw.handle(snapshotsOf(raw).at(-1) ?? '')
        const client = agent.client()
        t.is((await failure(answerTo(client, { base: raw.handle(tampered), target }))).code, 'DM_BASE_CHANGED')
        raw.remove(tampered)
        client.close()
      }
      answers += await checkAgent()

      let over = false
      const isOver = () => over
      const asking = Array.from({ length: STREAMS }, () => keepAsking(own.fork(), agent.client(), isOver))
      const ordering = keepOrdering(own.fork(), isOver)
      const moment = own.integer(0, LONGEST_LIFE)
      for (const end = performance.now() + moment; performance.now() < end; await sleep(own.integer(0, 400))) {
        // (What stands still while a snapshot is taken here is this process, not the agent.)
        writeAndSnapshot(raw)
      }
      over = true
      await agent.kill()
      admin.close()
      await ordering
      answers += (await Promise.all(asking)).reduce((sum, each) => sum + each, 0)
      await helpersGone()
      killed++
    } catch (error) {
      // (ava shows no causes.)
      throw new Error(`kill ${killed + 1} of ${again}: ${inspect(error)}`, { cause: error })
    }
    if (round % 10 === 0) console.log(`killed ${killed} times, ${answers} answers`)
  }
  t.is(killed, kills)
  t.log(`${killed} kills, ${startsKilled} of them while it started: ${answers} answers, ${promised.size} promises`)
  t.log('leases left behind, by what was on record:', Object.fromEntries(leasesLeft))
})

test('and one that is stopped leaves nothing either', async (t) => {
  agent = await startAgent()
  t.is(await agent.stop(), 0)
  t.deepEqual(helpers(), [])
  t.is(checkCatalog(), undefined)
  run('umount', ['/run/mnt/agent'])
})
