/** The router's backend between a real client and real servers: every byte goes through two sockets. */
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import {
  Client,
  credentials,
  Metadata,
  Server,
  ServerCredentials,
  type ServerWritableStream,
  status
} from '@grpc/grpc-js'
import test, { type ExecutionContext } from 'ava'
import { AgentChannels } from '../../../src/router/relay/agent-channels.ts'
import { getMetadataAllocated } from '../../../src/grpc/snapshot-metadata-methods.ts'
import { hasSnapshot, type Place, routerBackend, type RouterOptions } from '../../../src/router/relay/relay.ts'
import type { ServerOptions } from '../../../src/grpc/server.ts'
import { RawConnection } from '../../support/raw-http2.ts'
import { eventually, some, temporaryFolder, type TestServer, testServer } from '../../grpc/extent-backend.ts'
import { allocatedRequest, outcome, PlainClient, rawCall } from '../../grpc/plain-client.ts'

interface Routed {
  readonly agent: TestServer
  readonly router: TestServer
  readonly client: PlainClient
}

async function routerTo(
  t: ExecutionContext,
  address: string,
  limits: Partial<RouterOptions> = {},
  server: Partial<ServerOptions> = {}
) {
  const channels = new AgentChannels()
  t.teardown(() => channels.close())
  const place = (handle: string): Place => ({ node: 'n1', address, handle })
  const backend = routerBackend(
    {
      target: async (id) => place(id),
      pair: async (base, target) => ({ target: place(target), baseHandle: base })
    },
    channels,
    { connectMs: 5000, ...limits }
  )
  return testServer(t, { backend, ...server })
}

async function routed(t: ExecutionContext, limits?: Partial<RouterOptions>): Promise<Routed> {
  const agent = await testServer(t)
  const router = await routerTo(t, agent.address, limits)
  return { agent, router, client: new PlainClient(t, router.path) }
}

/** A call's messages as they are on the wire. */
async function rawMessages(
  t: ExecutionContext,
  path: string,
  snapshotId: string,
  maxResults: number
): Promise<Buffer[]> {
  const client = new Client(`unix:${path}`, credentials.createInsecure())
  t.teardown(() => client.close())
  const request = getMetadataAllocated.requestSerialize({ snapshotId, startingOffset: 0n, maxResults })
  const same = (bytes: Buffer) => bytes
  const messages: Buffer[] = []
  const stream = client.makeServerStreamRequest(getMetadataAllocated.path, same, same, request)
  for await (const message of stream) messages.push(message as Buffer)
  return messages
}

test('every message is the same, byte for byte', async (t) => {
  const { agent, router } = await routed(t)
  for (const [id, maxResults] of [
    ['some', 0],
    ['some', 7],
    ['some', 1],
    ['empty', 0],
    ['silent', 0]
  ] as const) {
    const straight = await rawMessages(t, agent.path, id, maxResults)
    t.true(straight.length > 0)
    t.deepEqual(await rawMessages(t, router.path, id, maxResults), straight, `${id} ${maxResults}`)
  }
})

test('delta, offset and limit reach the agent', async (t) => {
  const { agent, client } = await routed(t)
  const request = { base_snapshot_id: 'empty', target_snapshot_id: 'some', starting_offset: '1310720', max_results: 7 }
  const { code, messages } = await client.delta(request)
  t.is(code, status.OK)
  t.is(messages.flatMap((message) => message.block_metadata).length, some.length - 10)
  t.deepEqual<object | undefined, object>(agent.backend.requests.at(-1), {
    baseSnapshotId: 'empty',
    targetSnapshotId: 'some',
    startingOffset: 1310720n,
    maxResults: 7
  })
})

test("an agent's error is passed on word for word, after all messages before it", async (t) => {
  const { agent, client } = await routed(t)
  const straight = new PlainClient(t, agent.path)
  for (const request of [
    { snapshot_id: 'nobody' },
    { snapshot_id: '' },
    { snapshot_id: 'some', max_results: -1 },
    { snapshot_id: 'some', starting_offset: '9007199254740993' },
    { snapshot_id: 'damaged' },
    { snapshot_id: 'defective' }
  ]) {
    const [one, other] = await Promise.all([straight.allocated(request), client.allocated(request)])
    t.not(one.code, status.OK)
    t.deepEqual([other.code, other.details, other.messages], [one.code, one.details, one.messages])
  }
})

/** A server of grpc-js alone; it sees requests as bytes. */
async function bareServer(t: ExecutionContext, answer: (call: ServerWritableStream<Buffer, Buffer>) => void) {
  const server = new Server()
  const same = (bytes: Buffer) => bytes
  const { path } = getMetadataAllocated
  const serializers = {
    requestSerialize: same,
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: same
  }
  server.addService(
    { Allocated: { path, requestStream: false, responseStream: true, ...serializers } },
    { Allocated: answer as never }
  )
  const address = `unix:${join(temporaryFolder(t), 'bare.sock')}`
  await new Promise<void>((resolve, reject) =>
    server.bindAsync(address, ServerCredentials.createInsecure(), (error) => (error ? reject(error) : resolve()))
  )
  t.teardown(() => server.forceShutdown())
  return { address, server }
}

