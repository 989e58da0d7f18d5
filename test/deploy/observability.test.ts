/**
 * Alerts and dashboard: Prometheus takes what they ask, they ask for metrics and labels that agent and router have, and each alert fires
 * when it has to.
 */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { parse, stringify } from 'yaml'
import { AgentMetrics } from '../../src/agent/metrics.ts'
import { errorRegistry } from '../../src/errors.ts'
import type { Certificates } from '../../src/grpc/tls.ts'
import { processMetrics } from '../../src/monitoring/metrics.ts'
import { Readiness } from '../../src/monitoring/readiness.ts'
import { routerMetrics } from '../../src/router/metrics.ts'
import { promtool } from '../lab/deploy-tools.ts'
import { families } from '../../src/backup/metric-file.ts'
import { histories, quiet } from './alert-histories.ts'
import { project, runTool, toolTest } from './tools.ts'

const folder = join(project, 'deploy/observability')

interface Rule {
  alert: string
  expr: string
  labels: { severity: string }
  annotations: { summary: string; description: string }
}
const { groups } = parse(await readFile(join(folder, 'alerts.yaml'), 'utf8')) as { groups: { rules: Rule[] }[] }
const rules = groups.flatMap((group) => group.rules)

interface Panel {
  id: number
  type: string
  title: string
  gridPos: { x: number; y: number; w: number; h: number }
  targets?: { expr: string; legendFormat: string }[]
}
const dashboard = JSON.parse(await readFile(join(folder, 'dashboard.json'), 'utf8')) as { panels: Panel[] }
const targets = dashboard.panels.flatMap(({ title, targets = [] }) => targets.map((each) => ({ title, ...each })))

/** Metric → its labels, of all that agent and router register. */
function registered(): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>()
  const facts = { version: '0', readiness: new Readiness(), certificates: { expiresAt: 0 } as Certificates }
  const agent = processMetrics({ ...facts, role: 'agent' })
  const metrics = new AgentMetrics(agent.registry)
  metrics.watchWalkers({ totals: {} as never, active: 0, alive: 0 })
  metrics.watchChecks({ agreed: 0, disagreed: 0, unchecked: 0, sameBeyondBase: 0 })
  metrics.watchLeases(() => 0)
  metrics.watchCatalog('/nonexistent')
  metrics.watchBases({ bases: { list: async () => [] } }, { answered: 0, refused: 0, notKept: 0 })
  metrics.watchPools({} as never)
  metrics.watchTracked({} as never)
  const router = processMetrics({ ...facts, role: 'router' })
  routerMetrics(router.registry, router.observer.calls, () => 0)
  for (const metric of [...agent.registry.getMetricsAsArray(), ...router.registry.getMetricsAsArray()]) {
    const { name, type, labelNames = [] } = metric as unknown as { name: string; type?: unknown; labelNames?: string[] }
    addLabels(found, name, labelNames)
    if ('buckets' in metric || type === 'histogram') {
      for (const ending of ['_count', '_sum']) addLabels(found, name + ending, labelNames)
      addLabels(found, `${name}_bucket`, [...labelNames, 'le'])
    }
  }
  // Those of `backup --metric-file`, which node_exporter serves.
  for (const [name] of families) addLabels(found, name, ['volume'])
  return found
}

function addLabels(found: Map<string, Set<string>>, name: string, labels: readonly string[]): void {
  found.set(name, new Set([...(found.get(name) ?? []), ...labels]))
}

/** What Prometheus itself puts on every series, and pod-monitor.yaml. */
const ofTheScrape = ['job', 'instance', 'node_name', 'namespace', 'pod']
const known = registered()

/** What is wrong with a question: metrics that nobody has, labels that they do not have. */
function mistakes(expression: string): string[] {
  const said: string[] = []
  const metrics = [...expression.matchAll(/\b(deltamapper_\w+)(?:\{([^}]*)\})?/g)]
  if (metrics.length === 0 && !/^up\{/.test(expression)) said.push('it asks for nothing of ours')
  const labels = new Set(ofTheScrape)
  for (const [, name = '', matchers = ''] of metrics) {
    const own = known.get(name)
    if (own === undefined) said.push(`there is no ${name}`)
    for (const label of own ?? []) labels.add(label)
    for (const [, label = ''] of matchers.matchAll(/(\w+)\s*[=!]~?"/g)) {
      if (!own?.has(label) && !ofTheScrape.includes(label)) said.push(`${name} has no label ${label}`)
    }
  }
  for (const [, list = ''] of expression.matchAll(/\b(?:by|on|without|ignoring) \(([^)]*)\)/g)) {
    for (const label of list.split(',').map((each) => each.trim())) {
      if (!labels.has(label)) said.push(`nothing that is asked for has a label ${label}`)
    }
  }
  return said
}

test('the check finds metrics and labels that there are not', (t) => {
  t.true(known.size > 30)
  t.deepEqual(mistakes('sum by (method) (rate(deltamapper_call_seconds_bucket{method="x",job="y"}[5m]))'), [])
  t.is(mistakes('deltamapper_callz_total').length, 1)
  t.is(mistakes('deltamapper_calls_total{code="OK"}').length, 1)
  t.is(mistakes('sum by (pool) (deltamapper_calls_total)').length, 1)
  t.is(mistakes('vector(1)').length, 1)
})

test('alerts ask for metrics and labels that there are', (t) => {
  t.true(rules.length >= 15)
  for (const { alert, expr } of rules) t.deepEqual(mistakes(expr), [], alert)
})

