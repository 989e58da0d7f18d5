/**
 * The whole way that backup software's question goes: Kubernetes objects, a token, a sidecar with TLS, our router, our agent on a real recorded
 * pool. The answers are the agent's own, whatever breaks in between.
 */
import { createHook } from 'node:async_hooks'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { status } from '@grpc/grpc-js'
import test, { type ExecutionContext } from 'ava'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import { connect } from '../../src/grpc/client.ts'
import type { KubernetesObject } from '../../src/kubernetes/object.ts'
import { type ClusterOptions, connectToCluster, type Resumption } from '../../src/kubernetes/snapshot-metadata.ts'
import { complaint, runCommand } from '../cli/run-command.ts'
import { readPoolDescription, unpackRecordedPool } from '../fixtures/recorded-pool.ts'
import { eventually } from '../grpc/extent-backend.ts'
import { Authority } from '../support/certificates.ts'
import { ClusterOfAgents, logicalVolume } from '../support/cluster-of-agents.ts'
import { collectExtents } from '../support/collect-extents.ts'
import { FakeApiServer } from '../support/fake-api-server.ts'
import type { Running } from '../support/in-process.ts'
import { boundSnapshot, Sidecar } from '../support/sidecar.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
// One after the other: everything runs in this process, and what has to answer in time must get its turn.
const driver = 'topolvm.io'
const audience = 'topolvm-cbt'
let authority: Authority
let recorded: string
/** The snapshots of one volume, oldest first. */
let harbour: string[]
let another: string

test.before(async () => {
  authority = await Authority.create(join(folder, 'authority'))
  recorded = await unpackRecordedPool()
  const { snapshots, volumes } = await readPoolDescription(recorded)
  const of = (volume: string) => snapshots.filter((each) => each.volume === volume).map(({ name }) => name)
  harbour = of(volumes[0].name)
  another = of(volumes[1].name)[0]
})

interface Site {
  readonly api: FakeApiServer
  readonly agent: Running
  readonly router: Running
  readonly sidecar: Sidecar
  readonly kubeconfig: string
}

let files = 0
/** Everything, from the API server to the agent. VolumeSnapshots are called as in the recorded pool. */
async function site(t: ExecutionContext): Promise<Site> {
  const objects: KubernetesObject[] = [...harbour, another].flatMap((name, hour) => [
    logicalVolume(name, { source: name === another ? 'pvc-other' : 'pvc-harbour', hour }),
    ...boundSnapshot(driver, name, name)
  ])
  const cluster = await ClusterOfAgents.create(t, folder, authority, objects)
  const api = cluster.server
  const [agent, router] = await Promise.all([cluster.agent(t, { demo: recorded }), cluster.router(t, driver)])
  cluster.announce('worker-1', agent)
  const tls = await authority.issue('localhost')
  const sidecar = await Sidecar.start(t, { driver: router.addresses[0], api, audience, tls })
  api.put(await sidecar.serviceObject())
  return { api, agent, router, sidecar, kubeconfig: await api.kubeconfig(join(folder, `kube-${files++}`)) }
}

function client(t: ExecutionContext, { kubeconfig }: Pick<Site, 'kubeconfig'>, options: ClusterOptions = {}) {
  const connected = connectToCluster({ kubeconfig, pauseMs: 100, tries: 10, ...options })
  t.teardown(() => connected.close())
  return connected
}

/** What the agent itself answers. */
async function straight(t: ExecutionContext, { agent }: Site, base: string | undefined, target: string) {
  const direct = connect(agent.addresses[0])
  t.teardown(() => direct.close())
  const answer =
    base === undefined
      ? await direct.allocated({ snapshotId: `demo/${target}` })
      : await direct.delta({ baseSnapshotId: `demo/${base}`, targetSnapshotId: `demo/${target}` })
  return { capacityBytes: answer.capacityBytes, extents: await collectExtents(answer) }
}

async function fails(t: ExecutionContext, promise: Promise<unknown>, code: ErrorCode, words = /./) {
  const error = await t.throwsAsync(promise, { instanceOf: DeltamapperError, message: words })
  t.is(error.code, code, error.line)
}

