/**
 * A router that knows its cluster from the API server only, with agents that come, go and move.
 */
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { pino } from 'pino'
import { DeltamapperError, type ErrorCode } from '../../../src/errors.ts'
import { connect, type SnapshotMetadataClient } from '../../../src/grpc/client.ts'
import { KubernetesApi } from '../../../src/kubernetes/api.ts'
import type { KubernetesObject } from '../../../src/kubernetes/object.ts'
import { makeDriver } from '../../../src/router/drivers/kinds.ts'
import { Cluster } from '../../../src/router/kubernetes/cluster.ts'
import { type SamplePool, writeBigPool, writeSamplePool } from '../../agent/sample-pool.ts'
import { eventually } from '../../grpc/extent-backend.ts'
import { PlainClient } from '../../grpc/plain-client.ts'
import { Authority } from '../../support/certificates.ts'
import { ClusterOfAgents, logicalVolume } from '../../support/cluster-of-agents.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import type { Running } from '../../support/in-process.ts'
import { testFolder } from '../../support/test-folder.ts'

// One after the other: everything runs in this process, and what has to answer in time must get its turn.
const folder = testFolder(test)
let authority: Authority
let sample: SamplePool, big: SamplePool
test.before(async () => {
  authority = await Authority.create(join(folder, 'authority'))
  sample = await writeSamplePool(join(folder, 'sample'))
  big = await writeBigPool(join(folder, 'big'), 10)
})

const days = ['mon', 'tue', 'wed', 'thu']
const snapshots = days.map((day, hour) => logicalVolume(day, { hour }))
const topolvm = (t: ExecutionContext, objects: readonly KubernetesObject[] = snapshots) =>
  ClusterOfAgents.create(t, folder, authority, objects)

function clientOf(t: ExecutionContext, listener: Running): SnapshotMetadataClient {
  const client = connect(listener.addresses[0])
  t.teardown(() => client.close())
  return client
}

async function fails(t: ExecutionContext, promise: Promise<unknown>, code: ErrorCode, words = /./) {
  const error = await t.throwsAsync(promise, { instanceOf: DeltamapperError, message: words })
  t.is(error.code, code, error.line)
}

const probe = async (t: ExecutionContext, { addresses }: Running) =>
  new PlainClient(t, addresses[0].replace('unix://', '')).unary('Identity', 'Probe') as Promise<{
    ready: { value: boolean }
  }>

const capacity = async (client: SnapshotMetadataClient, snapshotId: string) =>
  (await client.allocated({ snapshotId })).capacityBytes

test.serial('handles of TopoLVM are answered as the agent answers its own', async (t) => {
  const cluster = await topolvm(t)
  const [agent, router] = await Promise.all([
    cluster.agent(t, { sample: sample.folder }),
    cluster.router(t, 'topolvm.io')
  ])
  cluster.announce('worker-1', agent)
  const client = clientOf(t, router)
  for (const [index, target] of days.entries()) {
    t.deepEqual(
      await collectExtents(await client.allocated({ snapshotId: target })),
      await sample.extents(undefined, target)
    )
    for (const base of days.slice(0, index + 1)) {
      const answer = await client.delta({ baseSnapshotId: base, targetSnapshotId: target })
      t.deepEqual(await collectExtents(answer), await sample.extents(base, target), `${base} ${target}`)
    }
  }
})

test.serial('handles of OpenEBS name volume groups, and are of their own driver', async (t) => {
  const lvmSnapshot = (day: string, more: object = {}) =>
    ({
      apiVersion: 'local.openebs.io/v1alpha1',
      kind: 'LVMSnapshot',
      metadata: {
        name: `snapshot-${day}`,
        namespace: 'openebs',
        labels: { 'openebs.io/persistent-volume': 'pvc-data' }
      },
      spec: { ownerNodeID: 'worker-1', volGroup: 'sample', ...more },
      status: { state: 'Ready' }
    }) as KubernetesObject
  const cluster = await topolvm(t, [lvmSnapshot('mon'), lvmSnapshot('tue'), lvmSnapshot('wed', { snapSize: '1' })])
  const [agent, router] = await Promise.all([
    cluster.agent(t, { sample: sample.folder, another: sample.folder }),
    cluster.router(t, 'local.csi.openebs.io', {}, { driverNamespace: 'openebs' })
  ])
  cluster.announce('worker-1', agent)
  const client = clientOf(t, router)
  const pair = { baseSnapshotId: 'pvc-data@snapshot-mon', targetSnapshotId: 'pvc-data@snapshot-tue' }
  t.deepEqual(await collectExtents(await client.delta(pair)), await sample.extents('mon', 'tue'))
  // With a size of its own it is a classic snapshot: what that can answer, the agent knows.
  const classic = await client.allocated({ snapshotId: 'pvc-data@snapshot-wed' })
  t.deepEqual(await collectExtents(classic), await sample.extents(undefined, 'wed'))
  await fails(t, client.allocated({ snapshotId: 'sample/mon' }), 'DM_HANDLE_INVALID')
  // Its objects are gone, and the agent knows the name.
  await fails(t, client.delta({ ...pair, baseSnapshotId: 'pvc-data@snapshot-gone' }), 'DM_BASE_LOST', /sample\/gone/)
})

