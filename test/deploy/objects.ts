/**
 * Kubernetes objects as tests of deploy/ look at them: of rendered YAML, told by kind and name, and what their pods are made of. Their types
 * are for reading only; what is right is for schemas.test.ts to say.
 */
import { parse, parseAllDocuments } from 'yaml'

export type Labels = Record<string, string>

export interface Container {
  name: string
  image: string
  args: string[]
  ports: { name: string; containerPort: number }[]
  volumeMounts: { name: string; mountPath: string; subPath?: string; readOnly?: boolean }[]
  securityContext: Record<string, unknown>
  resources: Record<string, unknown>
  startupProbe?: Probe
  livenessProbe?: Probe
  readinessProbe?: Probe
}

export interface Probe {
  httpGet: { port: string; path: string }
}

export interface Volume {
  name: string
  configMap?: { name: string }
  secret?: { secretName: string }
  hostPath?: { path: string }
  emptyDir?: object
}

export interface PodSpec {
  serviceAccountName: string
  automountServiceAccountToken?: boolean
  hostPID?: boolean
  hostIPC?: boolean
  hostNetwork?: boolean
  securityContext: Record<string, unknown>
  containers: Container[]
  volumes: Volume[]
}

/** The fields of all kinds in one: which of them are there, the kind says. */
export interface Spec {
  selector: Labels | { matchLabels: Labels }
  template: { metadata: { labels: Labels; annotations: Labels }; spec: PodSpec }
  clusterIP?: string
  ports: { name: string; port: number; targetPort: string }[]
  podSelector: { matchLabels: Labels }
  ingress: { ports: { port: string }[]; from?: { podSelector: { matchLabels: Labels } }[] }[]
  podMetricsEndpoints: { port: string }[]
  secretName: string
  dnsNames: string[]
  usages: string[]
  issuerRef: { kind: string; name: string }
  address: string
  caCert: string
}

export interface Manifest {
  apiVersion: string
  kind: string
  metadata: { name: string; namespace?: string; labels?: Labels; annotations?: Labels }
  spec: Spec
  data?: Labels
  rules?: { apiGroups: string[]; resources: string[]; verbs: string[] }[]
  roleRef?: { kind: string; name: string }
  subjects?: { kind: string; name: string; namespace: string }[]
}

/** @throws an Error for what is no YAML; keys given twice included */
export function objectsOf(text: string): Manifest[] {
  return parseAllDocuments(text).flatMap((document) => {
    if (document.errors[0] !== undefined) throw document.errors[0]
    const content = document.toJS() as Manifest | null
    return content === null ? [] : [content]
  })
}

export function nameOf({ kind, metadata }: Manifest): string {
  return `${kind}/${metadata.name}`
}

export function find(objects: readonly Manifest[], kind: string, name: string): Manifest | undefined {
  return objects.find((each) => each.kind === kind && each.metadata.name === name)
}

/** The labels that an object wants of pods. */
export function selectorOf({ kind, spec }: Manifest): Labels {
  if (kind === 'NetworkPolicy') return spec.podSelector.matchLabels
  return (kind === 'Service' ? spec.selector : spec.selector['matchLabels']) as Labels
}

export interface Workload {
  readonly manifest: Manifest
  readonly labels: Labels
  readonly pod: PodSpec
}

/** Everything that makes pods. */
export function workloads(objects: readonly Manifest[]): Workload[] {
  return objects
    .filter(({ kind }) => kind === 'DaemonSet' || kind === 'Deployment')
    .map((manifest) => {
      const { metadata, spec } = manifest.spec.template
      return { manifest, labels: metadata.labels, pod: spec }
    })
}

export function selects(selector: Labels, { labels }: Workload): boolean {
  return Object.entries(selector).every(([key, value]) => labels[key] === value)
}

/** The configuration file that a pod's first container is started with, from the ConfigMap that is mounted there. */
export function configurationOf({ pod, manifest }: Workload, objects: readonly Manifest[]): unknown {
  const [container] = pod.containers
  const path = container?.args[container.args.indexOf('--config') + 1]
  const mount = container?.volumeMounts.find(({ mountPath }) => mountPath === path)
  const volume = pod.volumes.find(({ name }) => name === mount?.name)
  const text = find(objects, 'ConfigMap', volume?.configMap?.name ?? '')?.data?.[mount?.subPath ?? '']
  if (text === undefined) throw new Error(`${nameOf(manifest)} mounts no configuration at ${path}`)
  return parse(text)
}

export interface Right {
  group: string
  resource: string
  verb: string
}

/** What the account of a router's pod may do: in the cluster and in its own namespace. */
export function rightsOf(router: Workload, objects: readonly Manifest[]): Record<'cluster' | 'namespace', Right[]> {
  const account = router.pod.serviceAccountName
  const rights = (bindingKind: string) =>
    objects
      .filter(({ kind, subjects }) => kind === bindingKind && subjects?.some(({ name }) => name === account))
      .flatMap(({ roleRef }) => find(objects, roleRef?.kind ?? '', roleRef?.name ?? '')?.rules ?? [])
      .flatMap(({ apiGroups, resources, verbs }) =>
        apiGroups.flatMap((group) => resources.flatMap((resource) => verbs.map((verb) => ({ group, resource, verb }))))
      )
  return { cluster: rights('ClusterRoleBinding'), namespace: rights('RoleBinding') }
}

export const may = (rights: readonly Right[], group: string, resource: string, verb: string) =>
  rights.some((each) => each.group === group && each.resource === resource && each.verb === verb)
