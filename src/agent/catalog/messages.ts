/** The messages between the main thread and the catalog's thread. */
import type { CallName } from './calls.ts'
import type { PortableError } from '../../portable-error.ts'

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