test.serial('through Kubernetes, the answers are those of the agent', async (t) => {
  const everything = await site(t)
  const kube = client(t, everything)
  const [base, middle, target] = [harbour[0], harbour[2], harbour.at(-1)!]
  for (const [since, name] of [
    [undefined, base],
    [undefined, target],
    [base, target],
    [middle, target],
    [target, target]
  ] as const) {
    const request = { namespace: 'shop', snapshotName: name }
    const answer =
      since === undefined ? await kube.allocated(request) : await kube.delta({ ...request, baseSnapshotName: since })
    const { capacityBytes, extents } = await straight(t, everything, since, name)
    t.is(answer.capacityBytes, capacityBytes)
    t.deepEqual(await collectExtents(answer), extents, `${since} ${name}`)
  }
  // By handle, and without the objects of the base.
  const baseSnapshotHandle = await kube.handle({ namespace: 'shop', snapshotName: base })
  for (const object of boundSnapshot(driver, base, base)) everything.api.delete(object)
  const request = { namespace: 'shop', snapshotName: target, baseSnapshotHandle }
  const { extents } = await straight(t, everything, base, target)
  t.deepEqual(await collectExtents(await kube.delta(request)), extents)
  t.is(everything.api.tokens.size, 1, 'one token did for all of it')
  const [{ serviceAccount }] = everything.api.tokens.values()
  t.is(serviceAccount, 'backup/velero', 'the account that we are')
})

test.serial(
  'a stream that breaks is resumed: cut connections, a router that restarts, the time limit of the sidecar',
  async (t) => {
    const everything = await site(t)
    const { sidecar } = everything
    const events: Resumption[] = []
    const kube = client(t, everything, { onResume: (event) => events.push(event) })
    const request = { namespace: 'shop', snapshotName: harbour.at(-1)!, maxResults: 1 }
    const { extents } = await straight(t, everything, undefined, request.snapshotName)
    t.true(extents.length > 6)
    sidecar.breakdowns.push(
      { after: 2, how: 'cut' },
      { after: 0, how: { code: status.UNAVAILABLE, details: 'error reading from server: EOF' } },
      { after: 1, how: { code: status.DEADLINE_EXCEEDED, details: 'context deadline exceeded' } },
      { after: 1, how: { code: status.INTERNAL, details: 'Received RST_STREAM with code 2 (Internal server error)' } },
      { after: 1, how: { code: status.UNAVAILABLE, details: 'DM_AGENT_UNREACHABLE: the agent was lost; ask again' } }
    )
    t.deepEqual(await collectExtents(await kube.allocated(request)), extents)
    t.is(sidecar.breakdowns.length, 0)
    t.true(events.length >= 5, String(events.length))
    const offsets = sidecar.requests.map((each) => Number(each['starting_offset']))
    t.is(offsets[0], 0)
    t.true(offsets.at(-1)! > 0)
    t.deepEqual(
      offsets,
      [...offsets].sort((one, other) => one - other),
      'it never went back'
    )
  }
)

test.serial('a token that expires meanwhile is renewed', async (t) => {
  const everything = await site(t)
  const { sidecar, api } = everything
  const kube = client(t, everything)
  const request = { namespace: 'shop', snapshotName: harbour.at(-1)!, maxResults: 1 }
  const { extents } = await straight(t, everything, undefined, request.snapshotName)
  await collectExtents(await kube.allocated(request))
  // Revoked behind our back, as when the service account's secret keys are rotated.
  api.tokens.clear()
  sidecar.breakdowns.push({ after: 2, how: 'cut' })
  t.deepEqual(await collectExtents(await kube.allocated(request)), extents)
  t.true(api.tokens.size >= 1)
  // Good for less than it takes to be sure of it: each call gets its own.
  api.tokens.clear()
  api.tokenSeconds = 30
  await collectExtents(await kube.allocated(request))
  const before = api.tokens.size
  await collectExtents(await kube.allocated(request))
  t.is(api.tokens.size, before + 1)
})

