/**
 * What the chart renders, started: an agent and a router as processes of their own, with the configuration files and certificates that their pods
 * mount (only paths and addresses are moved to this machine), and an API server that is asked for nothing that the router's role does not grant.
 */
import { execFile } from 'node:child_process'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import { plainValues, renderChart } from '../../scripts/render-deploy.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { connect } from '../../src/grpc/client.ts'
import type { KubernetesObject } from '../../src/kubernetes/object.ts'
import { writeSamplePool } from '../agent/sample-pool.ts'
import { helm } from '../lab/deploy-tools.ts'
import { logicalVolume } from '../support/cluster-of-agents.ts'
import { collectExtents } from '../support/collect-extents.ts'
import { FakeApiServer } from '../support/fake-api-server.ts'
import { Listener } from '../support/listener.ts'
import { testFolder } from '../support/test-folder.ts'
import { configurationOf, find, type Manifest, may, objectsOf, rightsOf, type Workload, workloads } from './objects.ts'
import { project, toolTest } from './tools.ts'

const folder = testFolder(test)

interface Configuration {
  tls: Record<string, string>
  kubernetes?: object
}

/** A configuration with what is the pod's own put into a folder. */
function moved(configuration: unknown, place: string): Configuration {
  const text = JSON.stringify(configuration)
    .replaceAll('/etc/deltamapper/tls', join(place, 'tls'))
    .replaceAll('/run/deltamapper', place)
    .replaceAll('/var/lib/deltamapper', place)
    .replaceAll(/0\.0\.0\.0:\d+/g, '127.0.0.1:0')
  return JSON.parse(text) as Configuration
}

/** Mounts the secret that a volume of a pod is made of. */
async function mount({ pod }: Workload, volume: string, secrets: readonly Manifest[], place: string): Promise<void> {
  const name = pod.volumes.find((each) => each.name === volume)?.secret?.secretName ?? ''
  await mkdir(join(place, 'tls'), { recursive: true })
  for (const [file, content] of Object.entries(find(secrets, 'Secret', name)?.data ?? {})) {
    await writeFile(join(place, 'tls', file), Buffer.from(content, 'base64'))
  }
}

/** What a probe of a pod's first container gets. */
async function probe({ pod }: Workload, which: 'livenessProbe' | 'readinessProbe', { log }: Listener): Promise<number> {
  const address = log.find(({ msg }) => msg === 'listening')?.['monitoring'] as string
  const path = pod.containers[0]?.[which]?.httpGet.path ?? ''
  return (await fetch(`${address.replace('tcp:', 'http:')}${path}`)).status
}

async function start(t: ExecutionContext, routerSecret = 'router-tls') {
  const objects = objectsOf(await renderChart(helm(), plainValues('topolvm')))
  const [agentPods, routerPods] = ['DaemonSet', 'Deployment'].map((kind) =>
    workloads(objects).find(({ manifest }) => manifest.kind === kind)
  ) as [Workload, Workload]
  const issue = join(project, 'deploy/certificates/issue.sh')
  const secrets = objectsOf((await promisify(execFile)(issue, ['topolvm'], { cwd: folder })).stdout)
  const sample = await writeSamplePool(join(folder, `pool-${routerSecret}`))
  const [agentPlace, routerPlace] = ['a', 'r'].map((each) => join(folder, each + routerSecret[7])) as [string, string]
  await mount(agentPods, 'tls', secrets, agentPlace)
  await mount(routerPods, routerSecret, secrets, routerPlace)

  const agent = await Listener.start(t, agentPlace, 'agent', {
    ...moved(configurationOf(agentPods, objects), agentPlace),
    // The one thing that this machine has not: thin pools.
    ...{ live: false, recorded: { vg0: sample.folder } }
  })
  const server = await FakeApiServer.start(t, [logicalVolume('mon'), logicalVolume('thu', { hour: 1 })])
  const service = objects.find(({ kind, spec }) => kind === 'Service' && spec.clusterIP === 'None')
  server.put({
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: {
      name: 'slice',
      namespace: service?.metadata.namespace,
      labels: { 'kubernetes.io/service-name': service?.metadata.name }
    },
    endpoints: [{ addresses: ['127.0.0.1'], conditions: { ready: true }, nodeName: 'worker-1' }],
    ports: [{ name: service?.spec.ports[0]?.name, port: Number(/:(\d+)$/.exec(agent.addresses[1] ?? '')?.[1]) }]
  } as unknown as KubernetesObject)
  const configuration = moved(configurationOf(routerPods, objects), routerPlace)
  const router = await Listener.start(t, routerPlace, 'router', {
    ...configuration,
    connectSeconds: 2,
    kubernetes: { ...configuration.kubernetes, kubeconfig: await server.kubeconfig(join(routerPlace, 'kubeconfig')) }
  })
  const client = connect(router.addresses[0] ?? '')
  t.teardown(() => client.close())
  return { objects, agentPods, routerPods, agent, router, server, client, sample }
}

toolTest('agent and router run with what is rendered for them, and ask for nothing that they may not', async (t) => {
  t.timeout(900_000)
  const { objects, agentPods, routerPods, agent, router, server, client, sample } = await start(t)
  const delta = await client.delta({ baseSnapshotId: 'mon', targetSnapshotId: 'thu' })
  t.deepEqual(await collectExtents(delta), await sample.extents('mon', 'thu'))

  for (const which of ['livenessProbe', 'readinessProbe'] as const) {
    t.is(await probe(agentPods, which, agent), 200)
    t.is(await probe(routerPods, which, router), 200)
  }

  const { cluster, namespace } = rightsOf(routerPods, objects)
  const verbs: Record<string, string> = { GET: 'list', WATCH: 'watch' }
  t.true(server.requests.length >= 4)
  const asked = new Set<string>()
  for (const request of new Set(server.requests)) {
    const [, method = '', group = '', where, resource = ''] =
      /^(\w+) \/apis?\/(?:([^/]+)\/)?v[^/]+\/(?:namespaces\/([^/]+)\/)?([^/]+)$/.exec(request) ?? []
    const rights = where === routerPods.manifest.metadata.namespace ? [...cluster, ...namespace] : cluster
    t.true(may(rights, group, resource, verbs[method] ?? ''), request)
    asked.add(`${verbs[method]} ${resource}`)
  }
  // What the router does not ask for is the sidecar's, which shares its account: no right is left over.
  const unasked = [...cluster, ...namespace].map(({ verb, resource }) => `${verb} ${resource}`)
  t.deepEqual(unasked.filter((each) => !asked.has(each)).toSorted(), [
    'create subjectaccessreviews',
    'create tokenreviews',
    'get snapshotmetadataservices',
    'get volumesnapshotclasses',
    'get volumesnapshotcontents',
    'get volumesnapshots',
    'list snapshotmetadataservices',
    'list volumesnapshotclasses'
  ])
})

toolTest("the sidecar's certificate does not open an agent", async (t) => {
  t.timeout(900_000)
  const { agent, client } = await start(t, 'sidecar-tls')
  const error = await t.throwsAsync(async () => collectExtents(await client.allocated({ snapshotId: 'mon' })), {
    instanceOf: DeltamapperError
  })
  t.is(error?.code, 'DM_AGENT_UNREACHABLE')
  t.truthy(agent.said('a client was refused'))
})
