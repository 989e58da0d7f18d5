/**
 * A conformance run: every rule asks, then every rule judges what was recorded. `deltamapper conformance`, and for
 * tests in Node `import { runConformance } from 'deltamapper/testing'`.
 */
import { parseAddress } from '../grpc/address.ts'
import { DeltamapperError, invalid } from '../errors.ts'
import { Asker, type Patience, usualPatience } from './asker.ts'
import { runContent } from './content-run.ts'
import { type ContentConfig, CsiStorage } from './csi-storage.ts'
import { type Hooks, hookStorage } from './hooks.ts'
import { type Level, loadRules, type Outcome, type Rule } from './rule.ts'
import { type DriverIdentity, type Given, Run } from './run.ts'

export interface ConformanceOptions {
  /** The driver's unix socket, `unix:///…`. */
  readonly endpoint: string
  /** Snapshots of one volume, oldest first; two at least, for what is about deltas. */
  readonly snapshots: readonly string[]
  /** Snapshots of another volume. */
  readonly otherSnapshots?: readonly string[]
  /** Snapshots of a volume whose changes are not tracked. */
  readonly untrackedSnapshots?: readonly string[]
  /** A snapshot that is not ready. */
  readonly unreadySnapshot?: string | undefined
  /** Bytes of the devices that were restored from snapshots, by snapshot id. */
  readonly deviceBytes?: Readonly<Record<string, number>>
  /** Numbers of the rules to judge; all unless given. */
  readonly rules?: readonly number[] | undefined
  /** Which tuples and offsets are tried. Default 1. */
  readonly seed?: number
  /** Ends the run early. */
  readonly signal?: AbortSignal
  /** How long to wait; shorter for tests. */
  readonly patience?: Partial<Patience>
  /** How to write, take snapshots and restore, for the content rules; without it they are skipped. */
  readonly content?: ContentOptions | undefined
}

/** Either commands, or the driver's own Controller and Node services. */
export type ContentOptions = ({ readonly hooks: Hooks } | { readonly csi: ContentConfig }) & {
  /** Bytes of the volumes that are made, a multiple of 64 KiB; default 16 MiB. */
  readonly sizeBytes?: number | undefined
  /** Names of the histories; all unless given. */
  readonly histories?: readonly string[] | undefined
  /** Told of what could not be removed. */
  readonly onLeftBehind?: ((what: string) => void) | undefined
}

/** Bytes. */
const USUAL_SIZE = 16 * 1024 * 1024

/** What became of a rule. */
export interface Judgement {
  readonly number: number
  readonly level: Level
  readonly outcome: Outcome
  readonly title: string
  readonly source: string
  /** What was seen; for a skip why. */
  readonly seen: string
  /** It failed before, as the baseline says. */
  readonly known?: true
}

export interface Report {
  readonly driver: DriverIdentity
  readonly rules: readonly Judgement[]
  readonly summary: Readonly<Record<Outcome, number>> & { readonly known?: number }
}

/**
 * Asks the driver, and judges it. Resolves whatever the driver does, at most five minutes later.
 *
 * @throws DM_CONFIG_INVALID for an endpoint that is no unix socket; DM_ARGUMENT_INVALID for a rule that there is not;
 * the signal's reason
 */
export async function runConformance(options: ConformanceOptions): Promise<{ report: Report; run: Run }> {
  const { endpoint, rules: numbers, signal = new AbortController().signal } = options
  const rules = chosen(await loadRules(), numbers)
  const run = new Run({
    snapshots: options.snapshots,
    otherSnapshots: options.otherSnapshots ?? [],
    untracked: options.untrackedSnapshots ?? [],
    unready: options.unreadySnapshot ?? null,
    deviceBytes: options.deviceBytes ?? {},
    seed: options.seed ?? 1
  } satisfies Given)
  const asker = new Asker(socketPath(endpoint), run, { ...usualPatience, ...options.patience }, signal)
  try {
    await asker.unary('identity', 'Identity/GetPluginInfo', {}, { rule: 0 })
    for (const rule of rules) {
      if (asker.millisecondsLeft === 0) break
      asker.rule = rule.number
      await rule.ask?.(asker)
    }
    if (options.content !== undefined) await compareContent(options.content, asker, socketPath(endpoint))
  } finally {
    asker.close()
  }
  return { report: judge(run, rules), run }
}

async function compareContent(content: ContentOptions, asker: Asker, socketPath: string): Promise<void> {
  const { sizeBytes = USUAL_SIZE, histories, onLeftBehind = () => undefined } = content
  // What was made is removed also when the run is to end: these calls are not ended by the signal.
  const steady = new Asker(socketPath, asker.run, asker.patience, new AbortController().signal)
  const storage = 'hooks' in content ? hookStorage(content.hooks) : new CsiStorage(steady, content.csi)
  try {
    await runContent(asker, storage, { sizeBytes, histories, onLeftBehind })
  } finally {
    steady.close()
  }
}

/** Judges what was recorded. @throws DM_ARGUMENT_INVALID */
export async function judgeRun(run: Run, numbers?: readonly number[]): Promise<Report> {
  return judge(run, chosen(await loadRules(), numbers))
}

function judge(run: Run, rules: readonly Rule[]): Report {
  const judgements = rules.map((rule): Judgement => {
    const { number, level, title, source } = rule
    const { outcome, seen } = verdictOf(rule, run)
    return { number, level, outcome, title, source, seen }
  })
  return { driver: run.driver, rules: judgements, summary: summarized(judgements) }
}

/** A broken rule that is no "must" is a warning. */
function verdictOf(rule: Rule, run: Run): Pick<Judgement, 'outcome' | 'seen'> {
  const verdict = rule.judge(run)
  return verdict.outcome === 'fail' && rule.level !== 'must' ? { ...verdict, outcome: 'warn' } : verdict
}

function summarized(rules: readonly Judgement[]): Report['summary'] {
  const summary = { pass: 0, fail: 0, warn: 0, skip: 0 }
  for (const { outcome } of rules) summary[outcome]++
  return summary
}

/** Marks what failed in an earlier report. */
export function withBaseline(report: Report, baseline: ReadonlySet<number>): Report {
  const rules = report.rules.map((rule) =>
    rule.outcome === 'fail' && baseline.has(rule.number) ? { ...rule, known: true as const } : rule
  )
  return { ...report, rules, summary: { ...report.summary, known: rules.filter(({ known }) => known).length } }
}

/** Whether no "must" failed, but those that the baseline knows. */
export function conforms({ rules }: Report): boolean {
  return !rules.some(({ level, outcome, known }) => level === 'must' && outcome === 'fail' && !known)
}

function chosen(rules: readonly Rule[], numbers: readonly number[] | undefined): readonly Rule[] {
  if (numbers === undefined || numbers.length === 0) return rules
  const unknown = numbers.find((number) => !rules.some((rule) => rule.number === number))
  if (unknown === undefined) return rules.filter(({ number }) => numbers.includes(number))
  throw invalid(
    `there is no rule ${unknown} about drivers`,
    `name some of ${rules.map(({ number }) => number).join(', ')}`
  )
}

function socketPath(endpoint: string): string {
  const address = parseAddress(endpoint)
  if (address.kind === 'unix') return address.path
  throw new DeltamapperError(
    'DM_CONFIG_INVALID',
    `${address.text} is no unix socket, and CSI drivers listen on nothing else`,
    'name the socket of the driver, as in unix:///csi/csi.sock'
  )
}
