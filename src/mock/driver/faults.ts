/**
 * Ways to break the rules, by name. Each is as small as can be and breaks as little else as can be: what a scenario
 * or mutant names, a client or a conformance suite has to notice for that reason alone.
 */
import { BLOCK_BYTES, type Tuple } from './history.ts'
import { type Message, typeNumbers } from './message.ts'
import { type Question, type Refusal, refusal } from './question.ts'

/** What a fault may look at. */
export interface Occasion {
  readonly question: Question
  /** How often the very same question was asked before. */
  readonly asked: number
  /** Calls that run beside this one. */
  readonly beside: number
  readonly capacityBytes: number
}

export interface Fault {
  /** The whole answer, before the offset is looked at. */
  readonly whole?: (tuples: Tuple[], occasion: Occasion) => Tuple[]
  /** What is sent, from the offset on. */
  readonly sent?: (tuples: Tuple[], occasion: Occasion) => Tuple[]
  readonly messages?: (messages: Message[], occasion: Occasion) => Message[]
  /**
   * Instead of the refusal that is due; undefined answers the question. A snapshot there is none of is answered
   * as an empty one.
   */
  readonly refusal?: (due: Refusal | undefined, occasion: Pick<Occasion, 'question'>) => Refusal | undefined
  /** Breaks off with this after the last message. */
  readonly ending?: (occasion: Occasion) => Refusal | undefined
  /** Ignores the offset, and max_results. */
  readonly ignores?: readonly ('startingOffset' | 'maxResults')[]
  /** What the driver as a whole does; see driver.ts. */
  readonly driver?: DriverFault
}

export type DriverFault =
  | 'no-capability'
  | 'bad-name'
  | 'probe-fails'
  | 'delta-unimplemented'
  | 'allocated-unimplemented'
  | 'refuses-localhost'
  | 'one-at-a-time'
  | 'wedged-by-cancel'
  | 'wedged-by-disconnect'
  | 'status-details'
  | 'status-without-message'
  | 'hangs'
  | 'dies'

const { FIXED_LENGTH, VARIABLE_LENGTH } = typeNumbers

/** Beyond the limit of gRPC's clients, 4 MiB. */
const HUGE_BYTES = 5 * 1024 * 1024

const without = (tuples: Tuple[], index: number): Tuple[] => tuples.filter((_, i) => i !== index)
const half = (list: readonly unknown[]) => list.length >> 1
/** Changes the message in the middle. */
const inTheMiddle = (messages: Message[], change: (message: Message) => Partial<Message>): Message[] =>
  messages.map((message, i) => (i === half(messages) ? { ...message, ...change(message) } : message))
/** Changes the refusal of questions of a kind. */
const when =
  (
    applies: (question: Question, due: Refusal | undefined) => boolean,
    instead: Refusal | undefined
  ): NonNullable<Fault['refusal']> =>
  (due, { question }) =>
    applies(question, due) ? instead : due
const refused = (words: RegExp) => (_: Question, due: Refusal | undefined) =>
  due !== undefined && words.test(due.details)