test('status, details and trailing metadata of an unknown kind are carried through; secrets are not', async (t) => {
  const seen: Buffer[] = []
  const { address } = await bareServer(t, (call) => {
    seen.push(call.request)
    const metadata = new Metadata()
    metadata.set('x-reason', 'because')
    call.emit('error', { code: status.RESOURCE_EXHAUSTED, details: 'not today', metadata })
  })
  const client = new PlainClient(t, (await routerTo(t, address)).path)
  const { code, details, metadata } = await client.allocated({ snapshot_id: 'x', secrets: { token: 'hunter2' } })
  t.is(code, status.RESOURCE_EXHAUSTED)
  t.is(details, 'not today')
  t.deepEqual(metadata?.get('x-reason'), ['because'])
  t.is(seen.length, 1)
  t.true(seen[0].includes('x'))
  t.false(seen[0].includes('hunter2'))
})

test('an agent that says OK without a message has not answered', async (t) => {
  const { address } = await bareServer(t, (call) => call.end())
  const { code, details } = await new PlainClient(t, (await routerTo(t, address)).path).allocated({ snapshot_id: 'x' })
  t.is(code, status.INTERNAL)
  t.regex(details, /^DM_ANSWER_INVALID: /)
})

test('a client that does not read holds back the agent, and nobody else', async (t) => {
  const { agent, router, client } = await routed(t)
  const { stream } = rawCall(t, router.path, { body: allocatedRequest('endless') })
  t.true(await eventually(() => agent.backend.asked > 1))
  // It stops by itself: what is asked for has not changed for a while.
  let before = -1
  let looks = 0
  while (before !== agent.backend.asked && looks++ < 50) {
    before = agent.backend.asked
    await new Promise((resolve) => setTimeout(resolve, 300))
  }
  t.true(looks < 50, `it goes on: ${agent.backend.asked}`)
  // Messages of 100 KB: what is on its way, and not the sixteen more that grpc-js would keep.
  t.true(before < 14, `${before} messages were asked for`)
  t.is((await client.allocated({ snapshot_id: 'some' })).code, status.OK)
  stream.resume()
  t.true(await eventually(() => agent.backend.asked > before + 20), 'and goes on when it is read')
})

test('a call that is cancelled or runs out of time ends at the agent, before and after its first message', async (t) => {
  for (const snapshot_id of ['hanging', 'endless']) {
    const { agent, client } = await routed(t)
    const { backend } = agent
    const stream = client.stream('SnapshotMetadata', 'GetMetadataAllocated', { snapshot_id })
    const ended = outcome(stream)
    t.true(await eventually(() => backend.open === 1))
    stream.cancel()
    t.is((await ended).code, status.CANCELLED)
    t.true(await eventually(() => backend.open === 0))
    t.is(backend.reasons[0].code, 'DM_CANCELLED')

    const late = await client.allocated({ snapshot_id }, { deadline: Date.now() + 300 })
    t.is(late.code, status.DEADLINE_EXCEEDED)
    t.true(await eventually(() => backend.open === 0))
  }
})

test('clients that cancel calls by the thousand end nobody else’s, although they share connections to the agent', async (t) => {
  const agent = await testServer(t, { listen: ['tcp://127.0.0.1:0'], allowLoopbackTcp: true })
  let connections = 0
  const router = await routerTo(t, agent.server.addresses[0], {}, { nameUnixClient: () => `client-${++connections}` })
  const patient = new PlainClient(t, router.path)
  const ended = patient.allocated({ snapshot_id: 'gated' })
  t.true(await eventually(() => agent.backend.open === 1))
  for (let client = 0; client < 4; client++) {
    const hasty = await RawConnection.open(router.path)
    t.teardown(() => hasty.socket.destroy())
    for (let round = 0; round < 3; round++) {
      const before = agent.backend.requests.length
      const streams = Array.from({ length: 250 }, () => hasty.call(allocatedRequest('hanging')))
      await eventually(() => agent.backend.requests.length >= before + 200 || hasty.goaways.length > 0)
      for (const stream of streams) hasty.cancel(stream)
      await eventually(() => agent.backend.open === 1)
    }
    t.true(hasty.goaways.every((code) => code === 0))
  }
  t.true(agent.backend.reasons.length > 1100, `${agent.backend.reasons.length} calls were cancelled at the agent`)
  agent.backend.letGo()
  t.like(await ended, { code: status.OK })
})

