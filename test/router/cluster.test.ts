/**
 * A cluster as its users see it: one router, three agents with recorded pools, each a process of its own, mutual TLS between them; asked
 * as the CSI sidecar asks, by clients that are slow, vanish, or come in crowds.
 */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { Metadata, status } from '@grpc/grpc-js'
import test, { type ExecutionContext } from 'ava'
import { connect } from '../../src/grpc/client.ts'
import type { TlsFiles } from '../../src/grpc/tls.ts'
import { type SamplePool, writeBigPool, writeSamplePool } from '../agent/sample-pool.ts'
import { eventually } from '../grpc/extent-backend.ts'
import { outcome, PlainClient } from '../grpc/plain-client.ts'
import { Authority } from '../support/certificates.ts'
import { Listener } from '../support/listener.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
/** Answers of some 7 MB: no buffers on the way hold that much. */
const EXTENTS = 500_000
const driverName = 'local.csi.example.org'
const nodes = ['one', 'two', 'three'] as const
type Node = (typeof nodes)[number]

let agentTls: TlsFiles, routerTls: TlsFiles
let sample: SamplePool, big: SamplePool
test.before(async () => {
  const authority = await Authority.create(join(folder, 'authority'))
  agentTls = await authority.issue('agent.test')
  routerTls = await authority.issue('router.test')
  sample = await writeSamplePool(join(folder, 'sample'))
  big = await writeBigPool(join(folder, 'big'), EXTENTS)
})

interface Cluster {
  readonly agents: Record<Node, Listener>
  readonly router: Listener
  /** The router's socket, as a path. */
  readonly path: string
}

let sockets = 0
const socket = () => join(folder, `${sockets++}.sock`)

function startAgent(t: ExecutionContext, tcp = 'tcp://127.0.0.1:0'): Promise<Listener> {
  return Listener.start(t, folder, 'agent', {
    listen: [`unix://${socket()}`, tcp],
    tls: { ...agentTls, clientName: 'router.test' },
    recorded: { sample: sample.folder, big: big.folder },
    monitoring: 'tcp://127.0.0.1:0',
    walkers: 1,
    logLevel: 'debug'
  })
}

async function startRouter(t: ExecutionContext, addresses: Record<string, string>, connectSeconds = 3) {
  const path = socket()
  const router = await Listener.start(t, folder, 'router', {
    listen: [`unix://${path}`],
    driverName,
    tls: { ...routerTls, agentName: 'agent.test' },
    static: { nodes: addresses, handles: [{ pattern: '(?<node>[a-z]+):(?<vg>[^/]+)/(?<lv>.+)' }] },
    monitoring: 'tcp://127.0.0.1:0',
    connectSeconds,
    logLevel: 'debug'
  })
  return { router, path }
}

/** One for all tests but those that would harm it. */
let shared: Promise<Cluster> | undefined
const releases: (() => unknown)[] = []
test.after.always(async () => {
  for (const release of releases) await release()
})
function cluster(): Promise<Cluster> {
  const t = { teardown: (release: () => unknown) => releases.push(release) } as unknown as ExecutionContext
  return (shared ??= startCluster(t))
}

async function startCluster(t: ExecutionContext): Promise<Cluster> {
  const [one, two, three] = await Promise.all(nodes.map(() => startAgent(t)))
  const agents = { one, two, three }
  const addresses = Object.fromEntries(nodes.map((node) => [node, agents[node].addresses[1]]))
  return { agents, ...(await startRouter(t, addresses)) }
}

/** As the sidecar connects: grpc-go names a unix socket so. */
function sidecar(t: ExecutionContext, path: string): PlainClient {
  return new PlainClient(t, path, { 'grpc.default_authority': 'localhost', 'grpc.use_local_subchannel_pool': 1 })
}

async function metric({ log }: Listener, name: string): Promise<number> {
  const [, value] = new RegExp(`^${name.replace(/[{}]/g, '\\$&')} (\\S+)$`, 'm').exec(await page({ log })) ?? []
  return Number(value)
}

async function page({ log }: Pick<Listener, 'log'>, path = '/metrics'): Promise<string> {
  const address = log.find(({ msg }) => msg === 'listening')?.['monitoring'] as string
  const response = await fetch(`${address.replace('tcp:', 'http:')}${path}`)
  return response.text()
}

