/**
 * What the mock is asked, as it stands on the wire, and what an honest driver makes of it (CSI specification,
 * "Snapshot Metadata Service RPCs", error tables included).
 */
import { status as grpcStatus } from '@grpc/grpc-js'
import {
  allocatedBlocks,
  changedBlocks,
  comparable,
  type History,
  merged,
  BLOCK_BYTES,
  type Snapshot,
  type Tuple
} from './history.ts'

export interface Question {
  readonly method: 'GetMetadataAllocated' | 'GetMetadataDelta'
  /** Empty for GetMetadataAllocated. */
  readonly baseId: string
  readonly targetId: string
  /** Bytes; any int64. */
  readonly startingOffset: number
  /** Any int32. */
  readonly maxResults: number
  readonly secrets: Readonly<Record<string, string>>
}

/** A status other than OK. */
export interface Refusal {
  readonly code: number
  readonly details: string
}

/** A question that can be answered. */
export interface Subject {
  readonly base: Snapshot | undefined
  readonly target: Snapshot
}

/** Bytes of an id, at most (CSI specification, "Size Limits"). */
const LONGEST_ID = 128

export function refusal(code: keyof typeof grpcStatus, details: string): Refusal {
  return { code: grpcStatus[code], details }
}

/** A refusal on its way. */
export class Refused extends Error implements Refusal {
  readonly code: number
  readonly details: string

  constructor({ code, details }: Refusal) {
    super(details)
    this.code = code
    this.details = details
  }
}

export function refused(code: keyof typeof grpcStatus, details: string): Refused {
  return new Refused(refusal(code, details))
}

/** What there is to say against a question. */
export function judgeQuestion(question: Question, history: History): Refusal | Subject {
  const { method, baseId, targetId, startingOffset, maxResults } = question
  const isDelta = method === 'GetMetadataDelta'
  const ids = isDelta ? [baseId, targetId] : [targetId]
  if (ids.includes('')) return refusal('INVALID_ARGUMENT', 'a snapshot id is missing; name the snapshot')
  if (ids.some((id) => Buffer.byteLength(id) > LONGEST_ID)) {
    return refusal(
      'INVALID_ARGUMENT',
      `a snapshot id is longer than ${LONGEST_ID} bytes; give one that this driver made`
    )
  }
  if (maxResults < 0) return refusal('INVALID_ARGUMENT', 'max_results is negative; give 0 for no limit')
  if (startingOffset < 0) return refusal('OUT_OF_RANGE', 'starting_offset is negative; begin at 0')
  const unknown = ids.find((id) => history.snapshot(id) === undefined)
  if (unknown !== undefined) return refusal('NOT_FOUND', `there is no snapshot ${unknown}; ListSnapshots names them`)
  const [target, base] = ids.reverse().map((id) => history.snapshot(id)!) as [Snapshot, Snapshot | undefined]
  const unready = [target, base].find((each) => each?.ready === false)
  if (unready !== undefined) return refusal('UNAVAILABLE', `snapshot ${unready.id} is not ready yet; ask again later`)
  if (base !== undefined && !target.tracked) {
    return refusal('FAILED_PRECONDITION', `changes of ${target.volume} are not tracked; take a full backup`)
  }
  if (base !== undefined && !comparable(base, target)) {
    const why =
      base.volume === target.volume ? `${base.id} is newer than ${target.id}` : 'they are of different volumes'
    return refusal('INVALID_ARGUMENT', `the snapshots cannot be compared: ${why}; name an older one of the same volume`)
  }
  if (startingOffset > target.capacityBytes) {
    return refusal('OUT_OF_RANGE', `starting_offset is beyond the capacity ${target.capacityBytes}; begin below it`)
  }
  return { base, target }
}

/** The whole answer, ascending: merged, or block by block. */
export function tuplesOf({ base, target }: Subject, type: 'VARIABLE_LENGTH' | 'FIXED_LENGTH'): Tuple[] {
  const blocks = base === undefined ? allocatedBlocks(target) : changedBlocks(base, target)
  return type === 'VARIABLE_LENGTH' ? merged(blocks) : blocks.map((block) => [block * BLOCK_BYTES, BLOCK_BYTES])
}

/** What ends after the offset; a range that the offset lies in begins there, where that is asked for. */
export function tuplesFrom(tuples: readonly Tuple[], startingOffset: number, cut: boolean): Tuple[] {
  return tuples
    .filter(([offset, size]) => offset + size > startingOffset)
    .map(([offset, size]) =>
      cut && offset < startingOffset ? [startingOffset, offset + size - startingOffset] : [offset, size]
    )
}