test("the agent knows the call's deadline itself", async (t) => {
  let told: number | undefined
  const { address } = await bareServer(t, (call) => {
    told = Number(call.getDeadline())
    call.write(Buffer.alloc(0))
    call.end()
  })
  const client = new PlainClient(t, (await routerTo(t, address)).path)
  const deadline = Date.now() + 60_000
  t.is((await client.allocated({ snapshot_id: 'x' }, { deadline })).code, status.OK)
  t.true(Math.abs(told! - deadline) < 5000)
})

test('an agent that is not there is waited for, and no longer than was said', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'later.sock')
  const patient = new PlainClient(t, (await routerTo(t, `unix://${path}`, { connectMs: 30_000 })).path)
  const impatient = new PlainClient(t, (await routerTo(t, `unix://${path}`, { connectMs: 200 })).path)
  const waiting = patient.allocated({ snapshot_id: 'some' })
  const { code, details } = await impatient.allocated({ snapshot_id: 'some' })
  t.is(code, status.UNAVAILABLE)
  t.regex(details, /^DM_AGENT_UNREACHABLE: the agent of node n1 at unix:.*does not answer .*ENOENT/)
  await testServer(t, { listen: [path] })
  t.is((await waiting).code, status.OK)
  // grpc-js itself waits a little after a failure before it connects again.
  let again = await impatient.allocated({ snapshot_id: 'some' })
  for (let i = 0; i < 50 && again.code > 0; i++) again = await impatient.allocated({ snapshot_id: 'some' })
  t.is(again.code, status.OK)
})

test('an agent that takes the connection and says nothing is given up', async (t) => {
  const path = join(temporaryFolder(t), 'mute.sock')
  const sockets: Socket[] = []
  const mute = createServer((socket) => sockets.push(socket))
  await new Promise<void>((resolve) => mute.listen(path, resolve))
  t.teardown(() => {
    mute.close()
    for (const socket of sockets) socket.destroy()
  })
  const client = new PlainClient(t, (await routerTo(t, `unix://${path}`, { connectMs: 200 })).path)
  const { code, details } = await client.allocated({ snapshot_id: 'some' })
  t.is(code, status.UNAVAILABLE)
  t.regex(details, /^DM_AGENT_UNREACHABLE: /)
})

test('an agent lost after its first message is not asked again', async (t) => {
  let calls = 0
  const { address, server } = await bareServer(t, (call) => {
    calls++
    call.write(Buffer.from([8, 2]), () => setTimeout(() => server.forceShutdown(), 50))
  })
  const { code, details, messages } = await new PlainClient(t, (await routerTo(t, address)).path).allocated({
    snapshot_id: 'x'
  })
  t.is(code, status.UNAVAILABLE)
  t.regex(details, /^DM_AGENT_UNREACHABLE: .*was lost in the middle of its answer/)
  t.is(messages.length, 1)
  t.is(calls, 1)
})

test('Probe, name and health are its own: they need no agent', async (t) => {
  const router = await routerTo(t, 'unix:///nowhere/agent.sock')
  const client = new PlainClient(t, router.path)
  t.deepEqual<object, object>(await client.unary('Identity', 'Probe'), { ready: { value: true } })
  t.like(await client.unary('Identity', 'GetPluginInfo'), { name: 'test.deltamapper.dev' })
  t.deepEqual<object, object>(await client.unary('Health', 'check', { service: '' }), { status: 'SERVING' })
})

test('its log names the node', async (t) => {
  const { router, client } = await routed(t)
  await client.allocated({ snapshot_id: 'some' })
  t.like(
    router.log.find(({ msg }) => msg === 'call'),
    { snapshotId: 'some', node: 'n1', status: 'OK', statistics: { tries: 1 } }
  )
})

test('whether an agent has a snapshot is told without any of it being read', async (t) => {
  const agent = await testServer(t)
  const channels = new AgentChannels()
  t.teardown(() => channels.close())
  const { signal } = new AbortController()
  const nowhere = 'unix:///nowhere/agent.sock'
  const has = (handle: string, address = agent.address) =>
    hasSnapshot(
      channels.take(address).client,
      { node: 'n1', address, handle },
      signal,
      address === nowhere ? 300 : 30_000
    )
  t.true(await has('some'))
  t.false(await has('nobody'))
  t.false(await has('x'.repeat(200)))
  t.regex(String(await has('some', nowhere)), /does not answer/)
  t.is(agent.backend.asked, 0)
  // A node that cannot look says neither yes nor no.
  for (const [code, details] of [
    [status.FAILED_PRECONDITION, 'DM_CONTROL_MISSING: there is no device-mapper; load it'],
    [status.UNAVAILABLE, 'DM_LVM_FAILED: lvm hangs; see to it'],
    [status.NOT_FOUND, 'nothing of that kind']
  ] as const) {
    const { address } = await bareServer(t, (call) => void call.emit('error', { code, details }))
    t.is(await has('some', address), details.startsWith('DM_') ? `the agent of node n1 says ${details}` : false)
  }
})
