/**
 * Makes the calls of a run and records them. Every call has a deadline, and the run as a whole has one; what a driver
 * sends is folded as it comes. A driver that hangs or floods costs patience: each such call makes the next deadlines
 * shorter.
 */
import {
  controllerMethods,
  identityMethods,
  metadataMethods,
  type Methods,
  nodeMethods
} from '../grpc/loaded-protos.ts'
import { Random } from '../random.ts'
import { AnswerFold } from './answer.ts'
import { MessageReader } from './decode.ts'
import { type Given, isOk, type Question, type Run, type StreamCall, type UnaryCall } from './run.ts'
import { type Receiver, Undecodable, Wire } from './wire.ts'

/** Milliseconds. */
export interface Patience {
  /** For the run as a whole. */
  readonly runMs: number
  /** For a call, to begin with. */
  readonly callMs: number
  /** Between two messages for a slow reader. */
  readonly slowReaderMs: number
}

export const usualPatience: Patience = { runMs: 240_000, callMs: 20_000, slowReaderMs: 1000 }

/** Ranges of bytes that are kept: of one answer, and of all together. */
const RANGES_OF_ONE = 50_000
const RANGES_OF_ALL = 500_000

/** A driver that restarts gets so many milliseconds to listen again. */
const CONNECT_MS = 2000

/** Answer to a call with one message, at most. */
const LONGEST_RESPONSE = 1024 * 1024

/** How often a whole answer is tried for. */
const TRIES = 4

/** ABORTED and UNAVAILABLE: what may go better when it is asked again. */
const MAY_GO_BETTER: readonly number[] = [10, 14]

export interface StreamOptions {
  readonly deadlineMs?: number
  readonly grpcTimeoutMs?: number
  readonly authority?: string
  readonly signal?: AbortSignal
  /** Another connection than the usual one. */
  readonly wire?: Wire
  /** Called after each message; true ends the call, a promise makes the driver wait. */
  readonly onMessage?: (fold: AnswerFold) => boolean | Promise<boolean>
}

/** A secret that shows up nowhere else. */
export const SECRET = 'conformance-secret-8d1c6b0f'

export class Asker {
  readonly run: Run
  /** What a rule draws does not depend on which other rules were asked before. */
  random: Random
  readonly patience: Patience
  readonly signal: AbortSignal
  readonly #socketPath: string
  readonly #until: number
  readonly #wire: Wire
  readonly #wires: Wire[] = []
  /** The last call found nobody there: the next one does not wait for them long. */
  #unreached = false
  /** Calls that did not end in their time. */
  #hung = 0
  #rangesLeft = RANGES_OF_ALL
  #rule = 0
  readonly #wholes = new Map<string, Promise<StreamCall>>()

  constructor(socketPath: string, run: Run, patience: Patience, signal: AbortSignal) {
    this.#socketPath = socketPath
    this.run = run
    this.patience = patience
    this.signal = signal
    this.random = new Random(run.given.seed)
    this.#until = performance.now() + patience.runMs
    this.#wire = this.wire()
  }

  get given(): Given {
    return this.run.given
  }

  /** The number of the rule that asks. */
  get rule(): number {
    return this.#rule
  }

  set rule(number: number) {
    this.#rule = number
    this.random = new Random(this.given.seed * 1000 + number)
  }

