/**
 * Questions to an agent, and answers held against what they have to be while they arrive: what a client has received is right, however the
 * stream ends.
 */
import type { ExtentAnswer } from '../../src/devicemapper/extents.ts'
import { DeltamapperError } from '../../src/errors.ts'
import type { CallOptions, SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { getMetadataDelta } from '../../src/grpc/snapshot-metadata-methods.ts'
import type { Extent } from '../support/expected.ts'
import { beginHeld } from '../support/held-call.ts'
import { blockBytes } from './raw-pool.ts'

export interface Question {
  /** A handle; left out: all that is allocated. */
  base?: string
  target: string
}

export function ask(
  client: SnapshotMetadataClient,
  { base, target }: Question,
  options: CallOptions = {}
): Promise<ExtentAnswer> {
  return base === undefined
    ? client.allocated({ snapshotId: target, ...options })
    : client.delta({ baseSnapshotId: base, targetSnapshotId: target, ...options })
}

/** The complete answer. */
export async function answerTo(client: SnapshotMetadataClient, question: Question): Promise<Extent[]> {
  const extents: Extent[] = []
  for await (const { count, offsets, sizes } of (await ask(client, question)).batches) {
    for (let i = 0; i < count; i++) extents.push([offsets[i], sizes[i]])
  }
  return extents
}

/**
 * Begins a delta of which the server can send but a dozen messages of one extent before it is read. @param address of a
 * unix socket
 *
 * @returns reads the rest of the answer to its end
 */
export function beginSlowly(address: string, base: string, target: string): Promise<() => Promise<void>> {
  const request = { baseSnapshotId: base, targetSnapshotId: target, startingOffset: 0n, maxResults: 1 }
  return beginHeld(address.replace('unix://', ''), getMetadataDelta, request)
}

/** The error that an answer ends with. @throws when it does not */
export async function failure(answer: Promise<unknown>): Promise<DeltamapperError> {
  const thrown: unknown = await answer.then(
    () => new Error('it was answered'),
    (error: unknown) => error
  )
  if (thrown instanceof DeltamapperError) return thrown
  throw thrown
}

/** Holds what arrives against the answer as it has to be, from a starting offset on. */
export class AnswerCheck {
  readonly #extents: readonly Extent[]
  /** What begins before the data block that the offset lies in is cut there. */
  readonly #cut: number
  readonly #first: number
  #next: number

  /** @param extents the whole answer */
  constructor(extents: readonly Extent[], startingOffset = 0) {
    this.#extents = extents
    this.#cut = Math.floor(startingOffset / blockBytes) * blockBytes
    this.#first = this.#next = firstBehind(extents, startingOffset)
  }

  get received(): number {
    return this.#next - this.#first
  }

  /** @throws where an extent is not the one that is due */
  take(offset: number, size: number): void {
    const due = this.#extents.at(this.#next)
    if (due === undefined) throw new Error(`extent ${offset}+${size} follows the last one that is due`)
    const from = Math.max(due[0], this.#cut)
    const end = due[0] + due[1]
    if (offset !== from || offset + size !== end) {
      throw new Error(`extent ${offset}+${size} came where ${from}+${end - from} is due`)
    }
    this.#next++
  }

  /** @throws where something is missing */
  end(): void {
    const missing = this.#extents.length - this.#next
    if (missing > 0) throw new Error(`an answer that ended OK lacks its last ${missing} extents`)
  }
}

/** Index of the first extent that ends behind an offset. */
function firstBehind(extents: readonly Extent[], offset: number): number {
  let [low, high] = [0, extents.length]
  while (low < high) {
    const middle = (low + high) >>> 1
    const [start, size] = extents[middle]
    if (start + size <= offset) low = middle + 1
    else high = middle
  }
  return low
}
