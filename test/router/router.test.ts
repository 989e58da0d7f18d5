/**
 * One router, two agents with recorded pools: processes of their own, mutual TLS between them, asked by our client and by nobody else.
 */
import { copyFile, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Client, credentials } from '@grpc/grpc-js'
import test, { type ExecutionContext } from 'ava'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import { connect, type SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { getMetadataAllocated, getMetadataDelta } from '../../src/grpc/snapshot-metadata-methods.ts'
import type { TlsFiles } from '../../src/grpc/tls.ts'
import { type SamplePool, writeBigPool, writeSamplePool } from '../agent/sample-pool.ts'
import { runCommand } from '../cli/run-command.ts'
import { eventually } from '../grpc/extent-backend.ts'
import { Authority } from '../support/certificates.ts'
import { Listener } from '../support/listener.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
/** Answers of some 30 MB: no buffers on the way hold that much. */
const EXTENTS = 2_000_000
let authority: Authority
let agentTls: TlsFiles, routerTls: TlsFiles
let sample: SamplePool, big: SamplePool
test.before(async () => {
  authority = await Authority.create(join(folder, 'authority'))
  agentTls = await authority.issue('agent.test')
  routerTls = await authority.issue('router.test')
  sample = await writeSamplePool(join(folder, 'sample'))
  big = await writeBigPool(join(folder, 'big'), EXTENTS)
})

let sockets = 0
const socket = () => `unix://${join(folder, `${sockets++}.sock`)}`

function agent(t: ExecutionContext, recorded: Record<string, string>, options: { tcp?: string; tls?: TlsFiles } = {}) {
  const { tcp = 'tcp://127.0.0.1:0', tls = agentTls } = options
  return Listener.start(t, folder, 'agent', {
    listen: [socket(), tcp],
    tls: { ...tls, clientName: 'router.test' },
    recorded,
    walkers: 1
  })
}

function router(t: ExecutionContext, nodes: Record<string, string>, { tls = routerTls, connectSeconds = 3 } = {}) {
  return Listener.start(t, folder, 'router', {
    listen: [socket()],
    driverName: 'local.csi.example.org',
    tls: { ...tls, agentName: 'agent.test' },
    static: { nodes, handles: [{ pattern: '(?<node>[a-z]+):(?<vg>[^/]+)/(?<lv>.+)' }] },
    connectSeconds
  })
}

/** Two agents, `one` with the sample pool, `two` with the same and a big one, and a router to both. */
async function cluster(t: ExecutionContext) {
  const [one, two] = await Promise.all([
    agent(t, { sample: sample.folder, only: sample.folder }),
    agent(t, { sample: sample.folder, big: big.folder })
  ])
  const nodes = { one: one.addresses[1], two: two.addresses[1] }
  return { one, two, nodes, router: await router(t, nodes) }
}

function clientOf(t: ExecutionContext, listener: Listener): SnapshotMetadataClient {
  const client = connect(listener.addresses[0])
  t.teardown(() => client.close())
  return client
}

async function fails(t: ExecutionContext, promise: Promise<unknown>, code: ErrorCode, words = /./) {
  const error = await t.throwsAsync(promise, { instanceOf: DeltamapperError, message: words })
  t.is(error.code, code, error.line)
}

/** An answer's messages as they are on the wire. */
async function bytes(t: ExecutionContext, { addresses }: Listener, base: string | undefined, target: string) {
  const client = new Client(addresses[0].replace('unix://', 'unix:'), credentials.createInsecure())
  t.teardown(() => client.close())
  const numbers = { startingOffset: 0n, maxResults: 10 }
  const [{ path }, request] =
    base === undefined
      ? [getMetadataAllocated, getMetadataAllocated.requestSerialize({ snapshotId: target, ...numbers })]
      : [
          getMetadataDelta,
          getMetadataDelta.requestSerialize({ baseSnapshotId: base, targetSnapshotId: target, ...numbers })
        ]
  const same = (message: Buffer) => message
  const messages: Buffer[] = []
  for await (const message of client.makeServerStreamRequest(path, same, same, request)) {
    messages.push(message as Buffer)
  }
  return messages
}

test('through the router and straight, answers are the same, byte for byte', async (t) => {
  const { one, router } = await cluster(t)
  const names = ['mon', 'tue', 'wed', 'thu']
  for (const [index, target] of names.entries()) {
    for (const base of [undefined, ...names.slice(0, index + 1)]) {
      const straight = await bytes(t, one, base && `sample/${base}`, `sample/${target}`)
      t.true(straight.length > 0)
      t.deepEqual(await bytes(t, router, base && `one:sample/${base}`, `one:sample/${target}`), straight)
    }
  }
  // What only one node has is found by asking.
  t.deepEqual(await bytes(t, router, 'only/mon', 'only/tue'), await bytes(t, one, 'only/mon', 'only/tue'))
})

test('what cannot be answered is refused with its own code', async (t) => {
  const { router } = await cluster(t)
  const client = clientOf(t, router)
  const delta = (baseSnapshotId: string, targetSnapshotId: string) => client.delta({ baseSnapshotId, targetSnapshotId })
  await fails(t, delta('one:sample/mon', 'two:sample/tue'), 'DM_NODES_DIFFER', /"one".*"two"/)
  await fails(t, delta('two:big/big', 'only/tue'), 'DM_NODES_DIFFER')
  await fails(t, client.allocated({ snapshotId: 'sample/mon' }), 'DM_NODE_AMBIGUOUS', /one, two/)
  await fails(t, client.allocated({ snapshotId: 'three:sample/mon' }), 'DM_NODE_UNKNOWN', /"three"/)
  await fails(t, client.allocated({ snapshotId: 'nowhere/mon' }), 'DM_SNAPSHOT_NOT_FOUND')
  await fails(t, delta('one:sample/thu', 'one:sample/mon'), 'DM_ORDER_REVERSED')
  await fails(t, delta('one:sample/gone', 'one:sample/thu'), 'DM_BASE_LOST')
  await fails(t, client.allocated({ snapshotId: 'one:sample/mon', startingOffset: 2 ** 50 }), 'DM_OFFSET_OUT_OF_RANGE')
})

test('a slow client holds back the agent; a call that is left ends there', async (t) => {
  const { two, router } = await cluster(t)
  const client = clientOf(t, router)
  const { batches } = await client.allocated({ snapshotId: 'two:big/big' })
  const reader = batches[Symbol.asyncIterator]()
  await reader.next()
  // Others are served meanwhile, and when they are done, there was time for all of it.
  for (let i = 0; i < 5; i++) await clientOf(t, router).allocated({ snapshotId: 'two:sample/mon' })
  await reader.return?.()
  const ended = () => two.log.find(({ msg, snapshotId }) => msg === 'call' && snapshotId === 'big/big')
  t.true(await eventually(() => ended() !== undefined))
  t.is(ended()?.['code'], 'DM_CANCELLED')
  t.true(Number(ended()?.['bytes']) < 20e6, String(ended()?.['bytes']))
  await fails(t, client.allocated({ snapshotId: 'two:big/big', deadlineMs: 300 }).then(slowly), 'DM_DEADLINE_EXCEEDED')
  const late = () => two.log.filter(({ msg, snapshotId }) => msg === 'call' && snapshotId === 'big/big').at(1)
  t.true(await eventually(() => late() !== undefined))
  t.true(['DM_DEADLINE_EXCEEDED', 'DM_CANCELLED'].includes(String(late()?.['code'])))
})

async function slowly({ batches }: { batches: AsyncIterable<{ count: number }> }): Promise<void> {
  for await (const { count } of batches) if (count > 0) await new Promise((resolve) => setTimeout(resolve, 200))
}

test('an agent that is killed ends its own streams, never with OK, and is asked again once it is back', async (t) => {
  const { two, nodes, router } = await cluster(t)
  const client = clientOf(t, router)
  const other = await client.allocated({ snapshotId: 'one:sample/thu', maxResults: 1 })
  const { batches } = await client.allocated({ snapshotId: 'two:big/big' })
  const reader = batches[Symbol.asyncIterator]()
  await reader.next()
  await two.kill()
  await fails(t, readOn(reader), 'DM_AGENT_UNREACHABLE', /node two .*was lost in the middle/)
  await fails(t, client.allocated({ snapshotId: 'two:sample/mon' }), 'DM_AGENT_UNREACHABLE', /does not answer/)
  let extents = 0
  for await (const { count } of other.batches) extents += count
  t.is(extents, (await sample.extents(undefined, 'thu')).length, 'the other node is not concerned')
  // Where nothing says the node, the one that is gone might have it as well.
  await fails(
    t,
    client.allocated({ snapshotId: 'only/mon' }),
    'DM_AGENT_UNREACHABLE',
    /the agent of node two at .* does not answer/
  )

  await agent(t, { sample: sample.folder }, { tcp: nodes.two })
  t.is((await client.allocated({ snapshotId: 'two:sample/mon' })).capacityBytes, sample.listed('mon').size_bytes)
})

async function readOn(reader: AsyncIterator<unknown>): Promise<void> {
  while (!(await reader.next()).done);
}

test('a router may start before its agents', async (t) => {
  const before = await agent(t, { sample: sample.folder })
  const address = before.addresses[1]
  await before.kill()
  const client = clientOf(t, await router(t, { one: address }, { connectSeconds: 60 }))
  const answer = client.allocated({ snapshotId: 'one:sample/mon' })
  await agent(t, { sample: sample.folder }, { tcp: address })
  t.is((await answer).capacityBytes, sample.listed('mon').size_bytes)
})

test('agents and routers with the wrong certificates do not talk, and the words say why', async (t) => {
  const right = await agent(t, { sample: sample.folder })
  const address = right.addresses[1]
  const ask = async (nodes: Record<string, string>, tls?: TlsFiles) =>
    clientOf(t, await router(t, nodes, { connectSeconds: 0.3, ...(tls && { tls }) })).allocated({
      snapshotId: 'one:sample/mon'
    })
  await fails(t, ask({ one: address }, await authority.issue('another.test')), 'DM_AGENT_UNREACHABLE')
  const refused = () => right.log.find(({ msg }) => msg === 'a client was refused')
  t.true(await eventually(() => refused() !== undefined))
  t.regex(String(refused()?.['reason']), /does not carry the name router\.test/)
  await fails(t, ask({ one: address }, await authority.issue('router.test', { days: -1 })), 'DM_AGENT_UNREACHABLE')
  // One agent's certificate does not open another.
  await fails(t, ask({ one: address }, agentTls), 'DM_AGENT_UNREACHABLE')

  const wrong = await agent(t, { sample: sample.folder }, { tls: await authority.issue('another.test') })
  await fails(t, ask({ one: wrong.addresses[1] }), 'DM_AGENT_UNREACHABLE', /does not carry the name agent\.test/)
  const expired = await agent(t, { sample: sample.folder }, { tls: await authority.issue('agent.test', { days: -1 }) })
  await fails(t, ask({ one: expired.addresses[1] }), 'DM_AGENT_UNREACHABLE', /expired/)
})

test('new certificates on both sides count without a restart', async (t) => {
  const at = async (name: string, files: TlsFiles) => {
    await mkdir(join(folder, name))
    const copy = {
      certificate: join(folder, name, 'crt'),
      key: join(folder, name, 'key'),
      ca: join(folder, name, 'ca')
    }
    await renew(copy, files)
    return copy
  }
  const renew = async (copy: TlsFiles, by: TlsFiles) => {
    for (const file of ['certificate', 'key', 'ca'] as const) await copyFile(by[file], copy[file])
  }
  const agentFiles = await at('renewed-agent', agentTls)
  const routerFiles = await at('renewed-router', routerTls)
  const one = await agent(t, { sample: sample.folder }, { tls: agentFiles })
  const through = await router(t, { one: one.addresses[1] }, { tls: routerFiles })
  const client = clientOf(t, through)
  await client.allocated({ snapshotId: 'one:sample/mon' })
  const successor = await Authority.create(join(folder, 'successor'))
  await renew(agentFiles, await successor.issue('agent.test'))
  await renew(routerFiles, await successor.issue('router.test'))
  for (const listener of [one, through]) {
    t.true(await eventually(() => listener.said('certificates were read again') !== undefined))
  }
  t.is((await client.allocated({ snapshotId: 'one:sample/mon' })).capacityBytes, sample.listed('mon').size_bytes)
})

test('a configuration that cannot be used ends it with one line', async (t) => {
  const file = join(folder, 'wrong.yaml')
  await writeFile(file, 'driverName: x.y\nstatic: { nodes: { one: "tcp://10.0.0.1:1" } }\n')
  const { status, stdout, stderr } = await runCommand(['router', '--config', file])
  t.is(status, 1)
  t.is(stdout, '')
  t.regex(stderr, /^deltamapper: the configuration in .*wrong\.yaml cannot be used: .*mutual TLS.*\n$/)
})
