/** The messages between the main thread and the catalog's thread. */
import { DeltamapperError, type ErrorCode } from '../../errors.ts'
import type { CallName } from './calls.ts'

/** The arguments of the thread. */
export interface Start {
  path: string
  lockWaitMs: number | undefined
}

/** Calls are answered in the order in which they were made. `close` is the last. */
export interface ToCatalog {
  call: CallName | 'close'
  args: unknown[]
}

/** The first answer is about opening: its result is an `Opening`. After one with `last`, the thread ends. */
export type FromCatalog = { result: unknown; last: boolean } | { error: PortableError; last: boolean }

/** A DeltamapperError between threads; structured cloning would lose its class. */
export interface PortableError {
  code: ErrorCode
  message: string
  remedy: string
  stack: string | undefined
}

export function toPortable({ code, message, remedy, cause, stack }: DeltamapperError): PortableError {
  return { code, message, remedy, stack: cause instanceof Error ? cause.stack : stack }
}

export function fromPortable({ code, message, remedy, stack }: PortableError): DeltamapperError {
  const error = new DeltamapperError(code, message, remedy)
  if (stack !== undefined) error.stack = stack
  return error
}