test.serial('what the sidecar does not check is checked: same volume, order, node', async (t) => {
  const cluster = await topolvm(t, [
    ...snapshots,
    logicalVolume('other-mon', { source: 'pvc-other', hour: 2 }),
    logicalVolume('far', { node: 'worker-2', source: 'pvc-data', hour: 0 }),
    logicalVolume('twice'),
    logicalVolume('twice', { node: 'worker-2' })
  ])
  const [agent, router] = await Promise.all([
    cluster.agent(t, { sample: sample.folder }),
    cluster.router(t, 'topolvm.io')
  ])
  cluster.announce('worker-1', agent)
  cluster.announce('worker-2', agent)
  const client = clientOf(t, router)
  const delta = (baseSnapshotId: string, targetSnapshotId: string) => client.delta({ baseSnapshotId, targetSnapshotId })
  await fails(t, delta('other-mon', 'thu'), 'DM_VOLUMES_DIFFER', /"other-mon" is a snapshot of "pvc-other"/)
  await fails(t, delta('thu', 'mon'), 'DM_ORDER_REVERSED', /taken at 2026-05-04T03:00:00.000Z/)
  await fails(t, delta('far', 'thu'), 'DM_NODES_DIFFER')
  await fails(t, delta('mon', 'nothing'), 'DM_SNAPSHOT_NOT_FOUND')
  await fails(t, client.allocated({ snapshotId: 'twice' }), 'DM_NODE_AMBIGUOUS', /worker-1 and .*worker-2/)
  const calls = () => agent.log.filter(({ msg }) => msg === 'call')
  t.is(calls().length, 0, 'no agent was bothered with any of it')
  // Of a base without objects the agent of the target may have a record.
  await fails(t, delta('nothing', 'mon'), 'DM_SNAPSHOT_NOT_FOUND')
  t.is(calls().length, 1)
  t.like(calls()[0], { baseSnapshotId: '*/nothing', targetSnapshotId: '*/mon' })
})

/** What monitoring is told. */
async function page(router: Running, path: string): Promise<string> {
  const monitoring = router.log.find(({ msg }) => msg === 'listening')?.['monitoring'] as string
  return (await fetch(`${monitoring.replace('tcp', 'http')}${path}`)).text()
}

test.serial('a router that starts before its API server and its agents says so, and recovers', async (t) => {
  const cluster = await topolvm(t)
  const agent = await cluster.agent(t, { sample: sample.folder })
  await cluster.server.stop()
  const router = await cluster.router(t, 'topolvm.io', { connectSeconds: 0.3, monitoring: 'tcp://127.0.0.1:0' })
  const client = clientOf(t, router)
  t.false((await probe(t, router)).ready.value)
  t.regex(await page(router, '/readyz'), /^kubernetes: what the cluster has is not known yet; /)
  const [, age] = /^deltamapper_router_cluster_age_seconds (\d+)$/m.exec(await page(router, '/metrics')) ?? []
  t.true(Number(age) < 600, `${age} seconds`)
  await fails(t, capacity(client, 'mon'), 'DM_CLUSTER_UNREACHABLE', /ECONNREFUSED/)
  await cluster.server.listen()
  let ready = false
  t.true(
    await eventually(() => {
      void probe(t, router).then(({ ready: { value } }) => (ready ||= value))
      return ready
    })
  )
  t.is(await page(router, '/readyz'), 'ready\n')
  await fails(t, capacity(client, 'mon'), 'DM_NODE_UNKNOWN', /"worker-1"/)
  cluster.announce('worker-1', undefined)
  let code: ErrorCode | undefined
  const look = () => void capacity(client, 'mon').catch((error: DeltamapperError) => (code = error.code))
  look()
  t.true(
    await eventually(() => {
      if (code !== undefined && code !== 'DM_AGENT_UNREACHABLE') {
        code = undefined
        look()
      }
      return code === 'DM_AGENT_UNREACHABLE'
    })
  )
  // By its node, as the alert on agents that cannot be reached wants it.
  t.regex(
    await page(router, '/metrics'),
    /^deltamapper_router_calls_total\{node="worker-1",grpc_code="UNAVAILABLE"\} \d/m
  )
  cluster.announce('worker-1', agent)
  const patient = clientOf(t, await cluster.router(t, 'topolvm.io', { connectSeconds: 30 }))
  t.is(await capacity(patient, 'mon'), sample.listed('mon').size_bytes)
})

