/**
 * How a command fails: one line on stderr with what is wrong and what to do, and an exit status that scripts can rely
 * on. Never a stack trace.
 */
import { asDeltamapperError, DeltamapperError, type ErrorCode } from '../../errors.ts'

/** Exit statuses. Those above 128 are a shell's for a process that a signal ended (SIGINT 2, SIGPIPE 13). */
export const exitStatus = { failed: 1, usage: 2, interrupted: 130, outputClosed: 141 } as const

/** The command line itself is wrong: exit status 2. */
export class UsageError extends DeltamapperError {
  constructor(message: string, remedy: string, code: ErrorCode = 'DM_ARGUMENT_INVALID') {
    super(code, message, remedy)
  }
}

/**
 * Agents know snapshots by their handles only.
 *
 * @param form of a handle, as the command's help has it
 * @throws UsageError for a thin device id
 */
export function refuseThinId(snapshot: string, form: 'VG/LV' | 'SOURCE/NAME'): void {
  if (snapshot.includes('/')) return
  throw new UsageError(
    `${snapshot} is no ${form}: a thin device id goes with --metadata`,
    'name the snapshot as its agent knows it, or the metadata of its pool with --metadata FILE'
  )
}

/** Ctrl-C. */
export class Interrupted extends DeltamapperError {
  constructor() {
    super('DM_CANCELLED', 'interrupted, so that the output is not complete', 'run it again for a complete one')
  }
}

/** The reader of our stdout has ended (`| head`): print nothing more. */
export class OutputClosed extends Error {}

/** What to print, if anything, and the exit status. */
export function describeFailure(thrown: unknown): { line: string | undefined; status: number } {
  if (thrown instanceof OutputClosed) return { line: undefined, status: exitStatus.outputClosed }
  const error = asDeltamapperError(thrown)
  const status =
    error instanceof UsageError
      ? exitStatus.usage
      : error instanceof Interrupted
        ? exitStatus.interrupted
        : exitStatus.failed
  return { line: oneLine(`deltamapper: ${error.message}; ${error.remedy} (${error.code})`), status }
}

/** File names and server texts may hold line breaks and terminal escapes. */
export function oneLine(text: string): string {
  return text.replaceAll(/[\p{Cc}\u2028\u2029]+/gu, ' ')
}
