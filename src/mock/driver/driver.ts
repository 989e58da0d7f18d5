/**
 * The mock CSI driver: Identity, SnapshotMetadata and Controller of csi.v1 over a history that is kept in memory,
 * answering as its scenario says.
 *
 * What it sends is made in one place (`answer`) from pure parts: the question is judged, the whole answer is made,
 * cut at the offset, put into messages, and each of these steps is what a fault may change.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import {
  Metadata,
  type sendUnaryData,
  type ServerUnaryCall,
  type ServerWritableStream,
  status as grpcStatus,
  type UntypedServiceImplementation
} from '@grpc/grpc-js'
import { controllerMethods, identityMethods, metadataMethods, type Methods } from '../../grpc/loaded-protos.ts'
import { Controller } from './controller.ts'
import { type DriverFault, type Fault, faults, type Occasion } from './faults.ts'
import type { History, Snapshot, Tuple } from './history.ts'
import { encodeMessage, type Message, typeNumbers } from './message.ts'
import {
  judgeQuestion,
  type Question,
  type Refusal,
  refusal,
  Refused,
  refused,
  type Subject,
  tuplesFrom,
  tuplesOf
} from './question.ts'
import type { Scenario } from './scenario.ts'

export const MOCK_DRIVER_NAME = 'mock.deltamapper.io'

/** What the driver needs of whoever listens for it. */
export interface Door {
  /** Cuts every connection. */
  cut(): void
  /** Cuts them, and listens no more. */
  shut(): void
}

type Call = ServerWritableStream<object, Buffer>

/** How a stream ends: OK, with a status, or with its connection. */
type Ending = 'ok' | 'connection' | Refusal

/** One answer, before it is sent. */
interface Answer {
  readonly messages: readonly Message[]
  readonly ending: Ending
}

/** Google's Status with one detail: CSI wants none (CSI specification, "Error Scheme"). */
const STATUS_WITH_DETAILS = Buffer.from([0x08, 3, 0x1a, 0x04, 0x0a, 0x02, 0x61, 0x2f])

export class MockDriver {
  readonly history: History
  readonly scenario: Scenario
  readonly controller: Controller
  /** Told of each answer that is broken off by the scenario's cut, before it breaks off. */
  onCut: (question: Question) => void = () => undefined
  readonly #faults: readonly Fault[]
  readonly #driverFaults: ReadonlySet<DriverFault>
  readonly #door: Door
  /** How often each question was asked, by its content. */
  readonly #asked = new Map<string, number>()
  /** How often each question was cut short, whatever its offset was. */
  readonly #cuts = new Map<string, number>()
  readonly #running = new Set<Call>()
  #turn: Promise<void> = Promise.resolve()
  #wedged = false

  constructor(history: History, scenario: Scenario, controller: Controller, door: Door) {
    this.history = history
    this.scenario = scenario
    this.controller = controller
    this.#door = door
    this.#faults = scenario.faults.map((name) => faults[name])
    this.#driverFaults = new Set(this.#faults.flatMap(({ driver }) => driver ?? []))
  }