test.serial('what a router may not see is not what its clients may not', async (t) => {
  const cluster = await topolvm(t)
  cluster.server.forbidden.add('GET /apis/topolvm.io/v1/logicalvolumes')
  const [agent, router] = await Promise.all([
    cluster.agent(t, { sample: sample.folder }),
    cluster.router(t, 'topolvm.io', { connectSeconds: 0.3 })
  ])
  cluster.announce('worker-1', agent)
  const client = clientOf(t, router)
  const refused = /the router may not see what it needs to: .*does not let us list .*logicalvolumes/
  await fails(t, capacity(client, 'mon'), 'DM_CLUSTER_UNREACHABLE', refused)
  cluster.server.forbidden.clear()
  const patient = clientOf(t, await cluster.router(t, 'topolvm.io', { connectSeconds: 30 }))
  t.is(await capacity(patient, 'mon'), sample.listed('mon').size_bytes)
})

test.serial('a call waits for an agent that is being replaced', async (t) => {
  const cluster = await topolvm(t)
  const [agent, router] = await Promise.all([
    cluster.agent(t, { sample: sample.folder }),
    cluster.router(t, 'topolvm.io', { connectSeconds: 60 })
  ])
  cluster.announce('worker-1', agent)
  const client = clientOf(t, router)
  t.is(await capacity(client, 'mon'), sample.listed('mon').size_bytes)
  // Gone before the cluster knows, then withdrawn, then back with another address.
  await agent.stop()
  const asked = capacity(client, 'tue')
  cluster.withdraw('worker-1')
  const askedLater = capacity(client, 'wed')
  cluster.announce('worker-1', await cluster.agent(t, { sample: sample.folder }))
  t.is(await asked, sample.listed('tue').size_bytes)
  t.is(await askedLater, sample.listed('wed').size_bytes)
})

test.serial('agents that move under load are followed, and no answer is wrong', async (t) => {
  const cluster = await topolvm(t)
  const [one, two, router] = await Promise.all([
    cluster.agent(t, { sample: sample.folder }),
    cluster.agent(t, { sample: sample.folder }),
    cluster.router(t, 'topolvm.io', { connectSeconds: 30 })
  ])
  cluster.announce('worker-1', one)
  const expected = await sample.extents('mon', 'thu')
  let going = true
  const answers: unknown[] = []
  const clients = Array.from({ length: 4 }, async () => {
    const client = clientOf(t, router)
    while (going) {
      const answer = await client.delta({ baseSnapshotId: 'mon', targetSnapshotId: 'thu', maxResults: 10 })
      answers.push(await collectExtents(answer))
    }
  })
  for (let turn = 0; turn < 15; turn++) {
    const before = answers.length
    cluster.announce('worker-1', turn % 2 === 0 ? two : one)
    if (turn % 5 === 1) cluster.server.endWatches()
    if (turn % 5 === 3) {
      cluster.server.compact()
      cluster.server.endWatches({ kind: 'Status', code: 410, message: 'too old resource version' })
    }
    t.true(await eventually(() => answers.length >= before + 8))
  }
  going = false
  await Promise.all(clients)
  for (const answer of answers) t.deepEqual(answer, expected)
  const calls = (agent: Running) => agent.log.filter(({ msg }) => msg === 'call').length
  t.true(calls(one) > 0 && calls(two) > 0, 'both were asked')
})

