/**
 * A rule of conformance: what it asks of the driver, and how it judges what came. Each lies in a file of its own
 * under rules/, whose name begins with its number; that file, and its row in docs/conformance.md, are all there is to
 * adding one.
 */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Asker } from './asker.ts'
import { quoted, type SeenTuple } from './answer.ts'
import { isOk, type Question, type Run, type StreamCall } from './run.ts'
import type { End } from './wire.ts'
import { status as grpcStatus } from '@grpc/grpc-js'

export type Level = 'must' | 'should' | 'note'
export type Outcome = 'pass' | 'fail' | 'warn' | 'skip'

export interface Verdict {
  readonly outcome: Outcome
  /** What was seen, with numbers; for a skip why. */
  readonly seen: string
}

export interface Rule {
  readonly number: number
  readonly level: Level
  readonly title: string
  /** Where it is from. */
  readonly source: string
  /** Makes the calls that it needs, which are recorded. */
  readonly ask?: (asker: Asker) => Promise<void>
  /** Pure: of what was recorded only. */
  readonly judge: (run: Run) => Verdict
}

/** All rules, by number. */
export async function loadRules(): Promise<Rule[]> {
  const folder = join(import.meta.dirname, 'rules')
  const files = readdirSync(folder).filter((name) => /^\d\d-.*\.(?:ts|js)$/.test(name) && !name.endsWith('.d.ts'))
  const modules = await Promise.all(
    files.map((name) => import(pathToFileURL(join(folder, name)).href) as Promise<{ rule: Rule }>)
  )
  return modules.map(({ rule }) => rule).sort((one, other) => one.number - other.number)
}

export const pass = (seen: string): Verdict => ({ outcome: 'pass', seen })
export const fail = (seen: string): Verdict => ({ outcome: 'fail', seen })
export const warn = (seen: string): Verdict => ({ outcome: 'warn', seen })
export const skip = (why: string): Verdict => ({ outcome: 'skip', seen: why })

/** Streams that told something. */
export function told(run: Run): StreamCall[] {
  return run.streams.filter(({ answer }) => answer.messages > 0)
}

/**
 * Judges every stream that had a message.
 *
 * @param breach what is wrong with one, if anything
 */
export function eachStream(run: Run, breach: (call: StreamCall) => Verdict | undefined): Verdict {
  const streams = told(run)
  if (streams.length === 0) return skip('no stream had a message')
  let worst: Verdict | undefined
  for (const call of streams) {
    const verdict = breach(call)
    if (verdict === undefined) continue
    const named = { ...verdict, seen: `${describe(call.question)}: ${verdict.seen}` }
    if (verdict.outcome === 'fail') return named
    worst ??= named
  }
  const messages = streams.reduce((sum, { answer }) => sum + answer.messages, 0)
  const tuples = streams.reduce((sum, { answer }) => sum + answer.tuples, 0)
  return worst ?? pass(`${streams.length} streams, ${messages} messages, ${tuples} tuples`)
}

/** Fails with the tuple quoted, if there is one. */
export function tupleBreach(tuple: SeenTuple | null, why: string): Verdict | undefined {
  return tuple === null ? undefined : fail(`${quoted(tuple)} ${why}`)
}

/** A question for people: the call, with what is not usual. */
export function describe({ base, target, startingOffset, maxResults }: Question): string {
  const short = (id: string) => JSON.stringify(id.length > 60 ? `${id.slice(0, 57)}...` : id)
  const what =
    base === null ? `GetMetadataAllocated(${short(target)}` : `GetMetadataDelta(${short(base)}, ${short(target)}`
  const offset = startingOffset === 0 ? '' : `, starting_offset ${startingOffset}`
  return `${what}${offset}${maxResults === 0 ? '' : `, max_results ${maxResults}`})`
}

/** An end for people. */
export function ended(end: End): string {
  switch (end.how) {
    case 'status': {
      const name = grpcStatus[end.code] ?? `status ${end.code}`
      return end.code === 0 ? 'OK' : `${name} ${JSON.stringify(end.message.slice(0, 200))}`
    }
    case 'deadline':
      return 'no end within the time that it had'
    case 'cancelled':
      return 'cancelled by us'
    case 'connection':
      return `the connection broke (${end.why})`
    case 'undecodable':
      return `undecodable: ${end.why}`
  }
}

/** Makes calls that end with statuses of all kinds: whole answers, and refusals. */
export async function askForStatuses(asker: Asker): Promise<void> {
  await asker.wholes()
  await asker.stream('refused', { target: '' })
  for (const question of asker.questions) await asker.stream('refused', { ...question, maxResults: -1 })
}

/** The calls that ended with a status, for people, and the status. */
export function statuses(run: Run): { what: string; end: Extract<End, { how: 'status' }> }[] {
  return run.calls.flatMap((call) => {
    if (!('end' in call) || call.end.how !== 'status') return []
    return [{ what: call.kind === 'stream' ? describe(call.question) : call.method, end: call.end }]
  })
}

export function statusName(end: End): string {
  return end.how === 'status' ? (grpcStatus[end.code] ?? `status ${end.code}`) : end.how
}

/**
 * Judges calls that have to be refused.
 *
 * @param allowed names of statuses that are right
 * @param tolerated ends that are a warning only; 'OK' may be among them
 */
export function refusals(
  calls: readonly StreamCall[],
  allowed: readonly string[],
  tolerated: readonly string[] = []
): Verdict {
  if (calls.length === 0) return skip('nothing was asked')
  const line = ({ question, end, answer }: StreamCall) =>
    `${describe(question)}: ${ended(end)}${isOk(end) ? ` with ${answer.messages} messages, ${answer.tuples} tuples` : ''}`
  const wrong = calls.find(({ end }) => ![...allowed, ...tolerated].includes(statusName(end)))
  if (wrong !== undefined) return fail(`${line(wrong)}; expected ${allowed.join(' or ')}`)
  const odd = calls.find(({ end }) => !allowed.includes(statusName(end)))
  if (odd !== undefined) return warn(`${line(odd)}; ${allowed.join(' or ')} is what callers understand`)
  return pass(calls.map(line).join('; '))
}