test.serial('what is resumed is the same snapshot, or nothing', async (t) => {
  const everything = await site(t)
  const { sidecar, api } = everything
  const name = harbour.at(-1)!
  const [snapshot, content] = boundSnapshot(driver, name, name)
  const kube = client(t, everything, {
    onResume: () => {
      // Somebody deletes it, and makes a new one of that name.
      api.delete(snapshot)
      api.put(snapshot)
      api.put(content)
    }
  })
  sidecar.breakdowns.push({ after: 2, how: 'cut' })
  const answer = await kube.allocated({ namespace: 'shop', snapshotName: name, maxResults: 1 })
  sidecar.breakdowns.push({ after: 1, how: 'hang' })
  await fails(t, collectExtents(answer), 'DM_SNAPSHOT_CHANGED', /deleted or replaced/)
  t.is(sidecar.breakdowns.length, 0)
  t.true(await eventually(() => sidecar.running.size === 0), 'its call is ended')
})

test.serial('an answer that nobody reads is ended with its reader', async (t) => {
  const everything = await site(t)
  const { sidecar } = everything
  sidecar.breakdowns.push({ after: 1, how: 'hang' })
  const request = { namespace: 'shop', snapshotName: harbour.at(-1)!, maxResults: 1 }
  const { batches } = await client(t, everything).allocated(request)
  t.is(sidecar.running.size, 1)
  await batches[Symbol.asyncIterator]().return?.()
  t.true(await eventually(() => sidecar.running.size === 0))
})

test.serial('what does not come back is an error, after a few tries', async (t) => {
  const everything = await site(t)
  const { sidecar } = everything
  const events: Resumption[] = []
  const kube = client(t, everything, { tries: 3, pauseMs: 500, onResume: (event) => events.push(event) })
  const request = { namespace: 'shop', snapshotName: harbour.at(-1)!, maxResults: 1 }
  const { batches } = await kube.allocated(request)
  const reader = batches[Symbol.asyncIterator]()
  await reader.next()
  sidecar.stop()
  const rest = async () => {
    while (!(await reader.next()).done);
  }
  await fails(t, rest(), 'DM_UNREACHABLE', /the snapshot metadata service at localhost:\d+ is not available/)
  t.true(events.length >= 2)
  await sidecar.listen()
  t.true((await collectExtents(await kube.allocated(request))).length > 0)
})

