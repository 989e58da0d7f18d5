/**
 * DeltamapperError to gRPC status and back.
 *
 * On the wire an error is its status code and one line of text: what is wrong and what to do (`DeltamapperError.line`).
 * The details of the status stay empty, as CSI demands. So the line itself carries the DM_ code, and our client takes
 * it apart again. (CSI spec, "Error Scheme": status.message is human readable, status.details is empty, UNKNOWN says
 * nothing to anyone.)
 */
import { Metadata, type ServiceError, status as grpcStatus } from '@grpc/grpc-js'
import { asDeltamapperError, DeltamapperError, errorRegistry, type ErrorCode, type StatusName } from '../errors.ts'
import { connectionFailure } from './connection-failure.ts'

/** How grpc-js ends a call. `details` is its name for status.message. */
export interface WireStatus {
  readonly code: number
  readonly details: string
  /** Trailing metadata, where there is any. */
  readonly metadata?: Metadata
}

/** How a passed-on call ended: as an error of ours for the log, and word for word for the caller. */
export class RelayedStatus extends DeltamapperError {
  readonly wire: WireStatus

  constructor(wire: WireStatus, address: string) {
    const { code, message, remedy } = fromStatus(wire, address)
    super(code, message, remedy)
    this.wire = wire
  }
}

/**
 * gRPC implementations limit all trailers together to as little as 8 KiB, and escaping takes up to 9 bytes a character.
 * Our own texts are far shorter; one that quotes foreign text might not be.
 */
const maximumTextLength = 800

/** The trailing metadata that holds the DM_ code, for clients that do not want to take the text apart. */
export const errorCodeKey = 'deltamapper-error-code'

/** The initial metadata in which an agent tells a person something about an answer, in printable ASCII. */
export const remarkKey = 'deltamapper-remark'

export function remarkMetadata(remark: string): Metadata {
  const metadata = new Metadata()
  metadata.set(remarkKey, remark.replaceAll(/[^ -~]/g, '?'))
  return metadata
}

/**
 * Any thrown value as the status that ends a call. Anything but a DeltamapperError is a defect: INTERNAL, never
 * UNKNOWN.
 *
 * @param audience `others` are on other machines: their texts name no folders of this machine, and nothing that they
 *   did not ask about
 */
export function toStatus(thrown: unknown, audience: 'ours' | 'others' = 'ours'): WireStatus {
  const error = asDeltamapperError(thrown)
  if (error instanceof RelayedStatus) return error.wire
  const metadata = new Metadata()
  metadata.set(errorCodeKey, error.code)
  const line = audience === 'ours' ? error.line : lineForOthers(error)
  return { code: grpcStatus[error.status], details: oneLine(line), metadata }
}

function lineForOthers({ code, message, remedy, forOthers = {} }: DeltamapperError): string {
  return `${code}: ${forOthers.message ?? withoutFolders(message)}; ${forOthers.remedy ?? withoutFolders(remedy)}`
}

/** Replaces a path by the last part of it. */
function withoutFolders(text: string): string {
  return text.replaceAll(/(?<![\w.~/])\/(?:[^\s/'"`,;:()]+\/)+(?=[^\s/'"`,;:()])/g, '')
}

/** Whether grpc-js threw it for the status of a call. */
export function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && typeof (error as Partial<ServiceError>).code === 'number'
}

/** gRPC's name of a code; a code that gRPC does not know counts as UNKNOWN. */
export function nameOfStatus(code: number): string {
  return grpcStatus[code] ?? 'UNKNOWN'
}

/**
 * The status that a call to `address` ended with, as a DeltamapperError with the server's words and, as far as we have
 * it, its status.
 */
export function fromStatus({ code, details }: WireStatus, address: string): DeltamapperError {
  const text = oneLine(details)
  const statusName = grpcStatus[code] ?? `status ${code}`
  const ours = /^(DM_[A-Z_]+): (.*); (.*)$/.exec(text)
  if (ours) {
    const [, dmCode, message, remedy] = ours as unknown as [string, string, string, string]
    if (isErrorCode(dmCode) && errorRegistry[dmCode].status === statusName) {
      return new DeltamapperError(dmCode, message, remedy)
    }
  }
  // Either grpc-js itself made it, or a server that is not ours.
  if (statusName === 'UNAVAILABLE') return unreachable(text, address)
  const [dmCode, remedy] = foreignStatus[statusName as StatusName] ?? [
    'DM_SERVER_FAILED',
    'look into the log of the server'
  ]
  return new DeltamapperError(dmCode, `${address} answered ${statusName}: ${text || 'no reason given'}`, remedy)
}

/** The statuses of other CSI servers in our terms (CSI spec, error table of SnapshotMetadata). */
const foreignStatus: Partial<Record<StatusName, [ErrorCode, string]>> = {
  CANCELLED: ['DM_CANCELLED', 'call again if it was not you who cancelled'],
  INVALID_ARGUMENT: ['DM_ARGUMENT_INVALID', 'correct the request'],
  PERMISSION_DENIED: ['DM_ACCESS_DENIED', 'get the permission that it asks for'],
  DEADLINE_EXCEEDED: ['DM_DEADLINE_EXCEEDED', 'allow more time, or resume from the end of the last extent received'],
  NOT_FOUND: ['DM_SNAPSHOT_NOT_FOUND', 'check the snapshot ids'],
  FAILED_PRECONDITION: ['DM_NOT_TRACKED', 'take a full backup instead'],
  ABORTED: ['DM_SNAPSHOT_CHANGED', 'discard what was received, and call again from offset 0'],
  OUT_OF_RANGE: ['DM_OFFSET_OUT_OF_RANGE', 'give a starting offset within the volume'],
  DATA_LOSS: ['DM_METADATA_DAMAGED', 'take a full backup and have the storage checked']
}

function unreachable(said: string, address: string): DeltamapperError {
  const { why, remedy } = connectionFailure(said)
  const start = address.startsWith('unix:')
    ? `start the agent there (deltamapper agent --listen ${address}), or correct the address`
    : 'see whether an agent runs there and listens on that address, or correct it'
  return new DeltamapperError('DM_UNREACHABLE', `${address} does not answer (${why})`, remedy ?? start)
}

function isErrorCode(code: string): code is ErrorCode {
  return Object.hasOwn(errorRegistry, code)
}

/**
 * Makes a text fit for a header, a log line and a terminal: well-formed (grpc-js fails on half a surrogate pair),
 * without control characters (texts quote ids and file names that others chose), and bounded.
 */
function oneLine(text: string): string {
  // eslint-disable-next-line no-control-regex -- to remove them is the point
  const line = text.replaceAll(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, ' ').toWellFormed()
  return line.length <= maximumTextLength ? line : `${line.slice(0, maximumTextLength - 1).toWellFormed()}…`
}
