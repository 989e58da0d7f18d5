/** A DeltamapperError between threads: structured cloning would lose its class. */
import { DeltamapperError, type ErrorCode } from './errors.ts'

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
