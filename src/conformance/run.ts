/**
 * A run as it is recorded: what was given, every call, and how it ended. Rules judge it, now or when it is replayed;
 * nothing else is needed then.
 */
import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { z } from 'zod'
import { DeltamapperError } from '../errors.ts'
import { systemRemedy } from '../system-errors.ts'
import type { Answer } from './answer.ts'
import type { ContentRecord } from './content-record.ts'
import type { End } from './wire.ts'

/** What whoever asks for a run has to say. */
export interface Given {
  /** Of one volume, oldest first. */
  readonly snapshots: readonly string[]
  /** Of another volume. */
  readonly otherSnapshots: readonly string[]
  /** Of a volume whose changes are not tracked. */
  readonly untracked: readonly string[]
  /** Not ready. */
  readonly unready: string | null
  /** Bytes of what was restored from a snapshot, by its id. */
  readonly deviceBytes: Readonly<Record<string, number>>
  readonly seed: number
}

/** What the driver says of itself; empty where it says nothing. */
export interface DriverIdentity {
  readonly name: string
  readonly version: string
}

/** A question of the service. */
export interface Question {
  /** null: what is allocated. */
  readonly base: string | null
  readonly target: string
  /** Bytes. */
  readonly startingOffset: number
  readonly maxResults: number
}

interface Made {
  /** The rule that made it; 0: for all of them. */
  readonly rule: number
  /** What for, in a few words. */
  readonly label: string
  readonly milliseconds: number
}

export interface StreamCall extends Made {
  readonly kind: 'stream'
  readonly question: Question
  readonly answer: Answer
  readonly end: End
  /** Milliseconds until the first message, where there was one. */
  readonly firstMessageMs: number | null
}

export interface UnaryCall extends Made {
  readonly kind: 'unary'
  readonly method: string
  readonly response: Readonly<Record<string, unknown>> | null
  readonly end: End
}

export type Call = StreamCall | UnaryCall | (ContentRecord & Made)

export class Run {
  readonly given: Given
  readonly calls: Call[]

  constructor(given: Given, calls: Call[] = []) {
    this.given = given
    this.calls = calls
  }

  get driver(): DriverIdentity {
    const response = this.unary(0, 'GetPluginInfo')?.response
    const text = (field: string) => (typeof response?.[field] === 'string' ? response[field] : '')
    return { name: text('name'), version: text('vendor_version') }
  }

  get streams(): StreamCall[] {
    return this.calls.filter((call) => call.kind === 'stream')
  }

  get contents(): (ContentRecord & Made)[] {
    return this.calls.filter((call) => call.kind === 'content' && call.skipped === undefined) as (ContentRecord &
      Made)[]
  }

  /** Histories that were not tried, and why. */
  get skippedContents(): (ContentRecord & Made)[] {
    return this.calls.filter((call) => call.kind === 'content' && call.skipped !== undefined) as (ContentRecord &
      Made)[]
  }

  /** Streams that a rule made. */
  streamsOf(rule: number, label?: string): StreamCall[] {
    return this.streams.filter((call) => call.rule === rule && (label === undefined || call.label === label))
  }

  unary(rule: number, method: string): UnaryCall | undefined {
    return this.calls.find((call) => call.kind === 'unary' && call.rule === rule && call.method === method) as
      UnaryCall | undefined
  }

  /** The whole answer to a question, if there was one. */
  whole(base: string | null, target: string): StreamCall | undefined {
    return this.streamsOf(0).find(
      ({ question, end }) => question.base === base && question.target === target && isOk(end)
    )
  }
}

export function isOk(end: End): boolean {
  return end.how === 'status' && end.code === 0
}

const recordHeader = z.object({ deltamapperConformance: z.literal(1), given: z.looseObject({}) })

/** One line for what was given, and one for each call. */
export async function writeRun(path: string, { given, calls }: Run): Promise<void> {
  const file = await open(path, 'w')
  try {
    await file.write(`${JSON.stringify({ deltamapperConformance: 1, given })}\n`)
    for (const call of calls) await file.write(`${JSON.stringify(call)}\n`)
  } finally {
    await file.close()
  }
}

/** @throws DM_CONFIG_INVALID for a file that is no record */
export async function readRun(path: string): Promise<Run> {
  let run: Run | undefined
  try {
    for await (const line of createInterface(createReadStream(path))) {
      const value = JSON.parse(line) as unknown
      if (run === undefined) run = new Run(recordHeader.parse(value).given as unknown as Given)
      else run.calls.push(value as Call)
    }
    if (run === undefined) throw new Error('it is empty')
    return run
  } catch (cause) {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `${path} is no recorded run: ${(cause as Error).message.split('\n', 1)[0]}`,
      systemRemedy(cause) ?? 'name a file that --record has written',
      { cause }
    )
  }
}
