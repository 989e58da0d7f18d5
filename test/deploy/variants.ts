/**
 * The chart's values in the combinations that make different manifests, rendered: what holds of manifests has to hold of all of these.
 */
import { renderChart } from '../../scripts/render-deploy.ts'
import { helm } from '../lab/deploy-tools.ts'
import { type Manifest, objectsOf } from './objects.ts'

const drivers = ['topolvm', 'openebs', 'harvester', 'deckhouse'].map((each) => `drivers.${each}.enabled=true`)
const pem = '-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n'

const variants: Readonly<Record<string, readonly string[]>> = {
  'as it comes': [],
  'all drivers': drivers,
  'everything switched on': [
    ...drivers,
    ...['podMonitor', 'prometheusRule', 'grafanaDashboard'].map((each) => `${each}.enabled=true`),
    ...['podMonitor', 'prometheusRule'].map((each) => `${each}.labels.release=prometheus`),
    `snapshotMetadataService.authority=${pem}`,
    'drivers.openebs.config.kubernetes.driverNamespace=openebs',
    'agent.config.monitoring=tcp://[::]:8081',
    'router.config.monitoring=tcp://[::]:8081',
    'sidecar.readSecrets=true',
    'sidecar.extraArgs={--v=5}',
    'imagePullSecrets[0].name=registry',
    `image.digest=sha256:${'0'.repeat(64)}`,
    'router.priorityClassName=system-cluster-critical',
    'router.tolerations[0].operator=Exists',
    'agent.podAnnotations.a=b',
    'agent.extraEnv[0].name=UV_THREADPOOL_SIZE',
    'agent.extraEnv[0].value=\\"64\\"',
    'networkPolicy.clients[0].namespaceSelector.matchLabels.backup=yes',
    'networkPolicy.monitoring[0].namespaceSelector.matchLabels.team=monitoring',
    'serviceAccount.annotations.a=b',
    'router.service.annotations.a=b',
    'helmTest.base=monday',
    'helmTest.target=tuesday'
  ],
  'on OpenShift': [...drivers, 'openShift.securityContextConstraints=true', 'agent.lvm=nsenter'],
  'an agent that is not privileged': [
    'openShift.securityContextConstraints=true',
    'drivers.topolvm.enabled=true',
    'agent.privileged=false',
    'agent.devicePluginResources.devices\\.example\\.org/thin-pools=1'
  ],
  "the host's LVM, with nsenter": ['drivers.topolvm.enabled=true', 'agent.lvm=nsenter'],
  "the host's LVM, with chroot": ['drivers.topolvm.enabled=true', 'agent.lvm=chroot'],
  'a host without /etc/lvm': ['drivers.openebs.enabled=true', 'agent.hostLvmConfiguration=false'],
  'an issuer of the cluster': [
    'drivers.topolvm.enabled=true',
    'certificates.certManager.issuerRef.kind=ClusterIssuer',
    'certificates.certManager.issuerRef.name=ours'
  ],
  'all that can be left out, left out': [
    'drivers.harvester.enabled=true',
    ...['certificates.certManager', 'networkPolicy', 'router.podDisruptionBudget'].map(
      (each) => `${each}.enabled=false`
    ),
    'rbac.create=false'
  ],
  'a driver of ones own': [
    'fullnameOverride=cbt',
    'drivers.mine.enabled=true',
    'drivers.mine.driverName=lvm.example.org',
    'drivers.mine.kind=generic',
    'drivers.mine.config.kubernetes.handles[0].pattern=(?<vg>[^/]+)/(?<lv>.+)'
  ]
}

export interface Variant {
  readonly name: string
  readonly values: readonly string[]
  readonly objects: readonly Manifest[]
}

export async function renderVariants(): Promise<Variant[]> {
  return Promise.all(
    Object.entries(variants).map(async ([name, values]) => {
      // (Helm takes commas apart.)
      const objects = objectsOf(
        await renderChart(
          helm(),
          values.map((each) => each.replaceAll(',', '\\,'))
        )
      )
      return { name, values, objects }
    })
  )
}