test.serial('what cannot be answered has its own code, and does not ask twice', async (t) => {
  const everything = await site(t)
  const { api, sidecar } = everything
  const kube = client(t, everything)
  const namespace = 'shop'
  const [first, second] = harbour
  const allocated = (snapshotName: string) => kube.allocated({ namespace, snapshotName })
  const delta = (baseSnapshotName: string, snapshotName: string) =>
    kube.delta({ namespace, snapshotName, baseSnapshotName })
  // The driver's own errors pass through the sidecar.
  await fails(t, delta(second, first), 'DM_ORDER_REVERSED')
  await fails(t, delta(another, second), 'DM_VOLUMES_DIFFER', /"pvc-other"/)
  await fails(t, kube.delta({ namespace, snapshotName: second, baseSnapshotHandle: 'gone' }), 'DM_SNAPSHOT_NOT_FOUND')
  t.is(sidecar.requests.length, 3)

  const asked = api.requests.length
  for (const [name, code] of [
    ['', 'DM_ARGUMENT_MISSING'],
    ['..', 'DM_ARGUMENT_INVALID'],
    ['A b', 'DM_ARGUMENT_INVALID']
  ] as const) {
    await fails(t, allocated(name), code)
    await fails(t, kube.allocated({ namespace: name, snapshotName: first }), code)
    await fails(t, kube.handle({ namespace, snapshotName: name }), code)
  }
  t.is(api.requests.length, asked, 'nothing of that reached the API server')
  await fails(t, delta('', first), 'DM_ARGUMENT_MISSING')
  await fails(t, kube.delta({ namespace, snapshotName: first, baseSnapshotHandle: '' }), 'DM_ARGUMENT_MISSING')
  for (const address of ['', 'junk', 'localhost:99999']) {
    const error = t.throws(() => client(t, everything, { address }), { instanceOf: DeltamapperError })
    t.is(error?.code, 'DM_ARGUMENT_INVALID')
  }

  await fails(t, allocated('nothing'), 'DM_SNAPSHOT_NOT_FOUND', /no VolumeSnapshot shop\/nothing/)
  api.put({ apiVersion: 'snapshot.storage.k8s.io/v1', kind: 'VolumeSnapshot', metadata: { name: 'new', namespace } })
  await fails(t, allocated('new'), 'DM_SNAPSHOT_NOT_READY', /shop\/new is not ready to use/)
  for (const object of boundSnapshot('ebs.csi.aws.com', 'elsewhere', 'snap-1')) api.put(object)
  await fails(t, allocated('elsewhere'), 'DM_CLUSTER_SETUP', /ebs\.csi\.aws\.com offers no snapshot metadata/)
  await fails(t, delta('elsewhere', first), 'DM_VOLUMES_DIFFER', /driver ebs\.csi\.aws\.com/)
  const [stolen] = boundSnapshot(driver, 'stolen', 'x')
  api.put({ ...stolen, status: { boundVolumeSnapshotContentName: `snapcontent-${first}` } } as KubernetesObject)
  await fails(t, allocated('stolen'), 'DM_CLUSTER_SETUP', /do not belong to each other/)
  t.is(sidecar.requests.length, 3, 'nothing of that reached the sidecar')

  api.forbidden.add('POST /api/v1/namespaces/other/serviceaccounts/account/token')
  const stranger = client(t, everything, { serviceAccount: 'other/account' })
  await fails(
    t,
    stranger.allocated({ namespace, snapshotName: first }),
    'DM_ACCESS_DENIED',
    /serviceaccounts\/account\/token/
  )
  const service = await sidecar.serviceObject()
  const { spec } = service as unknown as { spec: Record<string, string> }
  const withSpec = (more: object) => api.put({ ...service, spec: { ...spec, ...more } } as KubernetesObject)
  withSpec({ audience: 'another' })
  await fails(t, allocated(first), 'DM_ACCESS_DENIED', /unable to authenticate/)
  withSpec({ address: 'localhost:99999' })
  await fails(t, allocated(first), 'DM_CLUSTER_SETUP', /address .*"localhost:99999", is not HOST:PORT/)
  withSpec({ caCert: 'bm9uZQ==' })
  await fails(t, allocated(first), 'DM_CLUSTER_SETUP', /caCert .*no PEM certificate/)
  withSpec({ caCert: '' })
  await fails(t, allocated(first), 'DM_CLUSTER_SETUP', /lacks address, audience or caCert/)
  const impostor = await Authority.create(join(folder, 'impostor'))
  withSpec({ caCert: (await readFile(impostor.certificate)).toString('base64') })
  // Whoever may try again does not: it would be in vain.
  const refused = allocated(first)
  await fails(
    t,
    refused,
    'DM_CLUSTER_SETUP',
    /not of the authority in spec\.caCert .*: unable to verify the first certificate$/
  )
  withSpec({ address: spec['address'].replace('localhost', '127.0.0.1') })
  await fails(t, allocated(first), 'DM_CLUSTER_SETUP', /or not for this address: .*(IP|altnames)/i)
  const forwarded = client(t, everything, { address: spec['address'].replace('localhost', '127.0.0.1') })
  withSpec({})
  const nowhere = client(t, everything, { tries: 1, address: '127.0.0.1:1' })
  await fails(
    t,
    nowhere.allocated({ namespace, snapshotName: first }),
    'DM_UNREACHABLE',
    /service at 127\.0\.0\.1:1 \(in place of localhost:\d+\) is not/
  )
  t.truthy((await forwarded.allocated({ namespace, snapshotName: first })).capacityBytes)
  await api.stop()
  await fails(
    t,
    client(t, everything, { tries: 2 }).allocated({ namespace, snapshotName: first }),
    'DM_CLUSTER_UNREACHABLE'
  )
})

