/**
 * Many streams at once, over two live pools, through a real agent: some slow, some cancelled, some with next to no time. No answer is
 * wrong, and when the last is over the agent holds nothing that it did not hold before the first. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/streams.test.ts
 */
import { closeSync, constants, openSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Client, credentials, type MethodDefinition } from '@grpc/grpc-js'
import test from 'ava'
import { openDatabase } from '../../src/agent/catalog/database.ts'
import { listLeases } from '../../src/agent/catalog/lease-records.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { BlockMetadataMessage, decodeBlockMetadata } from '../../src/grpc/block-metadata.ts'
import type { CallOptions, SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { getMetadataAllocated, getMetadataDelta } from '../../src/grpc/snapshot-metadata-methods.ts'
import type { Extent } from '../support/expected.ts'
import type { Random } from '../support/random.ts'
import { AnswerCheck, ask, type Question } from './ask.ts'
import { alignedBuffer, run } from './dmsetup.ts'
import { fragmentedPool, type FragmentedPool } from './fragmented-pool.ts'
import { labRun } from './lab-run.ts'
import { LiveAgent, type Usage } from './live-agent.ts'
import { createGroup, createPool, createSnapshot, createThin, lvm, prepareLvm } from './lvm-setup.ts'
import { blockBytes, type Content, expectedAllocated, expectedDelta, type RawThin } from './raw-pool.ts'

const mebibyte = 2 ** 20
const AT_ONCE = 32
const DEADLINE_MS = 50
/** An answer of 400 KB. */
const EXTENTS = 40_000
/** Of that, a client which has stopped reading is sent so much: its window, and 16 messages that grpc-js keeps. Bytes. */
const SMALL_WINDOW = 65_535

const { random, count: streams, again } = labRun(48)
const catalog = '/run/tmp/streams-catalog'

interface AnsweredQuestion extends Question {
  /** The complete answer from offset 0, from what was done to the pool. */
  extents: readonly Extent[]
  sizeBytes: number
}

/** What becomes of a stream. */
const fates = ['read', 'slow', 'stopped', 'left', 'cancelled', 'disconnected', 'deadline'] as const

type Fate = (typeof fates)[number]

const counts = new Map<string, number>()
const counted = (what: string) => counts.set(what, (counts.get(what) ?? 0) + 1)

let agent: LiveAgent
let questions: AnsweredQuestion[]
let quiet: Usage

test.before(async () => {
  prepareLvm()
  run('losetup', ['--offset', String(64 * mebibyte), '/dev/loop0', '/dev/ubda'])
  questions = [...questionsOf(await fragmentedPool('frag', 0, EXTENTS)), ...lvmQuestions()]
  agent = await LiveAgent.start({ config: { catalog } })
})
test.after.always(async () => {
  if (agent.child.exitCode === null) await agent.kill()
})

/** Every snapshot, and every pair in order, of some that were taken one after the other. */
function* pairs(source: string, snapshots: ReadonlyMap<string, RawThin>): Generator<AnsweredQuestion> {
  const names = [...snapshots.keys()]
  for (const [index, name] of names.entries()) {
    const [handle, target] = [`${source}/${name}`, snapshots.get(name)!]
    const sizeBytes = target.blocks * blockBytes
    yield { target: handle, extents: expectedAllocated(target), sizeBytes }
    for (const base of names.slice(0, index)) {
      const extents = expectedDelta(snapshots.get(base)!, target)
      yield { base: `${source}/${base}`, target: handle, extents, sizeBytes }
    }
  }
}

function questionsOf({ name, snapshots }: FragmentedPool): AnsweredQuestion[] {
  return [...pairs(name, snapshots)]
}

/** The other pool is LVM's, its snapshots are not active: each call has to ask LVM what they are. */
function lvmQuestions(): AnsweredQuestion[] {
  createGroup('streams', '/dev/loop0')
  createPool('streams', 'pool', 64)
  const volume = createThin('streams', 'pool', 'volume', 64)
  const blocks = (64 * mebibyte) / blockBytes
  const file = openSync(volume, constants.O_WRONLY | constants.O_DIRECT)
  const piece = alignedBuffer(4 * blockBytes)
  const content: Content = new Map()
  const snapshots = new Map<string, RawThin>()
  for (const [index, name] of ['monday', 'tuesday', 'wednesday'].entries()) {
    for (let write = 100 * index; write < 100 * (index + 1); write++) {
      const [first, length] = [random.integer(0, blocks - 4), random.integer(1, 4)]
      writeSync(file, piece, 0, length * blockBytes, first * blockBytes)
      for (let block = first; block < first + length; block++) content.set(block, write)
    }
    createSnapshot('streams', 'volume', name)
    snapshots.set(name, { thinId: 0, blocks, content: new Map(content) })
  }
  closeSync(file)
  return [...pairs('streams', snapshots)]
}

/** The messages of an answer as grpc-js alone takes them: over a connection of its own, with little room for what is not read. */
async function* stinted({ base, target }: Question, { startingOffset = 0, maxResults = 0 }: CallOptions) {
  const client = new Client(agent.address.replace('unix://', 'unix:'), credentials.createInsecure(), {
    'grpc-node.flow_control_window': SMALL_WINDOW,
    'grpc.use_local_subchannel_pool': 1
  })
  const numbers = { startingOffset: BigInt(startingOffset), maxResults }
  const call =
    base === undefined
      ? streamOf(client, getMetadataAllocated, { snapshotId: target, ...numbers })
      : streamOf(client, getMetadataDelta, { baseSnapshotId: base, targetSnapshotId: target, ...numbers })
  const message = new BlockMetadataMessage()
  try {
    for await (const bytes of call) {
      decodeBlockMetadata(bytes as Uint8Array, message)
      yield message
    }
  } finally {
    call.cancel()
    client.close()
  }
}

function streamOf<R>(client: Client, method: MethodDefinition<R, Uint8Array>, request: R) {
  return client.makeServerStreamRequest(method.path, method.requestSerialize, method.responseDeserialize, request)
}

/** One stream, whatever becomes of it. @throws when anything is not as it should be */
async function stream(own: Random, shared: SnapshotMetadataClient): Promise<void> {
  const question = own.pick(questions)
  const fate: Fate = own.pick(fates)
  const startingOffset = own.chance(0.4)
    ? 0
    : own.pick([own.integer(0, question.sizeBytes), own.integer(0, question.sizeBytes / 512) * 512, question.sizeBytes])
  // (Small messages of a long answer take long; of a short one they can be as small as can be.)
  const maxResults = own.pick(question.extents.length > 1000 ? [0, 0, 500, 3000, 100_000] : [0, 1, 2, 7])
  const client = fate === 'disconnected' || own.chance(0.2) ? agent.client() : shared
  const cancel = new AbortController()
  const options: CallOptions = {
    startingOffset,
    maxResults,
    signal: cancel.signal,
    ...(fate === 'deadline' && { deadlineMs: DEADLINE_MS })
  }
  const check = new AnswerCheck(question.extents, startingOffset)
  const end = fate === 'cancelled' ? () => cancel.abort() : fate === 'disconnected' ? () => client.close() : undefined
  const timer = end && setTimeout(end, own.integer(0, 1500))
  const leaveAfter = own.integer(0, 20)
  let batchesSeen = 0
  try {
    const stopped = fate === 'stopped'
    const answer = stopped ? undefined : await ask(client, question, options)
    const capacityBytes = answer?.capacityBytes ?? question.sizeBytes
    if (capacityBytes !== question.sizeBytes) throw new Error(`the capacity is said to be ${capacityBytes} bytes`)
    for await (const { count, offsets, sizes } of answer?.batches ?? stinted(question, options)) {
      if (maxResults > 0 && count > maxResults) throw new Error(`a message has ${count} extents`)
      for (let i = 0; i < count; i++) check.take(offsets[i], sizes[i])
      batchesSeen++
      if (fate === 'slow') await sleep(own.integer(0, 30))
      // Long enough for all that the connection holds to fill up.
      if (stopped && batchesSeen === 1) await sleep(own.integer(500, 2000))
      if (fate === 'left' && batchesSeen > leaveAfter) {
        counted('left')
        return
      }
    }
    check.end()
    counted(`${fate}: complete`)
  } catch (error) {
    if (!(error instanceof DeltamapperError) || error.code !== expectedCode(fate)) {
      const { base, target } = question
      const what = `${fate}: ${base ?? 'all'} to ${target} from ${startingOffset}, ${maxResults} at once`
      throw new Error(`${what}, after ${check.received} extents`, { cause: error })
    }
    counted(`${fate}: ${error.code}${check.received > 0 ? ' on the way' : ''}`)
  } finally {
    clearTimeout(timer)
    if (client !== shared) client.close()
  }
}

function expectedCode(fate: Fate): string | undefined {
  if (fate === 'deadline') return 'DM_DEADLINE_EXCEEDED'
  return fate === 'cancelled' || fate === 'disconnected' ? 'DM_CANCELLED' : undefined
}

/** One after the other. */
async function askQuietly(some = questions): Promise<void> {
  const client = agent.client()
  for (const question of some) {
    const check = new AnswerCheck(question.extents, 0)
    for await (const { count, offsets, sizes } of (await ask(client, question, {})).batches) {
      for (let i = 0; i < count; i++) check.take(offsets[i], sizes[i])
    }
    check.end()
  }
  client.close()
}

/** What the agent uses, once that has been the same for half a second; at most after ten. */
async function settled(): Promise<Usage> {
  let usage = agent.usage()
  for (let same = 0, looks = 0; same < 5 && looks < 100; looks++) {
    await sleep(100)
    const now = agent.usage()
    same = now.files === usage.files && now.threads === usage.threads && now.children === usage.children ? same + 1 : 0
    usage = now
  }
  return usage
}

test('one after the other, the answers are what was done to the pools', async (t) => {
  await askQuietly()
  quiet = await settled()
  t.true(questions.length === 12)
})

test('many at once', async (t) => {
  t.timeout(3_600_000)
  const shared = agent.client()
  let left = streams
  const lanes = Array.from({ length: AT_ONCE }, async (_, lane) => {
    const own = random.fork()
    while (left-- > 0) {
      try {
        await stream(own, shared)
      } catch (error) {
        throw new Error(`lane ${lane} of ${again}`, { cause: error })
      }
    }
  })
  let peakMiB = 0
  const watch = setInterval(() => (peakMiB = Math.max(peakMiB, agent.usage().memoryMiB)), 100)
  const outcomes = await Promise.allSettled(lanes)
  clearInterval(watch)
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason
  shared.close()
  t.log(Object.fromEntries([...counts].sort()))
  t.log(`memory: ${quiet.memoryMiB.toFixed(0)} MiB before, ${peakMiB.toFixed(0)} MiB at most`)
  // Of each kind there were some, or this was no test of it.
  for (const what of ['read: complete', 'slow: complete', 'stopped: complete', 'left', 'cancelled: DM_CANCELLED']) {
    t.truthy(counts.get(what), what)
  }
  t.true(peakMiB < quiet.memoryMiB + 100, `${peakMiB} MiB, after ${quiet.memoryMiB} MiB`)
})

test('nothing is left of them', async (t) => {
  const after = await settled()
  t.is(after.files, quiet.files, agent.openFiles().join('\n'))
  t.is(after.threads, quiet.threads)
  t.is(after.children, quiet.children, agent.children().join('\n'))
  t.is(run('dmsetup', ['status', '--noflush', 'frag']).split(' ')[6], '-')
  await askQuietly(random.shuffle(questions).slice(0, 4))
})

test('nor when the agent has stopped', async (t) => {
  t.is(await agent.stop(), 0)
  // Streams that it took for unfinished would be in its last words.
  t.is(agent.log.find(({ msg }) => msg === 'stopping')?.['streams'], 0)
  t.deepEqual(
    agent.log.filter(({ level }) => Number(level) >= 50),
    []
  )
  const database = openDatabase(catalog)
  t.deepEqual(listLeases(database), [])
  database.close()
  lvm('vgremove', 'streams')
})