test('the dashboard has tables and figures of how things are, and panels that do not overlap', (t) => {
  const { panels } = dashboard
  for (const type of ['stat', 'table'] as const) t.true(panels.filter((each) => each.type === type).length >= 2, type)
  t.is(new Set(panels.map(({ id }) => id)).size, panels.length)
  const places = panels.flatMap(({ gridPos: { x, y, w, h } }) =>
    Array.from({ length: w * h }, (_, i) => `${x + (i % w)},${y + Math.floor(i / w)}`)
  )
  t.is(new Set(places).size, places.length)
})

test("the dashboard begins with what people ask: what is protected, what changed, what stands in the way; the machine's details come last", (t) => {
  const rows = dashboard.panels
    .filter(({ type }) => type === 'row')
    .sort((one, other) => one.gridPos.y - other.gridPos.y)
  t.deepEqual(
    rows.slice(0, 3).map(({ title }) => title),
    ['What is protected', 'What changed', 'What stands in the way']
  )
  t.true(rows.slice(3).every(({ title }) => title.startsWith("The machine's details: ")))
})

test('the dashboard asks for metrics and labels that there are', (t) => {
  t.true(targets.length >= 20)
  for (const { title, expr } of targets) t.deepEqual(mistakes(expr), [], title)
})

test('every metric of ours is on the dashboard or in an alert, or left out on purpose', (t) => {
  const asked = [...rules, ...targets].map(({ expr }) => expr).join('\n')
  const families = [...known.keys()].filter((name) => !/_(count|sum|bucket)$/.test(name))
  const left = families.filter((name) => !new RegExp(`\\b${name}(_bucket|_count)?\\b`).test(asked))
  t.deepEqual(left.sort(), [
    'deltamapper_backup_increments',
    'deltamapper_backup_points',
    'deltamapper_backup_size_bytes',
    'deltamapper_backup_stored_bytes',
    'deltamapper_cow_doubtful_bytes_total',
    'deltamapper_messages_total',
    'deltamapper_metadata_reads_total',
    'deltamapper_pools_left_out'
  ])
})

test('error codes that alerts name are ones that there are', (t) => {
  const codes = rules.flatMap(
    ({ expr, annotations }) => `${expr} ${annotations.description}`.match(/\bDM_[A-Z_]+/g) ?? []
  )
  t.true(codes.length > 0)
  for (const code of codes) t.true(Object.hasOwn(errorRegistry, code), code)
})

test('docs/reference.md says what each alert means', async (t) => {
  const text = await readFile(join(project, 'docs/reference.md'), 'utf8')
  for (const { alert } of rules) t.true(text.includes(`\`${alert}\``), alert)
})

toolTest('Prometheus takes the alerts, and the questions of the dashboard', async (t) => {
  const work = await mkdtemp(join(tmpdir(), 'rules-'))
  t.teardown(() => rm(work, { recursive: true }))
  const asked = targets.map(({ expr }, index) => ({
    record: `panel:${index}`,
    expr: expr.replaceAll('$__rate_interval', '5m').replaceAll(/\$(node|job)/g, '.*')
  }))
  await writeFile(join(work, 'dashboard.yaml'), stringify({ groups: [{ name: 'dashboard', rules: asked }] }))
  const { status, stdout, stderr } = await runTool(promtool(), [
    ...['check', 'rules', '--lint=all', '--lint-fatal'],
    ...[join(folder, 'alerts.yaml'), join(work, 'dashboard.yaml')]
  ])
  t.is(status, 0, stdout + stderr)
})

toolTest('each alert fires when it has to, and none when all is well', async (t) => {
  t.timeout(900_000)
  const work = await mkdtemp(join(tmpdir(), 'alerts-'))
  t.teardown(() => rm(work, { recursive: true }))
  const firing = (alert: string) => `ALERTS{alertname="${alert}",alertstate="firing"}`
  const series = (values: Readonly<Record<string, string>>) =>
    Object.entries(values).map(([name, samples]) => ({ series: name, values: samples }))
  const tests = histories.map(({ name, series: values, fires, silent = {} }) => ({
    name,
    interval: '1m',
    input_series: series(values),
    promql_expr_test: [
      ...Object.entries(fires).map(([alert, { at, labels }]) => ({
        expr: firing(alert),
        eval_time: at,
        exp_samples: [{ labels: firing(alert).replace('}', `,${labels}}`), value: 1 }]
      })),
      ...Object.entries(silent).map(([alert, at]) => ({ expr: firing(alert), eval_time: at, exp_samples: [] }))
    ]
  }))
  const allWell = {
    name: 'all is well',
    interval: '1m',
    input_series: series(quiet),
    promql_expr_test: [{ expr: 'count_over_time(ALERTS[2h])', eval_time: '2h', exp_samples: [] }]
  }
  const file = join(work, 'tests.yaml')
  await writeFile(
    file,
    stringify({ rule_files: [join(folder, 'alerts.yaml')], evaluation_interval: '1m', tests: [allWell, ...tests] })
  )
  const { status, stdout, stderr } = await runTool(promtool(), ['test', 'rules', file])
  t.is(status, 0, stdout + stderr)
  const tried = new Set(histories.flatMap(({ fires }) => Object.keys(fires)))
  t.deepEqual(
    rules.map(({ alert }) => alert).filter((alert) => !tried.has(alert)),
    [],
    'alerts without a history'
  )
})