const inStreams = {
  'type-unknown': { messages: (messages) => messages.map((message) => ({ ...message, type: 0 })) },
  'capacity-zero': { messages: (messages) => messages.map((message) => ({ ...message, capacityBytes: 0 })) },
  'type-changes': {
    messages: (messages) =>
      inTheMiddle(messages, ({ type }) => ({ type: type === FIXED_LENGTH ? VARIABLE_LENGTH : FIXED_LENGTH }))
  },
  'capacity-changes': {
    messages: (messages) => inTheMiddle(messages, ({ capacityBytes }) => ({ capacityBytes: capacityBytes * 2 }))
  },
  'capacity-too-large': {
    messages: (messages) =>
      messages.map((message) => ({ ...message, capacityBytes: message.capacityBytes + BLOCK_BYTES }))
  },
  'fixed-sizes-differ': { messages: (messages) => messages.map((message) => ({ ...message, type: FIXED_LENGTH })) },
  'empty-tuple': {
    sent: (tuples) => tuples.map(([offset, size], i) => [offset, i === half(tuples) ? 0 : size])
  },
  'negative-offset': {
    sent: ([first, ...rest]) =>
      first === undefined ? [] : [[-BLOCK_BYTES, first[0] + first[1] + BLOCK_BYTES], ...rest]
  },
  unsorted: {
    sent: (tuples) => {
      const middle = half(tuples)
      if (middle === 0) return tuples
      return tuples.map((tuple, i) => (i === middle ? tuples[i - 1] : i === middle - 1 ? tuples[i + 1] : tuple))
    }
  },
  overlapping: {
    sent: (tuples) =>
      tuples.map(([offset, size], i) => {
        const next = tuples[i + 1]
        return i === half(tuples) && next ? [offset, next[0] - offset + 4096] : [offset, size]
      })
  },
  'repeats-across-messages': {
    messages: (messages) =>
      messages.map((message, i) => {
        const repeated = messages[i - 1]?.tuples.at(-1)
        return repeated ? { ...message, tuples: [repeated, ...message.tuples.slice(1)] } : message
      })
  },
  'past-capacity': { sent: (tuples, { capacityBytes }) => [...tuples, [capacityBytes, BLOCK_BYTES]] },
  'before-offset': { ignores: ['startingOffset'] },
  'ignores-max-results': { ignores: ['maxResults'] },
  'last-message-missing': { messages: (messages) => (messages.length > 1 ? messages.slice(0, -1) : messages) },
  'never-twice-the-same': {
    messages: (messages, { asked }) => (asked % 2 === 0 ? messages : [{ ...messages[0], tuples: [] }, ...messages])
  },
  'loses-when-resumed': {
    sent: (tuples, { question }) => (question.startingOffset > 0 && tuples.length > 1 ? without(tuples, 1) : tuples)
  },
  'loses-range-of-offset': {
    whole: (tuples, { question: { startingOffset } }) =>
      tuples.filter(([offset, size]) => offset >= startingOffset || offset + size <= startingOffset)
  },
  'huge-message': {
    messages: (messages) => inTheMiddle(messages, () => ({ paddingBytes: HUGE_BYTES }))
  },
  'loses-beside-others': {
    sent: (tuples, { beside }) => (beside > 0 ? without(tuples, half(tuples)) : tuples)
  },
  'wrong-before-error': {
    sent: (tuples, { asked }) => (asked === 0 ? without(tuples, half(tuples)).slice(0, -1) : tuples),
    ending: ({ asked }) => (asked === 0 ? refusal('UNAVAILABLE', 'the storage is busy; ask again') : undefined)
  }
} satisfies Record<string, Fault>

const inRefusals = {
  'empty-id-not-found': { refusal: when(refused(/is missing/), refusal('NOT_FOUND', 'there is no such snapshot')) },
  'unknown-is-internal': { refusal: when(refused(/there is no/), refusal('INTERNAL', 'lookup failed')) },
  'unknown-is-empty': { refusal: when(refused(/there is no/), undefined) },
  'negative-offset-served': { refusal: when(refused(/starting_offset is negative/), undefined) },
  'offset-beyond-served': { refusal: when(refused(/beyond the capacity/), undefined) },
  'negative-max-results-served': { refusal: when(refused(/max_results/), undefined) },
  'long-id-is-internal': { refusal: when(refused(/longer than/), refusal('INTERNAL', 'buffer too small')) },
  'other-volume-served': { refusal: when(refused(/different volumes/), undefined) },
  'reversed-is-empty': { refusal: when(refused(/is newer than/), undefined) },
  'same-is-internal': {
    refusal: when(
      ({ baseId, targetId }) => baseId !== '' && baseId === targetId,
      refusal('INTERNAL', 'nothing to compare')
    )
  },
  'untracked-is-empty': { refusal: when(refused(/not tracked/), undefined) },
  'unready-is-empty': { refusal: when(refused(/not ready/), undefined) },
  'unknown-status': { refusal: when(refused(/max_results/), refusal('UNKNOWN', 'exception')) },
  'secrets-in-messages': {
    refusal: (due, { question }) =>
      due && { ...due, details: `${due.details} (request: ${JSON.stringify(question.secrets)})` }
  }
} satisfies Record<string, Fault>

const inDrivers = Object.fromEntries(
  (
    [
      'no-capability',
      'bad-name',
      'probe-fails',
      'delta-unimplemented',
      'allocated-unimplemented',
      'refuses-localhost',
      'one-at-a-time',
      'wedged-by-cancel',
      'wedged-by-disconnect',
      'status-details',
      'status-without-message',
      'hangs',
      'dies'
    ] as const
  ).map((driver) => [driver, { driver }])
) as Record<DriverFault, Fault>

export const faults: Readonly<Record<string, Fault>> = { ...inStreams, ...inRefusals, ...inDrivers }
export const faultNames = Object.keys(faults)