/** How many extents an answer has, read to its end; at a reader's pace. */
async function extentsOf(stream: AsyncIterable<{ block_metadata: unknown[] }>): Promise<number> {
  let extents = 0
  for await (const { block_metadata } of stream) extents += block_metadata.length
  return extents
}

// Serial: processes and memory are watched.

test.serial('to the sidecar it is one driver, whatever node a snapshot is on', async (t) => {
  const { agents, router, path } = await cluster()
  const client = sidecar(t, path)
  t.like(await client.unary('Identity', 'GetPluginInfo'), { name: driverName })
  t.deepEqual<object, object>(await client.unary('Identity', 'Probe'), { ready: { value: true } })
  const { capabilities } = (await client.unary('Identity', 'GetPluginCapabilities')) as { capabilities: object[] }
  t.like(capabilities, [{ service: { type: 'SNAPSHOT_METADATA_SERVICE' } }])
  const expected = await sample.extents('mon', 'thu')
  for (const node of nodes) {
    const all = await client.allocated({ snapshot_id: `${node}:sample/thu` })
    t.is(all.code, status.OK)
    t.is(Number(all.messages[0].volume_capacity_bytes), sample.listed('thu').size_bytes)
    const question = { base_snapshot_id: `${node}:sample/mon`, target_snapshot_id: `${node}:sample/thu` }
    const { code, messages } = await client.delta(question)
    t.is(code, status.OK)
    const extents = messages.flatMap(({ block_metadata }) => block_metadata)
    t.deepEqual(
      extents.map(({ byte_offset, size_bytes }) => [Number(byte_offset), Number(size_bytes)]),
      expected
    )
    t.is(await metric(router, `deltamapper_router_calls_total{node="${node}",grpc_code="OK"}`), 2)
    t.is(await metric(agents[node], 'deltamapper_extents_total{method="GetMetadataDelta"}'), expected.length)
    t.true((await metric(agents[node], 'deltamapper_metadata_nodes_read_total')) > 0)
    const volume = `{volume="sample/${sample.listed('thu').volume}"}`
    const changed = expected.reduce((sum, [, length]) => sum + length, 0)
    t.is(await metric(agents[node], `deltamapper_volume_changed_bytes${volume}`), changed)
    t.is(await metric(agents[node], `deltamapper_volume_size_bytes${volume}`), sample.listed('thu').size_bytes)
  }
  t.is(await page(router, '/readyz'), 'ready\n')
  // Who asks is nobody's business there, nor which snapshots are asked about.
  for (const text of await Promise.all([router, ...Object.values(agents)].map((each) => page(each)))) {
    t.notRegex(text.replaceAll(/^deltamapper_volume_.*/gm, ''), /sample|unix-|127\.0\.0\.1/)
    t.notRegex(text, /sample\/thu/)
  }
})

test.serial('a slow client slows only itself, and a call that is cancelled ends on its node', async (t) => {
  const { agents, router, path } = await cluster()
  const slow = connect(`unix://${path}`)
  t.teardown(() => slow.close())
  const { batches } = await slow.allocated({ snapshotId: 'one:big/big', maxResults: 1000 })
  const reader = batches[Symbol.asyncIterator]()
  const first = await reader.next()
  let extents = first.done ? 0 : first.value.count

  const quick = sidecar(t, path)
  const stream = quick.stream('SnapshotMetadata', 'GetMetadataAllocated', { snapshot_id: 'one:big/big' })
  t.is(await extentsOf(stream), EXTENTS)
  t.is(await metric(agents.one, 'deltamapper_walks_running'), 1, 'the slow one still waits')

  const left = quick.stream('SnapshotMetadata', 'GetMetadataAllocated', {
    snapshot_id: 'one:big/big',
    max_results: 500
  })
  const ended = outcome(left)
  await new Promise((resolve) => left.once('data', () => resolve(left.pause())))
  t.is(await metric(agents.one, 'deltamapper_walks_running'), 2)
  left.cancel()
  t.is((await ended).code, status.CANCELLED)
  const cancelled = () => agents.one.log.find(({ msg, code }) => msg === 'call' && code === 'DM_CANCELLED')
  t.true(await eventually(() => cancelled() !== undefined))
  t.true(Number((cancelled()?.['statistics'] as { extents: number }).extents) < EXTENTS)
  while ((await metric(agents.one, 'deltamapper_walks_running')) > 1);

  for (let next = await reader.next(); !next.done; next = await reader.next()) extents += next.value.count
  t.is(extents, EXTENTS)
  while ((await metric(router, 'deltamapper_calls_running')) > 0);
})