  get millisecondsLeft(): number {
    return Math.max(this.#until - performance.now(), 0)
  }

  /** A connection of its own. @param windowBytes how much of a stream the driver may send ahead */
  wire(windowBytes?: number): Wire {
    const wire = new Wire(this.#socketPath, windowBytes)
    this.#wires.push(wire)
    return wire
  }

  close(): void {
    for (const wire of this.#wires) wire.destroy()
  }

  /** What most rules are tried on: what is allocated in the newest snapshot, and what changed since the oldest. */
  get questions(): { base: string | null; target: string }[] {
    const { snapshots } = this.given
    const target = snapshots.at(-1)
    if (target === undefined) return []
    return [{ base: null, target }, ...(snapshots.length > 1 ? [{ base: snapshots[0], target }] : [])]
  }

  /** Asks for the whole of what is allocated and what changed, of up to four snapshots; only once in a run. */
  async wholes(): Promise<StreamCall[]> {
    const { snapshots, otherSnapshots } = this.given
    const some = snapshots.slice(-4)
    const pairs = some.slice(1).map((target, i) => ({ base: some[i], target }))
    const all = [
      ...this.questions,
      ...[...some, ...otherSnapshots.slice(0, 1)].map((target) => ({ base: null, target })),
      ...pairs
    ]
    const calls: StreamCall[] = []
    for (const { base, target } of all) calls.push(await this.whole(base, target))
    return calls
  }

  /**
   * The whole answer to a question; asked for up to three times where it ends in an error that is not about the
   * question.
   */
  whole(base: string | null, target: string): Promise<StreamCall> {
    const key = JSON.stringify([base, target])
    const known = this.#wholes.get(key)
    if (known !== undefined) return known
    const asked = this.#whole({ base, target, startingOffset: 0, maxResults: 0 })
    this.#wholes.set(key, asked)
    return asked
  }

  async #whole(question: Question): Promise<StreamCall> {
    for (let tries = 1; ; tries++) {
      const call = await this.#stream(0, 'whole', question, {})
      const { end } = call
      if (isOk(end) || tries === TRIES) return call
      if (end.how === 'deadline' || end.how === 'undecodable') return call
      // What refuses the question will refuse it again; what broke in the middle may go better.
      if (end.how === 'status' && call.answer.messages === 0 && !MAY_GO_BETTER.includes(end.code)) return call
    }
  }

  /**
   * One call, recorded; unless no time is left for it, which is not the driver's fault. Never throws because of
   * the driver.
   */
  stream(
    label: string,
    question: Partial<Question> & { target: string },
    options: StreamOptions = {}
  ): Promise<StreamCall> {
    return this.#stream(this.rule, label, { base: null, startingOffset: 0, maxResults: 0, ...question }, options)
  }

  async #stream(rule: number, label: string, question: Question, options: StreamOptions): Promise<StreamCall> {
    const most = Math.min(RANGES_OF_ONE, Math.max(this.#rangesLeft >> 2, 100))
    const fold = new AnswerFold(most)
    const began = performance.now()
    let firstMessageMs: number | null = null
    const reader = new MessageReader(fold, (seen) => {
      firstMessageMs ??= performance.now() - began
      return options.onMessage?.(seen) ?? false
    })
    const end = await this.#call(
      options.wire ?? this.#wire,
      metadataPath(question),
      requestOf(question),
      reader,
      options
    )
    const answer = fold.finish()
    this.#rangesLeft -= answer.named.flat.length / 2
    const milliseconds = Math.round(performance.now() - began)
    const call: StreamCall = { kind: 'stream', rule, label, question, answer, end, milliseconds, firstMessageMs }
    if (began < this.#until) this.run.calls.push(call)
    return call
  }

  /** A call with one answer, recorded. @param method as in Identity/Probe */
  async unary(
    label: string,
    method: string,
    request: object = {},
    options: StreamOptions & { rule?: number } = {}
  ): Promise<UnaryCall> {
    const [service, name] = method.split('/') as [string, string]
    const { path, requestSerialize, responseDeserialize } = servicesByName[service][name]
    const began = performance.now()
    const receiver = new WholeMessage()
    let end = await this.#call(options.wire ?? this.#wire, path, requestSerialize(request), receiver, options)
    let response: UnaryCall['response'] = null
    try {
      if (isOk(end)) response = responseDeserialize(receiver.content) as Record<string, unknown>
    } catch (error) {
      end = { how: 'undecodable', why: (error as Error).message }
    }
    const milliseconds = Math.round(performance.now() - began)
    const rule = options.rule ?? this.rule
    const call: UnaryCall = { kind: 'unary', rule, label, method: name, response, end, milliseconds }
    if (began < this.#until) this.run.calls.push(call)
    return call
  }

  async #call(wire: Wire, path: string, body: Uint8Array, receiver: Receiver, options: StreamOptions) {
    this.signal.throwIfAborted()
    const { grpcTimeoutMs, authority, signal } = options
    const deadlineMs = Math.min(options.deadlineMs ?? this.#callMs, this.millisecondsLeft)
    const ends = signal === undefined ? this.signal : AbortSignal.any([signal, this.signal])
    const connectMs = this.#unreached ? 0 : CONNECT_MS
    const end = await wire.call({ path, body, deadlineMs, connectMs, grpcTimeoutMs, authority, signal: ends }, receiver)
    this.signal.throwIfAborted()
    if (end.how === 'deadline') this.#hung++
    this.#unreached = end.how === 'connection' && end.unreached === true
    return end
  }

  get #callMs(): number {
    const { callMs } = this.patience
    if (this.#hung < 2) return callMs
    return Math.min(callMs, this.#hung < 6 ? 3000 : 500)
  }
}

const servicesByName: Readonly<Record<string, Methods>> = {
  Identity: identityMethods,
  Controller: controllerMethods,
  Node: nodeMethods
}

function metadataPath({ base }: Question): string {
  return metadataMethods[base === null ? 'GetMetadataAllocated' : 'GetMetadataDelta'].path
}

function requestOf({ base, target, startingOffset, maxResults }: Question): Uint8Array {
  const ids = base === null ? { snapshot_id: target } : { base_snapshot_id: base, target_snapshot_id: target }
  const numbers = { starting_offset: String(BigInt(startingOffset)), max_results: maxResults }
  return metadataMethods[base === null ? 'GetMetadataAllocated' : 'GetMetadataDelta'].requestSerialize({
    ...ids,
    ...numbers,
    secrets: { password: SECRET }
  })
}

/** For calls with one small answer. */
class WholeMessage implements Receiver {
  readonly #chunks: Buffer[] = []

  get content(): Buffer {
    return Buffer.concat(this.#chunks)
  }

  messageBegins(bytes: number): void {
    if (bytes > LONGEST_RESPONSE) throw new Undecodable(`a response of ${bytes} bytes`)
    if (this.#chunks.length > 0) throw new Undecodable('a second response')
  }

  bytes(chunk: Uint8Array): void {
    this.#chunks.push(Buffer.from(chunk))
  }

  messageEnds(): boolean {
    // So that a second message is noticed, also after an empty one.
    this.#chunks.push(Buffer.alloc(0))
    return false
  }
}