test.serial('a snapshot too young for the watch is found; without an API server, nothing is said of it', async (t) => {
  const cluster = await topolvm(t)
  const [agent, router] = await Promise.all([
    cluster.agent(t, { sample: sample.folder }),
    cluster.router(t, 'topolvm.io', { connectSeconds: 10, monitoring: 'tcp://127.0.0.1:0' })
  ])
  cluster.announce('worker-1', agent)
  const client = clientOf(t, router)
  t.is(await capacity(client, 'mon'), sample.listed('mon').size_bytes)
  cluster.server.quiet = true
  cluster.server.put(logicalVolume('other-mon', { source: 'pvc-other' }))
  t.is(await capacity(client, 'other-mon'), sample.listed('other-mon').size_bytes)
  cluster.server.quiet = false

  await cluster.server.stop()
  await fails(
    t,
    capacity(client, 'gone'),
    'DM_CLUSTER_UNREACHABLE',
    /no LogicalVolume .*"gone", as known \d+ seconds ago/
  )
  t.is(await capacity(client, 'tue'), sample.listed('tue').size_bytes, 'what is known is answered')
  const call = () => router.log.findLast(({ msg, snapshotId }) => msg === 'call' && snapshotId === 'tue')
  t.true(await eventually(() => call() !== undefined))
  t.is(typeof (call()?.['statistics'] as { placeAgeSeconds?: number }).placeAgeSeconds, 'number')
  t.true((await probe(t, router)).ready.value)
  let age = 0
  const look = async () => {
    age = Number(/^deltamapper_router_cluster_age_seconds (\d+)$/m.exec(await page(router, '/metrics'))?.[1])
  }
  t.true(
    await eventually(() => {
      void look()
      return age > 0
    })
  )

  await cluster.server.listen()
  await fails(t, capacity(client, 'gone'), 'DM_SNAPSHOT_NOT_FOUND', /no LogicalVolume/)
})

test.serial('many who ask for what does not exist are told so, however long a list takes', async (t) => {
  const cluster = await topolvm(t)
  const router = await cluster.router(t, 'topolvm.io', { connectSeconds: 2 })
  const client = clientOf(t, router)
  t.true(await eventually(() => cluster.server.watchers === 2))
  // A list takes longer than the API server may be silent, and no page of it does.
  cluster.server.pageSize = 1
  cluster.server.pageMs = 700
  const asked = Array.from({ length: 20 }, (_, i) => capacity(client, `nothing-${i}`))
  await Promise.all(asked.map((each) => fails(t, each, 'DM_SNAPSHOT_NOT_FOUND')))
  cluster.server.pageMs = Infinity
  await fails(t, capacity(client, 'nothing'), 'DM_CLUSTER_UNREACHABLE', /nothing came of a list/)
})

test.serial('what nothing is heard of gets older, though its watch seems to go on', async (t) => {
  const cluster = await topolvm(t)
  cluster.server.watchesAre = 'forgotten'
  const known = new Cluster(
    new KubernetesApi({ kubeconfig: await cluster.server.kubeconfig(join(folder, 'silent')) }),
    {
      ...{ driver: makeDriver('topolvm', { driverName: 'topolvm.io', patterns: [] }), namespace: 'deltamapper' },
      ...{
        service: 'agents',
        logger: pino({ level: 'silent' }),
        port: 'grpc',
        waitMs: 1000,
        onChange: () => undefined
      },
      silentMs: 2000
    }
  )
  t.teardown(() => known.close())
  t.true(await eventually(() => known.isKnown))
  t.is(known.staleSeconds, undefined)
  // (The watch itself is given up after half a minute.)
  t.true(await eventually(() => (known.staleSeconds ?? 0) >= 3))
})

test.serial('where no object names the node, all agents are asked, except for their volume group', async (t) => {
  const content = {
    apiVersion: 'snapshot.storage.k8s.io/v1',
    kind: 'VolumeSnapshotContent',
    metadata: { name: 'imported' },
    spec: { driver: 'local.csi.example.org', source: { snapshotHandle: 'snap-mon' } },
    status: { snapshotHandle: 'snap-mon' }
  } as KubernetesObject
  const cluster = await topolvm(t, [content])
  const kubernetes = { driver: 'generic', handles: [{ pattern: 'snap-(?<lv>.+)' }] }
  const [one, two, router] = await Promise.all([
    cluster.agent(t, { big: big.folder }),
    cluster.agent(t, { sample: sample.folder }),
    cluster.router(t, 'local.csi.example.org', {}, kubernetes)
  ])
  cluster.announce('worker-1', one)
  cluster.announce('worker-2', two)
  const client = clientOf(t, router)
  t.is(await capacity(client, 'snap-mon'), sample.listed('mon').size_bytes)
  await fails(t, capacity(client, 'snap-sun'), 'DM_SNAPSHOT_NOT_FOUND', /no node has a snapshot "\*\/sun"/)
  cluster.withdraw('worker-2')
  await fails(t, capacity(client, 'snap-sun'), 'DM_AGENT_UNREACHABLE', /the agent of node worker-2 is not there/)
})
