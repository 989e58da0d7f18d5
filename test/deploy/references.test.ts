/**
 * What manifests say of each other, and of the program: names, ports, labels, files, certificates and rights go together, and the
 * configuration files in them are ones that agent and router take.
 */
import type { ExecutionContext } from 'ava'
import { agentConfig } from '../../src/agent/config.ts'
import { routerConfig, type RouterConfig } from '../../src/router/config.ts'
import { makeDriver } from '../../src/router/drivers/kinds.ts'
import {
  configurationOf,
  type Container,
  find,
  type Labels,
  type Manifest,
  nameOf,
  objectsOf,
  type Right,
  rightsOf,
  selectorOf,
  selects,
  type Workload,
  workloads
} from './objects.ts'
import { runTool, toolTest } from './tools.ts'
import { type Variant, renderVariants } from './variants.ts'
import { kustomize } from '../lab/deploy-tools.ts'

const overlays = ['topolvm', 'openebs', 'harvester']
let variants: Promise<Variant[]> | undefined

/** Every variant of the chart. (The overlays are equal to one of them: rendering.test.ts.) */
function eachVariant(title: string, check: (t: ExecutionContext, variant: Variant) => void): void {
  toolTest(title, async (t) => {
    t.timeout(900_000)
    for (const variant of await (variants ??= renderVariants())) check(t, variant)
  })
}

function portsOf(workload: Workload): Map<string, number> {
  return new Map(workload.pod.containers.flatMap(({ ports }) => ports.map((each) => [each.name, each.containerPort])))
}

function agents(objects: readonly Manifest[]): Workload {
  const [agent] = workloads(objects).filter(({ manifest }) => manifest.kind === 'DaemonSet')
  if (agent === undefined) throw new Error('there is no DaemonSet')
  return agent
}

const routers = (objects: readonly Manifest[]) =>
  workloads(objects).filter(({ manifest }) => manifest.kind === 'Deployment')

const agentConfiguration = (objects: readonly Manifest[]) =>
  agentConfig.parse(configurationOf(agents(objects), objects))
const routerConfiguration = (router: Workload, objects: readonly Manifest[]): RouterConfig =>
  routerConfig.parse(configurationOf(router, objects))

/** Secret → what its certificate is for, of those that cert-manager makes. */
function certificates(objects: readonly Manifest[]): Map<string, { dnsNames: string[]; usages: string[] }> {
  return new Map(objects.filter(({ kind }) => kind === 'Certificate').map(({ spec }) => [spec.secretName, spec]))
}

eachVariant('the configuration files are ones that agent and router take', (t, { objects }) => {
  t.notThrows(() => agentConfiguration(objects))
  for (const router of routers(objects)) t.notThrows(() => routerConfiguration(router, objects))
})

eachVariant('whatever a pod mounts is there', (t, { name, values, objects }) => {
  const own = !values.includes('certificates.certManager.enabled=false')
  for (const workload of workloads(objects)) {
    const { pod } = workload
    const volumes = new Map(pod.volumes.map((each) => [each.name, each]))
    for (const { volumeMounts } of workload.pod.containers) {
      for (const mount of volumeMounts) t.true(volumes.has(mount.name), `${name}: ${mount.name}`)
    }
    for (const [volume, { configMap, secret, hostPath, emptyDir }] of volumes) {
      const used = workload.pod.containers.some(({ volumeMounts }) => volumeMounts.some((each) => each.name === volume))
      t.true(used, `${name}: ${volume} is mounted nowhere`)
      if (configMap) t.truthy(find(objects, 'ConfigMap', configMap.name), volume)
      else if (secret) t.is(certificates(objects).has(secret.secretName), own, `${name}: ${secret.secretName}`)
      else t.truthy(hostPath ?? emptyDir, volume)
    }
    t.truthy(find(objects, 'ServiceAccount', pod.serviceAccountName))
  }
})

eachVariant(
  'files named in a configuration are in a folder that is mounted, and the socket in one that can be written',
  (t, { objects }) => {
    const covered = (container: Container | undefined, path: string) =>
      container?.volumeMounts.some(({ mountPath }) => path.startsWith(`${mountPath}/`)) ?? false
    const check = (workload: Workload, { tls, listen }: { tls?: object | undefined; listen: string[] }) => {
      const [container] = workload.pod.containers
      const files = Object.values(tls ?? {}).filter((each: string) => each.startsWith('/')) as string[]
      t.is(files.length, 3)
      for (const file of files) {
        t.true(covered(container, file), file)
        t.true(
          ['tls.crt', 'tls.key', 'ca.crt'].some((each) => file.endsWith(`/${each}`)),
          file
        )
      }
      for (const address of listen)
        if (address.startsWith('unix:')) t.true(covered(container, address.slice('unix://'.length)))
    }
    const configuration = agentConfiguration(objects)
    check(agents(objects), configuration)
    t.true(covered(agents(objects).pod.containers[0], configuration.catalog))
    for (const router of routers(objects)) check(router, routerConfiguration(router, objects))
  }
)