  /** Everything that it serves, as grpc-js takes it. */
  get services(): { definition: Methods; implementation: UntypedServiceImplementation }[] {
    return [
      { definition: identityMethods, implementation: this.#identity() },
      {
        // The answers are encoded by hand.
        definition: Object.fromEntries(
          Object.entries(metadataMethods).map(([name, method]) => [
            name,
            { ...method, responseSerialize: (bytes: object) => bytes as Buffer }
          ])
        ),
        implementation: {
          GetMetadataAllocated: (call: Call) => void this.#serve(call, 'GetMetadataAllocated'),
          GetMetadataDelta: (call: Call) => void this.#serve(call, 'GetMetadataDelta')
        }
      },
      { definition: controllerMethods, implementation: this.#guarded(this.controller.implementation) }
    ]
  }

  /** A connection is gone. */
  disconnected(): void {
    if (this.#running.size > 0 && this.#driverFaults.has('wedged-by-disconnect')) this.#wedged = true
  }

  #identity(): UntypedServiceImplementation {
    const service = (type: string) => ({ service: { type } })
    const capabilities = ['CONTROLLER_SERVICE', ...(this.#has('no-capability') ? [] : ['SNAPSHOT_METADATA_SERVICE'])]
    const name = this.#has('bad-name')
      ? `-${MOCK_DRIVER_NAME}_of_a_name_that_is_longer_than_sixty_three_characters`
      : MOCK_DRIVER_NAME
    return this.#guarded({
      GetPluginInfo: () => ({ name, vendor_version: '1', manifest: { scenario: this.scenario.name } }),
      GetPluginCapabilities: () => ({ capabilities: capabilities.map(service) }),
      Probe: () => {
        if (this.#has('probe-fails')) throw refused('INTERNAL', 'no backend')
        return { ready: { value: true } }
      }
    })
  }

  #has(fault: DriverFault): boolean {
    return this.#driverFaults.has(fault)
  }

  /** Calls with one answer each. What they throw is a refusal. */
  #guarded(methods: Record<string, (request: never) => object | Promise<object>>): UntypedServiceImplementation {
    const serve =
      (method: (request: never) => object | Promise<object>) =>
      async (call: ServerUnaryCall<object, object>, respond: sendUnaryData<object>) => {
        try {
          this.#admit(call.getHost())
          respond(null, await method(call.request as never))
        } catch (thrown) {
          respond(this.#wireStatus(thrown as Refusal), null)
        }
      }
    return Object.fromEntries(Object.entries(methods).map(([name, method]) => [name, serve(method)]))
  }

  /** @throws Refusal where the scenario lets nobody in */
  #admit(host: string): void {
    if (this.#has('refuses-localhost') && host === 'localhost') throw refused('UNAVAILABLE', 'unknown authority')
    if (this.#wedged) throw refused('UNAVAILABLE', 'a call is still running')
  }

  async #serve(call: Call, method: Question['method']): Promise<void> {
    if (this.#has('hangs')) return
    if (this.#has('dies')) return this.#door.shut()
    const question = questionOf(method, call.request as Record<string, unknown>)
    const gone = new AbortController()
    call.once('cancelled', () => {
      if (this.#running.has(call) && this.#has('wedged-by-cancel')) this.#wedged = true
      gone.abort()
    })
    const beside = this.#running.size
    this.#running.add(call)
    try {
      this.#admit(call.getHost())
      if (this.#has('one-at-a-time')) await this.#inTurn(call)
      await this.#send(call, question, beside, gone.signal)
    } catch (thrown) {
      if (!gone.signal.aborted) call.emit('error', this.#wireStatus(thrown as Refusal))
    } finally {
      this.#running.delete(call)
    }
  }

  async #send(call: Call, question: Question, beside: number, gone: AbortSignal): Promise<void> {
    const { messages, ending } = this.answer(question, beside)
    for (const message of messages) {
      await sleep(this.scenario.delayMs, undefined, { signal: gone })
      await written(call, encodeMessage(message), gone)
    }
    if (ending === 'connection') {
      // What was written has to arrive: the cut comes after it.
      await sleep(20, undefined, { signal: gone })
      return this.#door.cut()
    }
    if (ending !== 'ok') throw new Refused(ending)
    call.end()
  }

  /** What it has to say, the scenario's faults included. @throws Refusal */
  answer(question: Question, beside = 0): Answer {
    const subject = this.#admitted(question)
    const { capacityBytes } = subject.target
    const asked = this.#count(this.#asked, JSON.stringify(question))
    const occasion: Occasion = { question, asked, beside, capacityBytes }
    const change = <T>(value: T, step: (fault: Fault) => ((value: T, occasion: Occasion) => T) | undefined): T =>
      this.#faults.reduce((changed, fault) => step(fault)?.(changed, occasion) ?? changed, value)
    const ignored = new Set(this.#faults.flatMap(({ ignores }) => ignores ?? []))

    const whole = change(tuplesOf(subject, this.scenario.type), ({ whole }) => whole)
    const from = ignored.has('startingOffset') ? 0 : question.startingOffset
    const cut = this.scenario.starts === 'exact' && this.scenario.type === 'VARIABLE_LENGTH'
    const sent = change(this.#overlong(tuplesFrom(whole, from, cut), capacityBytes), ({ sent }) => sent)
    const maxResults = ignored.has('maxResults') ? 0 : question.maxResults
    const messages = change(this.#messages(sent, capacityBytes, maxResults), ({ messages }) => messages)
    for (const { ending } of this.#faults) {
      const bad = ending?.(occasion)
      if (bad !== undefined) return { messages, ending: bad }
    }
    return this.#cut(messages, question)
  }

  /** @throws Refusal */
  #admitted(question: Question): Subject {
    const isDelta = question.method === 'GetMetadataDelta'
    if (this.#has(isDelta ? 'delta-unimplemented' : 'allocated-unimplemented')) {
      throw refused('UNIMPLEMENTED', `${question.method} is not implemented`)
    }
    const judged = judgeQuestion(question, this.history)
    const due = 'code' in judged ? judged : undefined
    const instead = this.#faults.reduce(
      (said, fault) => (fault.refusal ? fault.refusal(said, { question }) : said),
      due
    )
    if (instead !== undefined) throw new Refused(instead)
    const { refuseDelta } = this.scenario
    if (isDelta && refuseDelta !== undefined)
      throw refused(refuseDelta as 'NOT_FOUND', 'the base snapshot is gone; take a full backup')
    return 'code' in judged ? this.#asIfThere(question) : judged
  }

  /** What a driver answers that ought to have refused: an empty answer, of a snapshot where there is one. */
  #asIfThere({ targetId }: Question): Subject {
    const target: Snapshot = this.history.snapshot(targetId) ?? this.history.snapshots[0]
    return { base: target, target }
  }

  #overlong(tuples: Tuple[], capacityBytes: number): Tuple[] {
    const { overlongBytes } = this.scenario
    return tuples.map(([offset, size]) => [offset, offset + size === capacityBytes ? size + overlongBytes : size])
  }

  #messages(tuples: readonly Tuple[], capacityBytes: number, maxResults: number): Message[] {
    const { tuplesPerMessage, messageWhenEmpty, emptyMessagesBetween } = this.scenario
    const most = maxResults > 0 ? Math.min(maxResults, tuplesPerMessage) : tuplesPerMessage
    const message = (some: readonly Tuple[]): Message => ({
      type: typeNumbers[this.scenario.type],
      capacityBytes,
      tuples: some
    })
    const messages: Message[] = []
    for (let i = 0; i < tuples.length; i += most) {
      if (emptyMessagesBetween) messages.push(message([]))
      messages.push(message(tuples.slice(i, i + most)))
    }
    return messages.length === 0 && messageWhenEmpty ? [message([])] : messages
  }

  /** The scenario's cut: counted for each question, whatever offset it comes with. */
  #cut(messages: readonly Message[], question: Question): Answer {
    const { cut } = this.scenario
    if (cut === undefined) return { messages, ending: 'ok' }
    const { method, baseId, targetId } = question
    const after = cut.after[this.#count(this.#cuts, `${method} ${baseId} ${targetId}`)]
    if (after === undefined) return { messages, ending: 'ok' }
    this.onCut(question)
    const how =
      cut.how === 'connection' ? 'connection' : refusal(cut.how as 'INTERNAL', 'the mock breaks off here; resume')
    return { messages: messages.slice(0, after), ending: how }
  }

  #count(counts: Map<string, number>, key: string): number {
    const before = counts.get(key) ?? 0
    counts.set(key, before + 1)
    return before
  }

  /** Waits until the calls before this one have ended. */
  #inTurn(call: Call): Promise<void> {
    const before = this.#turn
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#turn = promise
    call.once('close', resolve)
    call.once('cancelled', resolve)
    call.once('finish', resolve)
    return before
  }

  #wireStatus(thrown: Refusal | Error): { code: number; details: string; metadata?: Metadata } {
    const said =
      'code' in thrown && typeof thrown.code === 'number'
        ? thrown
        : { code: grpcStatus.INTERNAL, details: (thrown as Error).message }
    const details = this.#has('status-without-message') ? '' : said.details
    if (!this.#has('status-details')) return { code: said.code, details }
    const metadata = new Metadata()
    metadata.set('grpc-status-details-bin', STATUS_WITH_DETAILS)
    return { code: said.code, details, metadata }
  }
}

function questionOf(method: Question['method'], request: Record<string, unknown>): Question {
  const isDelta = method === 'GetMetadataDelta'
  return {
    method,
    baseId: isDelta ? (request['base_snapshot_id'] as string) : '',
    targetId: request[isDelta ? 'target_snapshot_id' : 'snapshot_id'] as string,
    startingOffset: Number(request['starting_offset']),
    maxResults: request['max_results'] as number,
    secrets: request['secrets'] as Record<string, string>
  }
}

/** Resolves when a message is on its way: the caller has room for it. */
function written(call: Call, message: Buffer, gone: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const left = () => reject(new Error('the caller is gone'))
    gone.addEventListener('abort', left, { once: true })
    call.write(message, () => {
      gone.removeEventListener('abort', left)
      if (gone.aborted) left()
      else resolve()
    })
  })
}
