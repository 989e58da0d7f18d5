/**
 * Manifests are what Kubernetes takes: held to the types that are generated from its OpenAPI description (and from cert-manager's and the
 * Prometheus operator's), by the compiler, which also finds fields that do not exist, and by their schemas, which also know patterns.
 */
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import ts from 'typescript'
import { z } from 'zod'
import { type Manifest, nameOf, objectsOf, type Spec } from './objects.ts'
import { project, toolTest } from './tools.ts'
import { renderVariants } from './variants.ts'

/** The module that has the types of an API version. */
function moduleOf(apiVersion: string): string {
  if (apiVersion.startsWith('cert-manager.io/')) return `@kubernetes-models/cert-manager/${apiVersion}`
  if (apiVersion.startsWith('monitoring.coreos.com/')) return `@kubernetes-models/prometheus-operator/${apiVersion}`
  return `kubernetes-models/${apiVersion}`
}

/** Kinds that nobody has published types of. (kubernetes-csi/external-snapshot-metadata, client/config/crd) */
const snapshotMetadataService = z.strictObject({
  apiVersion: z.literal('cbt.storage.k8s.io/v1beta1'),
  kind: z.literal('SnapshotMetadataService'),
  metadata: z.strictObject({
    name: z.string(),
    labels: z.record(z.string(), z.string()).optional(),
    annotations: z.record(z.string(), z.string()).optional()
  }),
  spec: z.strictObject({
    address: z.string().regex(/^[a-z0-9.-]+:\d+$/),
    audience: z.string().min(1),
    caCert: z.base64().min(1)
  })
})

/** (openshift/api, security/v1/types.go: fields that the chart has no use for are left out.) */
const securityContextConstraints = z.strictObject({
  apiVersion: z.literal('security.openshift.io/v1'),
  kind: z.literal('SecurityContextConstraints'),
  metadata: z.strictObject({ name: z.string(), labels: z.record(z.string(), z.string()) }),
  users: z.array(z.string().regex(/^system:serviceaccount:[^:]+:[^:]+$/)),
  groups: z.array(z.string()),
  ...Object.fromEntries(
    [
      ...['allowPrivilegedContainer', 'allowPrivilegeEscalation', 'allowHostDirVolumePlugin', 'allowHostPID'],
      ...['allowHostIPC', 'allowHostNetwork', 'allowHostPorts', 'readOnlyRootFilesystem']
    ].map((name) => [name, z.boolean()])
  ),
  ...Object.fromEntries(
    ['allowedCapabilities', 'defaultAddCapabilities', 'requiredDropCapabilities'].map((name) => [
      name,
      z.array(z.string())
    ])
  ),
  ...Object.fromEntries(
    ['runAsUser', 'fsGroup', 'supplementalGroups', 'seLinuxContext'].map((name) => [
      name,
      z.strictObject({ type: z.enum(['RunAsAny', 'MustRunAs', 'MustRunAsNonRoot', 'MustRunAsRange']) })
    ])
  ),
  volumes: z.array(z.enum(['configMap', 'emptyDir', 'hostPath', 'secret']))
})

interface Model {
  validate(): void
}

/** Throws an Error that says what is wrong. */
async function validate(object: Manifest): Promise<void> {
  if (object.apiVersion === 'cbt.storage.k8s.io/v1beta1') {
    snapshotMetadataService.parse(object)
    return
  }
  if (object.kind === 'SecurityContextConstraints') {
    securityContextConstraints.parse(object)
    return
  }
  const models = (await import(moduleOf(object.apiVersion))) as Record<string, new (data: unknown) => Model>
  const Kind = models[object.kind]
  if (Kind === undefined) throw new Error(`${object.apiVersion} has no ${object.kind}`)
  new Kind(object).validate()
}

/** What the compiler says of objects that are written down as constants of their types. */
function compilerErrors(objects: readonly Manifest[]): string[] {
  const lines = objects.map(
    (object, index) =>
      `const object${index}: import('${moduleOf(object.apiVersion)}').I${object.kind} = ${JSON.stringify(object)}; void object${index}`
  )
  const name = join(project, 'test/deploy/written-down.ts')
  const options: ts.CompilerOptions = {
    ...{ strict: true, noEmit: true, skipLibCheck: true, types: [] },
    ...{ module: ts.ModuleKind.NodeNext, target: ts.ScriptTarget.ES2024 }
  }
  const host = ts.createCompilerHost(options)
  const files = ts.createCompilerHost(options)
  const text = lines.join('\n')
  host.getSourceFile = (file, ...rest) =>
    file === name ? ts.createSourceFile(file, text, ts.ScriptTarget.ES2024) : files.getSourceFile(file, ...rest)
  host.fileExists = (file) => file === name || files.fileExists(file)
  host.readFile = (file) => (file === name ? text : files.readFile(file))
  return ts.getPreEmitDiagnostics(ts.createProgram([name], options, host)).map(({ messageText, start = 0 }) => {
    const object = objects[text.slice(0, start).split('\n').length - 1]
    return `${object === undefined ? '' : nameOf(object)}: ${ts.flattenDiagnosticMessageText(messageText, ' ')}`
  })
}

const untyped = ['SnapshotMetadataService', 'SecurityContextConstraints']
const typed = (objects: readonly Manifest[]) => objects.filter(({ kind }) => !untyped.includes(kind))

test('the checks find what is wrong', async (t) => {
  const good: Manifest = {
    apiVersion: 'policy/v1',
    kind: 'PodDisruptionBudget',
    metadata: { name: 'good' },
    spec: { maxUnavailable: 1 } as unknown as Spec
  }
  await t.notThrowsAsync(() => validate(good))
  const bad = { ...good, spec: { maxUnavailable: [1] } as unknown as Spec }
  await t.throwsAsync(() => validate(bad), { message: /maxUnavailable/ })
  const misspelt = { ...good, spec: { maxUnavailabel: 1 } as unknown as Spec }
  t.deepEqual(compilerErrors([good]), [])
  const [error, ...others] = compilerErrors([good, misspelt])
  t.regex(error ?? '', /PodDisruptionBudget\/good.*maxUnavailabel/)
  t.deepEqual(others, [])
})

toolTest('whatever the chart renders is what Kubernetes takes', async (t) => {
  t.timeout(900_000)
  const variants = await renderVariants()
  for (const { name, objects } of variants) {
    for (const object of objects) await t.notThrowsAsync(() => validate(object), `${name}: ${nameOf(object)}`)
  }
  t.deepEqual(compilerErrors(typed(variants.flatMap(({ objects }) => objects))), [])
})

test('and so is every plain manifest', async (t) => {
  t.timeout(900_000)
  const files = ['deploy/lab/demo.yaml']
  for (const folder of ['deploy/base', 'deploy/drivers', 'deploy/observability', 'deploy/overlays']) {
    files.push(...(await readdir(join(project, folder), { recursive: true })).map((file) => join(folder, file)))
  }
  const objects: Manifest[] = []
  for (const file of files.filter((each) => each.endsWith('.yaml'))) {
    const parsed = objectsOf(await readFile(join(project, file), 'utf8'))
    // (Rules for a Prometheus without operator are no object, and what kustomize reads never gets to Kubernetes.)
    objects.push(...parsed.filter(({ apiVersion, kind }) => apiVersion !== undefined && kind !== 'Kustomization'))
  }
  t.true(objects.length > 30)
  for (const object of objects) await t.notThrowsAsync(() => validate(object), nameOf(object))
  t.deepEqual(compilerErrors(typed(objects)), [])
})
