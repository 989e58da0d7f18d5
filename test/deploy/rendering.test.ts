/**
 * The chart, the plain manifests and the overlays say the same, as Helm and kustomize themselves see it.
 */
import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'
import { outdated, overlays, plainValues, renderChart, renderDeploy } from '../../scripts/render-deploy.ts'
import { helm, kustomize } from '../lab/deploy-tools.ts'
import { checkDriverName } from '../../src/grpc/identity.ts'
import { find, type Manifest, nameOf, objectsOf } from './objects.ts'
import { project, runTool, toolTest } from './tools.ts'

/** Each object as text, without what only Helm has a use for, in an order of their own. */
function comparable(objects: readonly Manifest[]): string[] {
  return objects
    .map((object) => {
      const copy = structuredClone(object)
      delete copy.metadata.labels?.['helm.sh/chart']
      delete copy.metadata.labels?.['app.kubernetes.io/managed-by']
      return `${nameOf(copy)}: ${JSON.stringify(sorted(copy))}`
    })
    .sort()
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, each]) => [key, sorted(each)])
  )
}

async function build(folder: string): Promise<Manifest[]> {
  const { status, stdout, stderr } = await runTool(kustomize(), ['build', folder])
  if (status !== 0) throw new Error(stderr)
  return objectsOf(stdout)
}

toolTest('what is generated is what the chart renders', async (t) => {
  t.timeout(900_000)
  t.deepEqual(await outdated(await renderDeploy()), [], 'run `node scripts/render-deploy.ts`')
})

for (const overlay of overlays) {
  toolTest(`kustomize makes of the overlay ${overlay} what Helm makes of the chart`, async (t) => {
    const built = await build(`deploy/overlays/${overlay}`)
    const rendered = objectsOf(await renderChart(helm(), plainValues(overlay)))
    t.truthy(find(built, 'Namespace', 'deltamapper'))
    t.true(rendered.length > 15)
    t.deepEqual(comparable(built.filter(({ kind }) => kind !== 'Namespace')), comparable(rendered))
  })
}

