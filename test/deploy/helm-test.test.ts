/**
 * What `helm test` runs, run: the pod's own command, against a cluster that the mock plays, with the rights that the
 * command needs.
 */
import { join } from 'node:path'
import { renderChart } from '../../scripts/render-deploy.ts'
import { startMock } from '../../src/mock/mock.ts'
import test from 'ava'
import { runCommand } from '../cli/run-command.ts'
import { helm } from '../lab/deploy-tools.ts'
import { testFolder } from '../support/test-folder.ts'
import { type Manifest, may, objectsOf, type PodSpec, rightsOf, type Workload } from './objects.ts'
import { toolTest } from './tools.ts'

const folder = testFolder(test)

/** The hook's pod, as a workload. */
function hookOf(objects: readonly Manifest[]): Workload {
  const manifest = objects.find(({ kind }) => kind === 'Pod')
  if (manifest === undefined) throw new Error('there is no pod')
  return { manifest, labels: manifest.metadata.labels ?? {}, pod: manifest.spec as unknown as PodSpec }
}

toolTest(
  'it asks for a delta of the snapshots that were named, and has one; with rights for that and nothing else',
  async (t) => {
    t.timeout(900_000)
    const mock = await startMock({ scenario: 'honest', kubernetes: join(folder, 'mock') })
    t.teardown(() => mock.stop())
    const { kubeconfig, namespace } = mock.kubernetes!
    const [first, second] = mock.snapshots
    const names = [`helmTest.namespace=${namespace}`, `helmTest.base=${first?.id}`, `helmTest.target=${second?.id}`]
    const objects = objectsOf(await renderChart(helm(), ['drivers.topolvm.enabled=true', ...names]))
    const hook = hookOf(objects)
    const [container] = hook.pod.containers
    const { status, stdout, stderr } = await runCommand([...(container?.args ?? []), '--kubeconfig', kubeconfig])
    t.is(status, 0, stderr)
    t.regex(stdout, /changed of .*; complete\n$/)

    const { cluster, namespace: own } = rightsOf(hook, objects)
    const granted = [...cluster, ...own].map(({ group, resource, verb }) => `${verb} ${group}/${resource}`)
    t.deepEqual(granted.sort(), [
      'create /serviceaccounts/token',
      'get cbt.storage.k8s.io/snapshotmetadataservices',
      'get snapshot.storage.k8s.io/volumesnapshotcontents',
      'get snapshot.storage.k8s.io/volumesnapshots'
    ])
    t.true(may(own, '', 'serviceaccounts/token', 'create'), 'tokens in its own namespace only')
    const hooks = objects.filter(({ metadata }) => metadata.annotations?.['helm.sh/hook'] === 'test')
    t.true(hooks.every(({ metadata }) => metadata.name === 'deltamapper-test') && hooks.length === 6)
  }
)

toolTest('without a target there is no test, and without a base it asks what is allocated', async (t) => {
  t.timeout(900_000)
  const without = objectsOf(await renderChart(helm(), ['drivers.topolvm.enabled=true']))
  t.false(without.some(({ kind }) => kind === 'Pod'))
  const objects = objectsOf(await renderChart(helm(), ['helmTest.target=tuesday', 'helmTest.namespace=shop']))
  t.deepEqual(hookOf(objects).pod.containers[0]?.args, ['kube', 'allocated', 'shop', 'tuesday'])
})
