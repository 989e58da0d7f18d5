/**
 * Makes what is in deploy/ twice from what is written once: the Helm chart is where manifests are written, by hand; the plain ones that
 * `kubectl apply --kustomize` takes are the chart's own rendering, comments included. docs/decisions/0012-deploy.md has the reasons.
 *
 *   node scripts/render-deploy.ts            write them
 *   node scripts/render-deploy.ts --check    exit 1 if one is not what it should be
 *
 * test/deploy/rendering.test.ts holds them to it. Helm is brought along (test/lab/deploy-tools.ts).
 */
import { execFile } from 'node:child_process'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { format, resolveConfig } from 'prettier'
import { z } from 'zod'
import { agentConfig } from '../src/agent/config.ts'
import { routerConfig } from '../src/router/config.ts'
import { ensureDeployTools, helm, type Program } from '../test/lab/deploy-tools.ts'

const project = fileURLToPath(new URL('..', import.meta.url))
const chart = 'deploy/helm/deltamapper'

/** Drivers with an overlay of their own. */
export const overlays = ['topolvm', 'openebs', 'harvester'] as const

/** The Kubernetes that Helm takes for granted where it cannot ask one: what the sidecar recommends. */
const kubeVersion = '1.36.0'

/** What the chart's files/ is copied from: Helm reads nothing outside of a chart. */
const chartFiles = {
  'alerts.yaml': 'deploy/observability/alerts.yaml',
  'dashboard.json': 'deploy/observability/dashboard.json'
}

/** Renders the chart, or one that is somewhere else (`from`). `values` are Helm's --set. */
export async function renderChart(
  { path, env }: Program,
  values: readonly string[],
  { release = 'deltamapper', namespace = 'deltamapper', from = chart } = {}
): Promise<string> {
  const settings = values.flatMap((each) => ['--set', each])
  const target = ['--namespace', namespace, '--kube-version', kubeVersion]
  const { stdout } = await promisify(execFile)(path, ['template', release, from, ...target, ...settings], {
    cwd: project,
    env,
    maxBuffer: 2 ** 24
  })
  return stdout
}

/** What the plain manifests are rendered with: nobody is there to change a checksum along with a configuration. */
export function plainValues(driver?: string): string[] {
  return ['rolloutOnConfigurationChange=false', ...(driver === undefined ? [] : [`drivers.${driver}.enabled=true`])]
}

/** All generated files, by their paths in the project. */
export async function renderDeploy(): Promise<Map<string, string>> {
  const program = helm()
  const files = new Map<string, string>()
  for (const [name, source] of Object.entries(chartFiles)) {
    files.set(`${chart}/files/${name}`, await readFile(join(project, source), 'utf8'))
  }
  files.set(`${chart}/values.schema.json`, await valuesSchema())
  const place = async (values: string[], pathOf: (template: string) => string | undefined) => {
    for (const [template, text] of byTemplate(await renderChart(program, values))) {
      const path = pathOf(template)
      if (path !== undefined) files.set(path, await formatted(path, text, template))
    }
  }
  await place(plainValues(), (template) =>
    /^(agent|certificates)\//.test(template) ? `deploy/base/${fileName(template)}` : undefined
  )
  for (const driver of overlays) {
    await place(plainValues(driver), (template) =>
      /^router\/|^certificates\/sidecar/.test(template) ? `deploy/drivers/${driver}/${fileName(template)}` : undefined
    )
  }
  await place([...plainValues(), 'podMonitor.enabled=true', 'prometheusRule.enabled=true'], (template) =>
    template.startsWith('observability/') ? `deploy/observability/${fileName(template)}` : undefined
  )
  return files
}

interface JsonSchema {
  readonly properties?: Readonly<Record<string, JsonSchema>>
  readonly additionalProperties?: unknown
}

/**
 * The chart's schema of values, as it is written, with the fields that the configuration files have: a misspelt one is refused by Helm and not
 * only by the pod that does not start.
 */
async function valuesSchema(): Promise<string> {
  const path = join(project, chart, 'values.schema.json')
  const schema = JSON.parse(await readFile(path, 'utf8')) as {
    properties: {
      agent: { properties: { config: object } }
      router: { properties: { config: object } }
      drivers: { additionalProperties: { properties: { config: object } } }
    }
  }
  const { agent, router, drivers } = schema.properties
  const described = (role: string) => ({ description: `Fields of the ${role}'s configuration file.` })
  const jsonSchemaOf = (type: z.ZodType) =>
    z.toJSONSchema(type, { io: 'input', unrepresentable: 'any' }) as unknown as JsonSchema
  agent.properties.config = { ...described('agent'), ...fieldNames(jsonSchemaOf(agentConfig)) }
  const ofRouter = { ...described('router'), ...fieldNames(jsonSchemaOf(routerConfig)) }
  router.properties.config = ofRouter
  drivers.additionalProperties.properties.config = ofRouter
  return format(JSON.stringify(schema), { ...(await resolveConfig(path)), filepath: path })
}

/** Names only: what a field may hold is for the program to say, and the chart gives what is left out. */
function fieldNames({ properties, additionalProperties }: JsonSchema): object {
  if (properties === undefined || additionalProperties !== false) return {}
  const fields = Object.entries(properties).map(([name, schema]) => [name, fieldNames(schema)])
  return { type: 'object', additionalProperties: false, properties: Object.fromEntries(fields) as object }
}

/** Certificates are told from the rest by their names; everything else is called as in the chart. */
function fileName(template: string): string {
  const [folder, name = ''] = template.split('/')
  return folder === 'certificates' ? `certificates-${name}` : name
}

/** The documents of each template, in the order that Helm gives them, without what only Helm has a use for. */
function byTemplate(rendered: string): Map<string, string> {
  const templates = new Map<string, string>()
  for (const part of rendered.split(/^---\n/m)) {
    const template = /^# Source: deltamapper\/templates\/(.*)$/m.exec(part)?.[1]
    if (template === undefined) continue
    const text = part
      .split('\n')
      .filter((line) => !/^# Source: |^ +(app\.kubernetes\.io\/managed-by|helm\.sh\/chart): /.test(line))
      .join('\n')
    const before = templates.get(template)
    templates.set(template, before === undefined ? text : `${before}---\n${text}`)
  }
  return templates
}

async function formatted(path: string, text: string, template: string): Promise<string> {
  const heading = `# Rendered from ${chart}/templates/${template} by scripts/render-deploy.ts: change it there.\n\n`
  const filepath = join(project, path)
  return format(heading + text, { ...(await resolveConfig(filepath)), filepath })
}

/** Those that are not in the checkout as they should be. */
export async function outdated(files: ReadonlyMap<string, string>): Promise<string[]> {
  const paths: string[] = []
  for (const [path, text] of files) {
    const present = await readFile(join(project, path), 'utf8').catch(() => undefined)
    if (present !== text) paths.push(path)
  }
  return paths
}

if (import.meta.main) {
  await ensureDeployTools()
  let files = await renderDeploy()
  if (process.argv.includes('--check')) {
    const paths = await outdated(files)
    for (const path of paths)
      console.error(`${path} is not what the chart renders; run \`node scripts/render-deploy.ts\``)
    process.exitCode = paths.length === 0 ? 0 : 1
  } else {
    // Twice, because the chart reads the files that the first pass copies into it.
    for (const pass of [1, 2]) {
      if (pass === 2) files = await renderDeploy()
      for (const [path, text] of files) {
        await mkdir(dirname(join(project, path)), { recursive: true })
        await writeFile(join(project, path), text)
      }
    }
  }
}