async function descriptors({ child: { pid } }: Listener): Promise<number> {
  return (await readdir(`/proc/${pid}/fd`)).length
}

test.serial('a thousand calls of 64 clients leave no stream, no file descriptor and no megabyte behind', async (t) => {
  const { agents, router, path } = await cluster()
  const processes = [router, ...Object.values(agents)]

  async function calls(count: number): Promise<void> {
    const clients = Array.from({ length: 64 }, () => sidecar(t, path))
    const kinds = [0, 0, 0, 0]
    const call = async (client: PlainClient, index: number) => {
      const node = nodes[index % 3]
      const kind = index % 4
      if (kind === 0) {
        const { code } = await client.delta({
          base_snapshot_id: `${node}:sample/mon`,
          target_snapshot_id: `${node}:sample/thu`
        })
        kinds[0] += Number(code === Number(status.OK))
      } else if (kind === 1) {
        const { code } = await client.allocated({ snapshot_id: `${node}:sample/wed`, max_results: 20 })
        kinds[1] += Number(code === Number(status.OK))
      } else if (kind === 2) {
        const { code } = await client.allocated({ snapshot_id: `${node}:sample/nobody` })
        kinds[2] += Number(code === Number(status.NOT_FOUND))
      } else {
        const stream = client.stream('SnapshotMetadata', 'GetMetadataAllocated', {
          snapshot_id: `${node}:big/big`,
          max_results: 100
        })
        const ended = outcome(stream)
        stream.once('data', () => stream.cancel())
        const { code } = await ended
        kinds[3] += Number(code === Number(status.CANCELLED))
      }
    }
    await Promise.all(
      clients.map(async (client, which) => {
        for (let index = which; index < count; index += clients.length) await call(client, index)
        client.close()
      })
    )
    t.deepEqual(kinds, Array<number>(4).fill(count / 4))
  }

  async function settled(): Promise<void> {
    for (const each of processes) while ((await metric(each, 'deltamapper_calls_running')) > 0);
    for (const agent of Object.values(agents)) while ((await metric(agent, 'deltamapper_walks_running')) > 0);
  }

  const all = <T>(figure: (each: Listener) => Promise<T>) => Promise.all(processes.map(figure))
  await calls(400)
  await settled()
  const idle = await all(descriptors)
  const before = await all((each) => each.reachableMemory())
  await calls(1000)
  await settled()
  // Connections of clients that have gone close in their own time.
  const closed = async () => {
    for (let i = 0; i < 300; i++) {
      if ((await all(descriptors)).every((now, which) => now <= idle[which])) return true
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
    return false
  }
  t.true(await closed(), `${String(idle)}, then ${String(await all(descriptors))}`)
  const left = (await all((each) => each.reachableMemory())).map((now, i) => now - before[i])
  for (const bytes of left) t.true(bytes < 2 ** 20, `${String(left)} bytes more`)
})

test.serial('one id in all logs of a call, and no secret, no token, no more of a handle than needed', async (t) => {
  const { agents, router, path } = await cluster()
  const client = sidecar(t, path)
  const secret = 'hunter2-is-no-secret'
  const token = 'eyJhbGciOiJSUzI1NiJ9.very.private'
  const metadata = new Metadata()
  metadata.set('authorization', `Bearer ${token}`)
  metadata.set('x-security-token', token)
  metadata.set('x-request-id', 'backup-7')
  const long = 'h'.repeat(5000)
  const secrets = { password: secret, [secret]: 'x' }
  const processes = [router, ...Object.values(agents)]
  const text = () => processes.map(({ log }) => log.map((line) => JSON.stringify(line)).join('\n')).join('\n')
  const called = ({ log }: Listener) => {
    const first = log.findIndex(({ requestId }) => requestId === 'backup-7')
    return first < 0 ? [] : log.slice(first).filter(({ msg }) => msg === 'call')
  }
  const ask = (snapshot_id: string) => client.allocated({ snapshot_id, secrets }, metadata)
  const asked = ['one:sample/mon', 'two:sample/nobody', 'four:x/y', 'sample/mon', 'nowhere/mon', long, '']
  for (const id of asked) await ask(id)
  metadata.set('x-request-id', `not an id: ${token}`)
  await ask('three:sample/mon')
  const said = () => called(router).length > asked.length && called(agents.three).at(-1)?.['status'] === 'OK'
  t.true(await eventually(said))
  for (const hidden of [secret, token, 'Bearer', 'authorization']) t.false(text().includes(hidden), hidden)
  // No more of a handle than CSI allows it to have.
  t.false(text().includes('h'.repeat(129)))
  // Handles are in the lines of their calls, and nowhere else.
  for (const { log } of processes) {
    for (const line of log) if (line['msg'] !== 'call') t.notRegex(JSON.stringify(line), /sample\/mon|nobody|hhhh/)
  }

  const [first] = called(router)
  t.like(first, { requestId: 'backup-7', snapshotId: 'one:sample/mon', node: 'one' })
  t.regex(String(first['client']), /^(unix|pid|uid)-\d+$/)
  t.like(called(agents.one)[0], { requestId: 'backup-7', client: '127.0.0.1', snapshotId: 'sample/mon' })
  t.is(called(agents.two)[0]['requestId'], 'backup-7')
  // Those that were only asked whether they have it, too.
  t.true(called(agents.three).filter(({ requestId }) => requestId === 'backup-7').length >= 2)
  const last = called(router).at(-1)?.['requestId']
  t.regex(String(last), /^[0-9a-f-]{36}$/)
  t.is(called(agents.three).at(-1)?.['requestId'], last)
})

test.serial('a router that starts before its agents is ready, and recovers by itself', async (t) => {
  const before = await Promise.all([startAgent(t), startAgent(t)])
  const addresses = before.map((agent) => agent.addresses[1])
  for (const agent of before) await agent.kill()
  const { router, path } = await startRouter(t, { one: addresses[0], two: addresses[1] }, 0.3)
  const client = sidecar(t, path)
  t.deepEqual<object, object>(await client.unary('Identity', 'Probe'), { ready: { value: true } })
  t.is(await page(router, '/readyz'), 'ready\n')
  const { code, details } = await client.allocated({ snapshot_id: 'one:sample/mon' })
  t.is(code, status.UNAVAILABLE)
  t.regex(details, /^DM_AGENT_UNREACHABLE: the agent of node one /)
  await Promise.all(addresses.map((address) => startAgent(t, address)))
  for (const node of ['one', 'two']) {
    let answer = await client.allocated({ snapshot_id: `${node}:sample/mon` })
    for (let i = 0; i < 100 && answer.code > 0; i++)
      answer = await client.allocated({ snapshot_id: `${node}:sample/mon` })
    t.is(answer.code, status.OK, answer.details)
  }
})

test.serial('an agent that is killed ends its own streams with UNAVAILABLE, and no others', async (t) => {
  const { agents, path } = await cluster()
  const clients = { one: sidecar(t, path), two: sidecar(t, path), three: sidecar(t, path) }
  const endings = nodes.map((node) => {
    const stream = clients[node].stream('SnapshotMetadata', 'GetMetadataAllocated', {
      snapshot_id: `${node}:big/big`,
      max_results: 500
    })
    const begun = new Promise<void>((resolve) => {
      stream.once('data', () => {
        stream.pause()
        resolve()
      })
    })
    return { stream, begun, ended: outcome(stream) }
  })
  await Promise.all(endings.map(({ begun }) => begun))
  await agents.two.kill()
  for (const { stream } of endings) stream.resume()
  const [one, two, three] = await Promise.all(endings.map(({ ended }) => ended))
  t.is(two.code, status.UNAVAILABLE, two.details)
  t.regex(two.details, /^DM_AGENT_UNREACHABLE: .*node two .*was lost/)
  t.true(two.messages.length < EXTENTS / 500)
  for (const { code, messages, details } of [one, three]) {
    t.is(code, status.OK, details)
    t.is(messages.flatMap(({ block_metadata }) => block_metadata).length, EXTENTS)
  }
})