test.serial('a call can be cancelled, and has a deadline', async (t) => {
  const everything = await site(t)
  const kube = client(t, everything)
  const request = { namespace: 'shop', snapshotName: harbour.at(-1)!, maxResults: 1 }
  const controller = new AbortController()
  const { batches } = await kube.allocated({ ...request, signal: controller.signal })
  const reader = batches[Symbol.asyncIterator]()
  await reader.next()
  controller.abort()
  await t.throwsAsync(async () => {
    while (!(await reader.next()).done);
  })
  await fails(t, kube.allocated({ ...request, deadlineMs: 0 }), 'DM_DEADLINE_EXCEEDED')
  // Longer than a timer can be.
  const month = { ...request, deadlineMs: 30 * 24 * 3600 * 1000 }
  t.true((await collectExtents(await kube.allocated(month))).length > 0)
})

test.serial('nothing is left of a deadline after its call', async (t) => {
  const everything = await site(t)
  const kube = client(t, everything)
  const deadlineMs = 12_345_678
  const timers = new Set<number>()
  const hook = createHook({
    init(id, type, _trigger, resource: { _idleTimeout?: number }) {
      if (type === 'Timeout' && resource._idleTimeout === deadlineMs) timers.add(id)
    },
    destroy: (id) => timers.delete(id)
  }).enable()
  t.teardown(() => hook.disable())
  const answer = await kube.allocated({ namespace: 'shop', snapshotName: harbour.at(-1)!, deadlineMs })
  t.is(timers.size, 1)
  await collectExtents(answer)
  t.true(await eventually(() => timers.size === 0))
  const failing = kube.allocated({ namespace: 'shop', snapshotName: 'nothing', deadlineMs })
  await fails(t, failing, 'DM_SNAPSHOT_NOT_FOUND')
  t.true(await eventually(() => timers.size === 0))
})

test.serial('the API server over HTTPS, with its own authority', async (t) => {
  const api = await FakeApiServer.start(
    t,
    boundSnapshot(driver, 'monday', 'handle-1'),
    await authority.issue('localhost')
  )
  const kube = client(t, { kubeconfig: await api.kubeconfig(join(folder, `kube-${files++}`)) })
  t.is(await kube.handle({ namespace: 'shop', snapshotName: 'monday' }), 'handle-1')
})

test.serial('the command says the same as the agent’s', async (t) => {
  const everything = await site(t)
  const { kubeconfig, agent, sidecar, api } = everything
  const [base, target] = [harbour[0], harbour.at(-1)!]
  const kube = (...args: string[]) => runCommand(['kube', ...args, '--kubeconfig', kubeconfig])
  const own = (...args: string[]) => runCommand([...args, '--endpoint', agent.addresses[0]])
  const [asked, expected] = await Promise.all([
    kube('delta', 'shop', target, '--base', base, '-o', 'json'),
    own('delta', `demo/${base}`, `demo/${target}`, '-o', 'json')
  ])
  t.deepEqual(asked, expected)
  t.is(asked.status, 0)
  sidecar.breakdowns.push({ after: 1, how: 'cut' })
  const [resumed, whole] = await Promise.all([
    kube('allocated', 'shop', target, '-o', 'ndjson', '--max-results', '7'),
    own('allocated', `demo/${target}`, '-o', 'ndjson')
  ])
  t.is(resumed.status, 0)
  t.is(resumed.stdout, whole.stdout)
  t.regex(resumed.stderr, /deltamapper: .*asking again, from \d+ on\n/)
  const none = await kube('allocated', 'shop', 'nothing')
  t.is(none.status, 1)
  t.is(none.stdout, '')
  t.regex(complaint(none), /no VolumeSnapshot shop\/nothing; .*\(DM_SNAPSHOT_NOT_FOUND\)/)
  for (const { stderr, stdout } of [asked, resumed, none]) {
    for (const secret of [api.token, ...api.tokens.keys()]) t.false((stderr + stdout).includes(secret))
  }
})

test.serial('no token gets into a log', async (t) => {
  const everything = await site(t)
  const { api, agent, router } = everything
  await collectExtents(await client(t, everything).allocated({ namespace: 'shop', snapshotName: harbour[0] }))
  t.true(await eventually(() => router.log.some(({ msg }) => msg === 'call')))
  for (const { log } of [agent, router]) {
    for (const secret of [api.token, ...api.tokens.keys()]) t.false(JSON.stringify(log).includes(secret))
  }
})
