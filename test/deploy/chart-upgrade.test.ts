/**
 * `helm upgrade` from the last chart, which is kept as it was in test/fixtures/charts: its values are still taken,
 * Kubernetes takes every change, and nothing goes that somebody depends on. (A release of the chart adds its package
 * there.)
 */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { renderChart } from '../../scripts/render-deploy.ts'
import { helm } from '../lab/deploy-tools.ts'
import { type Manifest, nameOf, objectsOf } from './objects.ts'
import { project, toolTest } from './tools.ts'

const folder = join(project, 'test/fixtures/charts')
const charts = readdirSync(folder).filter((name) => name.endsWith('.tgz'))
const pem = '-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n'

const values: Readonly<Record<string, readonly string[]>> = {
  'one driver': ['drivers.topolvm.enabled=true'],
  'all drivers, and the object made by the chart': [
    ...['topolvm', 'openebs', 'harvester', 'deckhouse'].map((each) => `drivers.${each}.enabled=true`),
    `snapshotMetadataService.authority=${pem}`
  ],
  'certificates of ones own': [
    'drivers.openebs.enabled=true',
    'certificates.certManager.enabled=false',
    'agent.lvm=nsenter'
  ]
}

/** What the API server lets nobody change of an object: to change it, Helm would have to remove the object first. */
function immutable({ kind, spec, roleRef }: Manifest): unknown {
  if (kind === 'DaemonSet' || kind === 'Deployment') return spec.selector
  if (kind === 'Service') return spec.clusterIP === 'None'
  return roleRef
}

/** What an upgrade from one to the other would break. */
function broken(before: readonly Manifest[], after: readonly Manifest[]): string[] {
  const there = new Map(after.map((each) => [nameOf(each), each]))
  return before.flatMap((old) => {
    const now = there.get(nameOf(old))
    if (now === undefined)
      return old.metadata.annotations?.['helm.sh/resource-policy'] === 'keep' ? [] : [`${nameOf(old)} goes`]
    return isDeepStrictEqual(immutable(old), immutable(now)) ? [] : [`${nameOf(old)} cannot be changed so`]
  })
}

for (const chart of charts) {
  for (const [name, set] of Object.entries(values)) {
    toolTest(`${chart} is upgraded to this one: ${name}`, async (t) => {
      t.timeout(900_000)
      const [before, after] = await Promise.all(
        [join(folder, chart), undefined].map(async (from) =>
          objectsOf(await renderChart(helm(), set, from === undefined ? {} : { from }))
        )
      )
      t.true((before ?? []).length > 5)
      t.deepEqual(broken(before ?? [], after ?? []), [])
      const service = (objects: readonly Manifest[] = []) =>
        objects.filter(({ kind }) => kind === 'SnapshotMetadataService')
      t.deepEqual(
        service(after).map(({ spec, metadata }) => [metadata.name, spec]),
        service(before).map(({ spec, metadata }) => [metadata.name, spec]),
        'backup software finds the service where it was'
      )
    })
  }
}

toolTest(
  'whoever made the SnapshotMetadataService by the script may let the chart make it, and the other way round',
  async (t) => {
    t.timeout(900_000)
    const [script, chart] = await Promise.all(
      [values['one driver'] ?? [], ['drivers.topolvm.enabled=true', `snapshotMetadataService.authority=${pem}`]].map(
        async (set) => objectsOf(await renderChart(helm(), set))
      )
    )
    t.deepEqual(broken(script ?? [], chart ?? []), [])
    // (The object itself is to be kept.)
    t.deepEqual(broken(chart ?? [], script ?? []), [])
  }
)

toolTest('the check finds what would break', async (t) => {
  const objects = objectsOf(await renderChart(helm(), values['one driver'] ?? []))
  const other = objectsOf(await renderChart(helm(), ['drivers.topolvm.enabled=true', 'fullnameOverride=other']))
  t.true(broken(objects, other).includes('DaemonSet/deltamapper-agent goes'))
  const changed = structuredClone(objects)
  for (const each of changed) if (each.kind === 'DaemonSet') each.spec.selector = { matchLabels: { a: 'b' } }
  t.deepEqual(broken(objects, changed), ['DaemonSet/deltamapper-agent cannot be changed so'])
})