eachVariant('the sidecar asks at the socket that its router listens on', (t, { objects }) => {
  for (const router of routers(objects)) {
    const [, sidecar] = router.pod.containers
    const address = sidecar?.args.find((each) => each.startsWith('--csi-address='))?.slice('--csi-address='.length)
    t.deepEqual(routerConfiguration(router, objects).listen, [`unix://${address}`])
    const folders = router.pod.containers.map(
      ({ volumeMounts }) => volumeMounts.find(({ mountPath }) => address?.startsWith(`${mountPath}/`))?.name
    )
    t.is(folders[0], folders[1])
    t.truthy(folders[0])
    // The router's socket lets in nobody but its own user.
    t.is(router.pod.securityContext.runAsUser, 65532)
    for (const { securityContext } of router.pod.containers) t.is(securityContext['runAsUser'], undefined)
  }
})

eachVariant('selectors select the pods that are meant, and no others', (t, { objects }) => {
  const all = workloads(objects)
  const selected = (selector: Labels) =>
    all.filter((workload) => selects(selector, workload)).map(({ manifest }) => manifest.metadata.name)
  for (const object of objects) {
    if (['DaemonSet', 'Deployment', 'Service', 'PodDisruptionBudget', 'NetworkPolicy'].includes(object.kind)) {
      t.deepEqual(selected(selectorOf(object)), [object.metadata.name], nameOf(object))
    }
    if (object.kind === 'PodMonitor') t.is(selected(selectorOf(object)).length, all.length)
  }
  const [routersOnly] = find(objects, 'NetworkPolicy', agents(objects).manifest.metadata.name)?.spec.ingress ?? []
  for (const { podSelector } of routersOnly?.from ?? []) {
    t.deepEqual(
      selected(podSelector.matchLabels),
      routers(objects).map(({ manifest }) => manifest.metadata.name)
    )
  }
})

eachVariant('ports that are named are there, and something listens on them', (t, { objects }) => {
  for (const workload of workloads(objects)) {
    const ports = portsOf(workload)
    t.is(new Set(ports.values()).size, ports.size, 'two containers of a pod cannot share a port')
    for (const { startupProbe, livenessProbe, readinessProbe } of workload.pod.containers) {
      for (const probe of [startupProbe, livenessProbe, readinessProbe]) {
        if (probe) t.true(ports.has(probe.httpGet.port), probe.httpGet.port)
      }
    }
    for (const object of objects) {
      const { kind, spec } = object
      if (kind === 'Service' && selects(selectorOf(object), workload)) {
        for (const { targetPort } of spec.ports) t.true(ports.has(targetPort), targetPort)
      }
      if (kind === 'NetworkPolicy' && selects(selectorOf(object), workload)) {
        // Each port is let in somewhere: a probe or a scrape that is left out would be a riddle.
        const named = spec.ingress.flatMap((each) => each.ports.map(({ port }) => port))
        t.deepEqual(named.sort(), [...ports.keys()].sort())
      }
      if (kind === 'PodMonitor') for (const { port } of spec.podMetricsEndpoints) t.true(ports.has(port), port)
    }
  }
  const portIn = (address: string | undefined) => Number(/:(\d+)$/.exec(address ?? '')?.[1])
  const portOf = (workload: Workload, name: string) => portsOf(workload).get(name) ?? NaN
  const agent = agents(objects)
  const { listen, monitoring } = agentConfiguration(objects)
  t.is(portIn(listen.find((each) => each.startsWith('tcp:'))), portOf(agent, 'grpc'))
  t.is(portIn(monitoring), portOf(agent, 'metrics'))
  for (const router of routers(objects)) {
    t.is(portIn(routerConfiguration(router, objects).monitoring), portOf(router, 'metrics'))
    const { args = [] } = router.pod.containers[1] ?? {}
    t.true(args.includes(`--port=${portOf(router, 'sidecar')}`))
    t.true(args.includes(`--http-endpoint=:${portOf(router, 'sidecar-health')}`))
  }
})

