/**
 * A CSI driver's flow from router to kernel: a snapshot is backed up, then it and its objects are deleted, and the next
 * backup is an increment of it. Runs inside the kernel lab: node test/lab/run.ts
 * test/kernel/vanished-bases-drivers.test.ts
 */
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { connect, type SnapshotMetadataClient } from '../../src/grpc/client.ts'
import type { KubernetesObject } from '../../src/kubernetes/object.ts'
import { logicalVolume } from '../support/cluster-of-agents.ts'
import type { Extent } from '../support/expected.ts'
import { FakeApiServer } from '../support/fake-api-server.ts'
import { runAgent, runRouter, type Running } from '../support/in-process.ts'
import { answerTo, failure, ask } from './ask.ts'
import { createGroup, createPool, createThin, lvm, prepareLvm, writeBlocks } from './lvm-setup.ts'

const BLOCK = 65_536
const group = 'lvmvg'
const folder = mkdtempSync(join(tmpdir(), 'drivers-'))

prepareLvm()
createGroup(group, '/dev/ubda')
createPool(group, 'pool', 128)
const volume = createThin(group, 'pool', 'data', 32)

const extent = (block: number, count = 1): Extent => [block * BLOCK, count * BLOCK]

/** A snapshot as the driver has it: its object, the handle that its clients know, and its logical volume. */
interface DriverSnapshot {
  readonly object: KubernetesObject
  readonly handle: string
  readonly name: string
}

const topolvm = (name: string): DriverSnapshot => ({ object: logicalVolume(name), handle: name, name })

const openebs = (name: string): DriverSnapshot => ({
  object: {
    apiVersion: 'local.openebs.io/v1alpha1',
    kind: 'LVMSnapshot',
    metadata: {
      name: `snapshot-${name}`,
      namespace: 'openebs',
      labels: { 'openebs.io/persistent-volume': 'pvc-data' }
    },
    spec: { ownerNodeID: 'worker-1', volGroup: group },
    status: { state: 'Ready' }
  } as KubernetesObject,
  handle: `pvc-data@snapshot-${name}`,
  name
})

const slice = (agent: Running) =>
  ({
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: { name: 'agents', namespace: 'deltamapper', labels: { 'kubernetes.io/service-name': 'agents' } },
    endpoints: [
      {
        addresses: ['127.0.0.1'],
        conditions: { ready: true, serving: true, terminating: false },
        nodeName: 'worker-1'
      }
    ],
    ports: [{ name: 'grpc', port: Number(/:(\d+)$/.exec(agent.addresses[0])?.[1]), protocol: 'TCP' }]
  }) as KubernetesObject

async function routed(t: ExecutionContext, server: FakeApiServer, driverName: string, more: object) {
  const router = await runRouter(t, {
    ...{ listen: [`unix://${join(folder, `${driverName}.sock`)}`], driverName, allowLoopbackTcp: true },
    kubernetes: {
      agents: { namespace: 'deltamapper', service: 'agents' },
      kubeconfig: await server.kubeconfig(join(folder, `${driverName}.kubeconfig`)),
      ...more
    }
  })
  const client = connect(router.addresses[0])
  t.teardown(() => client.close())
  return client
}

/** Three backups, each of a snapshot that is deleted afterwards. */
async function backUp(
  t: ExecutionContext,
  server: FakeApiServer,
  client: SnapshotMetadataClient,
  snapshots: readonly DriverSnapshot[],
  first: number
): Promise<void> {
  let base: DriverSnapshot | undefined
  for (const [i, { object, handle, name }] of snapshots.entries()) {
    writeBlocks(volume, first + i, 1, 'b')
    lvm('lvcreate', '--snapshot', '--permission', 'r', '--setactivationskip', 'y', '--name', name, `${group}/data`)
    server.put(object)
    if (base === undefined) t.true((await answerTo(client, { target: handle })).length > 0)
    else t.deepEqual(await answerTo(client, { base: base.handle, target: handle }), [extent(first + i)], handle)
    if (base !== undefined) {
      t.is((await failure(ask(client, { target: base.handle }))).status, 'NOT_FOUND', 'all of it is gone')
    }
    lvm('lvremove', '--force', `${group}/${name}`)
    server.delete(object)
    base = snapshots[i]
  }
}

test('the base and its objects are deleted, and the next backup is incremental: TopoLVM, OpenEBS', async (t) => {
  t.timeout(600_000)
  const agent = await runAgent(t, {
    ...{ live: true, walkers: 1, catalog: join(folder, 'catalog') },
    ...{ listen: ['tcp://127.0.0.1:0'], allowLoopbackTcp: true }
  })
  const server = await FakeApiServer.start(t, [slice(agent)])
  writeBlocks(volume, 0, 20, 'a')
  const days = ['mon', 'tue', 'wed']
  await backUp(t, server, await routed(t, server, 'topolvm.io', {}), days.map(topolvm), 100)
  const client = await routed(t, server, 'local.csi.openebs.io', { driverNamespace: 'openebs' })
  await backUp(
    t,
    server,
    client,
    days.map((day) => openebs(`${day}2`)),
    200
  )
})