toolTest('two drivers share the agents, in a kustomization as docs/kubernetes.md has it', async (t) => {
  const docs = await readFile(join(project, 'docs/kubernetes.md'), 'utf8')
  const [, written = ''] =
    /^ *```yaml\n((?: *#[^\n]*\n)? *resources:\n(?: +- .*deploy\/(?:base|drivers)[^\n]*\n)+)/m.exec(docs) ?? []
  const folder = await mkdtemp(join(tmpdir(), 'deploy-'))
  t.teardown(() => rm(folder, { recursive: true }))
  await cp(join(project, 'deploy'), join(folder, 'deploy'), { recursive: true })
  await mkdir(join(folder, 'mine'))
  await writeFile(join(folder, 'mine/kustomization.yaml'), written)
  const built = await build(join(folder, 'mine'))
  const rendered = objectsOf(await renderChart(helm(), [...plainValues('topolvm'), 'drivers.openebs.enabled=true']))
  t.deepEqual(comparable(built.filter(({ kind }) => kind !== 'Namespace')), comparable(rendered))
})

toolTest('without cert-manager, its objects and nothing else are left out', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'deploy-'))
  try {
    for (const part of ['base', 'drivers', 'overlays', 'components']) {
      await cp(join(project, 'deploy', part), join(folder, part), { recursive: true })
    }
    const wish = ['resources: [../topolvm]', 'components: [../../components/own-certificates]']
    await mkdir(join(folder, 'overlays/mine'))
    await writeFile(join(folder, 'overlays/mine/kustomization.yaml'), wish.join('\n'))
    const without = await build(join(folder, 'overlays/mine'))
    const all = await build('deploy/overlays/topolvm')
    const left = all.filter(({ apiVersion }) => apiVersion !== 'cert-manager.io/v1')
    t.true(left.length < all.length)
    t.deepEqual(comparable(without), comparable(left))
  } finally {
    await rm(folder, { recursive: true })
  }
})

toolTest('deploy/daemonset.yaml is the base of the overlays', async (t) => {
  const [daemonSet] = objectsOf(await readFile(join(project, 'deploy/daemonset.yaml'), 'utf8'))
  t.is(daemonSet?.kind, 'DaemonSet')
  t.deepEqual(
    comparable([daemonSet]),
    comparable((await build('deploy/base')).filter(({ kind }) => kind === 'DaemonSet'))
  )
})

toolTest('helm finds nothing wrong with the chart', async (t) => {
  const { status, stdout } = await runTool(helm(), [
    'lint',
    '--strict',
    'deploy/helm/deltamapper',
    '--set',
    'drivers.topolvm.enabled=true'
  ])
  t.is(status, 0, stdout)
})

toolTest('values that the chart does not know are refused', async (t) => {
  for (const [value, said] of [
    ['agent.logLvel=debug', /logLvel/],
    ['agent.lvm=sudo', /agent\.lvm/],
    ['drivers.topolvm.kind=zfs', /kind/],
    ['drivers.mine.enabled=true', /driverName/],
    ['router.replicas=0', /replicas/],
    ['agent.config.listn={unix:///run/a.sock}', /listn/],
    ['agent.config.lease.holdSecond=5', /holdSecond/],
    ['router.config.maxStream=5', /maxStream/],
    ['drivers.topolvm.config.kubernetes.agent.port=x', /agent/],
    ['drivers.topolvm.driverName=-lvm.example', /driverName/],
    ['sidecar.kubeApi.qps=0', /qps/],
    ['snapshotMetadataService.authority=nonsense', /authority/]
  ] as const) {
    const error = await t.throwsAsync(() => renderChart(helm(), [value]))
    t.regex(error?.message ?? '', said)
  }
})

toolTest('driver names that the router takes are taken, and fields of the configuration at any depth', async (t) => {
  for (const driverName of ['csi.lvm.v2', '3par.example', 'x', 'a'.repeat(63)]) {
    t.notThrows(() => checkDriverName(driverName))
    const values = ['drivers.mine.enabled=true', 'drivers.mine.kind=topolvm', `drivers.mine.driverName=${driverName}`]
    t.true((await renderChart(helm(), values)).includes(`driverName: ${driverName}`), driverName)
  }
  const values = ['agent.config.tls.clientName=x', 'agent.config.era.snapshotCommands.srv.take={snap}']
  t.true((await renderChart(helm(), values)).includes('clientName: x'))
})

toolTest('a change of the configuration changes the pods, so that they start anew', async (t) => {
  const annotation = async (kind: string, values: string[]) => {
    const objects = objectsOf(await renderChart(helm(), ['drivers.topolvm.enabled=true', ...values]))
    const [object] = objects.filter((each) => each.kind === kind)
    return object?.spec.template.metadata.annotations['checksum/configuration'] ?? ''
  }
  for (const [kind, value] of [
    ['DaemonSet', 'agent.config.walkers=2'],
    ['Deployment', 'router.config.connectSeconds=2']
  ] as const) {
    const before = await annotation(kind, [])
    t.regex(before, /^[0-9a-f]{64}$/)
    t.is(await annotation(kind, []), before)
    t.not(await annotation(kind, [value]), before)
  }
})

toolTest('two releases, in one namespace or two, share no object', async (t) => {
  const render = async (release: string, namespace: string) =>
    objectsOf(await renderChart(helm(), ['drivers.topolvm.enabled=true'], { release, namespace }))
  const one = await render('one', 'here')
  const names = new Set(one.map(nameOf))
  for (const object of await render('two', 'here')) t.false(names.has(nameOf(object)), nameOf(object))
  for (const object of await render('one', 'there')) {
    if (object.metadata.namespace === undefined) t.true(['ClusterRole', 'ClusterRoleBinding'].includes(object.kind))
    else t.is(object.metadata.namespace, 'there')
  }
})

toolTest('several drivers have a router each, and one set of agents', async (t) => {
  const drivers = ['topolvm', 'openebs', 'harvester', 'deckhouse']
  const objects = objectsOf(
    await renderChart(
      helm(),
      drivers.map((each) => `drivers.${each}.enabled=true`)
    )
  )
  t.is(objects.filter(({ kind }) => kind === 'DaemonSet').length, 1)
  const routers = objects.filter(({ kind }) => kind === 'Deployment').map(({ metadata }) => metadata.name)
  t.deepEqual(routers.sort(), drivers.map((each) => `deltamapper-router-${each}`).sort())
  t.is(new Set(objects.map((each) => `${nameOf(each)} ${each.apiVersion}`)).size, objects.length)
})

toolTest('the SnapshotMetadataService object comes with the authority, and not without', async (t) => {
  const pem = '-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n'
  const values = ['drivers.topolvm.enabled=true']
  t.false((await renderChart(helm(), values)).includes('SnapshotMetadataService\n'))
  const objects = objectsOf(await renderChart(helm(), [...values, `snapshotMetadataService.authority=${pem}`]))
  const object = find(objects, 'SnapshotMetadataService', 'topolvm.io')
  t.is(Buffer.from(object?.spec.caCert ?? '', 'base64').toString(), pem)
  // An upgrade without the authority must not take it away.
  t.is(object?.metadata.annotations?.['helm.sh/resource-policy'], 'keep')
})

toolTest('the chart depends on nothing that is in a cluster', async (t) => {
  const templates = await readdir(join(project, 'deploy/helm/deltamapper/templates'), { recursive: true })
  for (const each of templates.filter((name) => /\.(yaml|tpl|txt)$/.test(name))) {
    const text = await readFile(join(project, 'deploy/helm/deltamapper/templates', each), 'utf8')
    t.notRegex(text, /\b(lookup|\.Capabilities)\b/, each)
  }
})

toolTest('whichever way it was made, Helm and the script have the same SnapshotMetadataService', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'deploy-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const pem = '-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n'
  await writeFile(join(folder, 'ca.crt'), pem)
  for (const [release, name] of [
    ['deltamapper', 'deltamapper'],
    ['backup', 'cbt']
  ] as const) {
    const script = join(project, 'deploy/certificates/snapshot-metadata-service.sh')
    const words = ['--authority', join(folder, 'ca.crt'), '--namespace', 'here', '--release', release, '--name', name]
    const { stdout } = await promisify(execFile)('bash', [script, ...words, 'topolvm', 'topolvm.io'])
    const [byScript] = objectsOf(stdout)
    const values = ['drivers.topolvm.enabled=true', `snapshotMetadataService.authority=${pem}`]
    const named = name === release ? [] : [`fullnameOverride=${name}`]
    const rendered = objectsOf(await renderChart(helm(), [...values, ...named], { release, namespace: 'here' }))
    const byHelm = find(rendered, 'SnapshotMetadataService', 'topolvm.io')
    t.deepEqual(byScript?.spec, byHelm?.spec)
    // What Helm wants of an object before it takes it over; of its own, it writes the last two itself.
    t.is(byScript?.metadata.labels?.['app.kubernetes.io/managed-by'], 'Helm')
    t.deepEqual(byScript?.metadata.annotations, {
      ...byHelm?.metadata.annotations,
      'meta.helm.sh/release-name': release,
      'meta.helm.sh/release-namespace': 'here'
    })
    const labels = { ...byHelm?.metadata.labels }
    delete labels['helm.sh/chart']
    delete labels['app.kubernetes.io/version']
    t.deepEqual<unknown, unknown>(byScript?.metadata.labels, labels)
  }
})

test('chart and program have one version', async (t) => {
  const { version } = JSON.parse(await readFile(join(project, 'package.json'), 'utf8')) as { version: string }
  const [chart] = objectsOf(await readFile(join(project, 'deploy/helm/deltamapper/Chart.yaml'), 'utf8'))
  t.like(chart, { version, appVersion: version })
  for (const overlay of overlays) {
    const text = await readFile(join(project, 'deploy/overlays', overlay, 'kustomization.yaml'), 'utf8')
    t.regex(text, new RegExp(`newTag: ${version.replaceAll('.', '\\.')}\n`))
  }
})