eachVariant('agents and routers expect of each other the names that are in their certificates', (t, { objects }) => {
  const made = certificates(objects)
  if (made.size === 0) return
  const shown = ({ pod }: Workload, volume: string) => {
    const found = (pod.volumes as { name: string; secret?: { secretName: string } }[]).find(
      ({ name }) => name === volume
    )
    return made.get(found?.secret?.secretName ?? '')
  }
  const agent = agents(objects)
  const { tls } = agentConfiguration(objects)
  t.like(shown(agent, 'tls'), { usages: ['server auth'] })
  for (const router of routers(objects)) {
    const { tls: routerTls } = routerConfiguration(router, objects)
    t.deepEqual(shown(agent, 'tls')?.dnsNames, [routerTls?.agentName ?? ''])
    t.deepEqual(shown(router, 'router-tls')?.dnsNames, [tls?.clientName ?? ''])
    t.deepEqual(shown(router, 'router-tls')?.usages, ['client auth'])
    // An agent's certificate must not open other agents, nor the sidecar's either.
    const { name, namespace } = router.manifest.metadata
    t.deepEqual(shown(router, 'sidecar-tls')?.usages, ['server auth'])
    t.true(shown(router, 'sidecar-tls')?.dnsNames.includes(`${name}.${namespace}.svc`))
    t.false(shown(router, 'sidecar-tls')?.dnsNames.includes(tls?.clientName ?? ''))
  }
  for (const { kind, spec } of objects.filter((each) => each.kind === 'Certificate')) {
    if (spec.issuerRef.kind === 'Issuer') t.truthy(find(objects, 'Issuer', spec.issuerRef.name), kind)
  }
})

eachVariant(
  'the SnapshotMetadataService object is named after the driver, and leads to its router',
  (t, { objects }) => {
    for (const { metadata, spec } of objects.filter(({ kind }) => kind === 'SnapshotMetadataService')) {
      const [host = '', port] = spec.address.split(':')
      const [service = '', namespace] = host.split('.')
      const router = routers(objects).find(({ manifest }) => manifest.metadata.name === service)
      t.is(router && routerConfiguration(router, objects).driverName, metadata.name)
      const found = find(objects, 'Service', service)
      t.is(found?.metadata.namespace, namespace)
      t.is(String(found?.spec.ports[0].port), port)
      t.true(certificates(objects).get(`${service}-tls`)?.dnsNames.includes(host))
    }
  }
)

const snapshots = 'snapshot.storage.k8s.io'
/** What the sidecar does, as upstream's own role has it, and the classes that it leaves out. */
const sidecarRights = [
  'create authentication.k8s.io/tokenreviews',
  'create authorization.k8s.io/subjectaccessreviews',
  ...['get', 'list'].map((verb) => `${verb} cbt.storage.k8s.io/snapshotmetadataservices`),
  `get ${snapshots}/volumesnapshots`,
  `get ${snapshots}/volumesnapshotcontents`,
  ...['get', 'list'].map((verb) => `${verb} ${snapshots}/volumesnapshotclasses`)
]

eachVariant(
  'a router may do what it and the sidecar do, and nothing else: no rule is missing, and none unused',
  (t, variant) => {
    const { objects, values } = variant
    if (values.includes('rbac.create=false')) return
    for (const router of routers(objects)) {
      const { cluster, namespace } = rightsOf(router, objects)
      const { driverName } = routerConfiguration(router, objects)
      const read = resourcesOf(router, objects).flatMap(({ path }) => {
        const [, group = '', resource = ''] =
          /^\/apis?\/(?:([^/]+)\/)?v[^/]+\/(?:namespaces\/[^/]+\/)?([^/]+)$/.exec(path) ?? []
        t.not(resource, '', path)
        return ['list', 'watch'].map((verb) => `${verb} ${group}/${resource}`)
      })
      const secrets = values.includes('sidecar.readSecrets=true') ? ['get /secrets'] : []
      const said = (rights: readonly Right[]) =>
        [...new Set(rights.map(({ group, resource, verb }) => `${verb} ${group}/${resource}`))].sort()
      t.deepEqual(said(cluster), [...new Set([...sidecarRights, ...read, ...secrets])].sort(), driverName)
      t.deepEqual(
        said(namespace),
        ['list', 'watch'].map((verb) => `${verb} discovery.k8s.io/endpointslices`)
      )
    }
  }
)

/** What the router of this configuration lists and watches of its driver's. */
function resourcesOf(router: Workload, objects: readonly Manifest[]): { path: string }[] {
  const { driverName, kubernetes } = routerConfiguration(router, objects)
  const kind = kubernetes?.driver
  if (kind === undefined) throw new Error(`the configuration for ${driverName} does not say how its handles are read`)
  return Object.values(makeDriver(kind, { driverName, patterns: [] }).resources)
}

eachVariant('routers look for the agents where they are', (t, { objects }) => {
  for (const router of routers(objects)) {
    const { kubernetes } = routerConfiguration(router, objects)
    const { namespace, service = '', port } = kubernetes?.agents ?? {}
    const found = find(objects, 'Service', service)
    t.is(found?.metadata.namespace, namespace)
    t.is(found?.spec.clusterIP, 'None')
    t.deepEqual(
      found?.spec.ports.map(({ name }) => name),
      [port ?? '']
    )
    t.true(selects(found === undefined ? { none: '' } : selectorOf(found), agents(objects)))
  }
})

eachVariant("OpenShift's constraints grant what the agents' pods say of themselves", (t, { values, objects }) => {
  const found = objects.find(({ kind }) => kind === 'SecurityContextConstraints') as unknown as
    Record<string, unknown> | undefined
  t.is(found !== undefined, values.includes('openShift.securityContextConstraints=true'))
  if (found === undefined) return
  const { pod, manifest } = agents(objects)
  const [container] = pod.containers
  t.deepEqual(found['users'], [`system:serviceaccount:${manifest.metadata.namespace}:${pod.serviceAccountName}`])
  t.is(found['allowPrivilegedContainer'], container?.securityContext['privileged'] === true)
  const { add = [] } = (container?.securityContext['capabilities'] ?? {}) as { add?: string[] }
  t.deepEqual(found['allowedCapabilities'], add)
  t.is(found['allowHostPID'], pod.hostPID === true)
  const kinds = ['configMap', 'emptyDir', 'hostPath', 'secret'].filter((kind) =>
    pod.volumes.some((each) => kind in each)
  )
  t.deepEqual(found['volumes'], kinds)
  for (const router of routers(objects)) {
    const binding = find(objects, 'RoleBinding', `${router.pod.serviceAccountName}-nonroot`)
    t.is(binding?.roleRef?.name, 'system:openshift:scc:nonroot-v2')
    t.is(binding?.subjects?.[0]?.name, router.pod.serviceAccountName)
  }
})

eachVariant('pods are no more privileged than they say', (t, { values, objects }) => {
  const { pod } = agents(objects)
  t.is(pod.automountServiceAccountToken, false)
  const isPrivileged = !values.includes('agent.privileged=false')
  t.like(
    pod.containers[0]?.securityContext,
    isPrivileged
      ? { privileged: true }
      : { privileged: undefined, allowPrivilegeEscalation: false, capabilities: { add: ['SYS_ADMIN'], drop: ['ALL'] } }
  )
  t.is(pod.hostPID, values.includes('agent.lvm=nsenter') ? true : undefined)
  t.is(pod.hostNetwork, undefined)
  t.is(pod.hostIPC, undefined)
  for (const workload of workloads(objects)) {
    for (const { securityContext, resources } of workload.pod.containers) {
      t.is(securityContext['readOnlyRootFilesystem'], true)
      t.truthy(resources['requests'])
      t.truthy(resources['limits'])
    }
  }
  for (const router of routers(objects)) {
    t.like(router.pod.securityContext, { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } })
    for (const { securityContext } of router.pod.containers) {
      t.like(securityContext, { allowPrivilegeEscalation: false, capabilities: { drop: ['ALL'] } })
    }
    const paths = router.pod.volumes.filter((each) => 'hostPath' in each)
    t.deepEqual(paths, [])
  }
  // Of the host, the agent can write to the catalog's folder only.
  const ofTheHost = new Set(pod.volumes.filter(({ hostPath }) => hostPath !== undefined).map(({ name }) => name))
  const written = pod.containers[0]?.volumeMounts.filter(
    ({ name, readOnly }) => readOnly !== true && ofTheHost.has(name)
  )
  t.deepEqual(
    written?.map(({ name }) => name),
    ['catalog']
  )
})

toolTest('the images are ours and one of the sidecar, with a version each', async (t) => {
  for (const overlay of overlays) {
    const { stdout } = await runTool(kustomize(), ['build', `deploy/overlays/${overlay}`])
    const images = workloads(objectsOf(stdout)).flatMap(({ pod }) => pod.containers.map(({ image }) => image))
    t.deepEqual([...new Set(images)].sort(), [
      'deltamapper:0.1.0',
      'registry.k8s.io/sig-storage/csi-snapshot-metadata:v1.1.0'
    ])
  }
})
