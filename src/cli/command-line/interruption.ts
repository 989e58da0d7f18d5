/** Ends a running question early: Ctrl-C, or its time limit. */
import { DeltamapperError } from '../../errors.ts'
import { Interrupted } from './failure.ts'

/**
 * Runs `work` with a signal that aborts on SIGINT and, if there is a limit, when it is up. A second SIGINT ends the
 * process at once, as if nothing handled it.
 */
export async function interruptible<T>(
  timeoutSeconds: number | undefined,
  work: (signal: AbortSignal) => Promise<T>
): Promise<T> {
  const controller = new AbortController()
  const interrupt = () => {
    controller.abort(new Interrupted())
  }
  const timer =
    timeoutSeconds === undefined
      ? undefined
      : setTimeout(() => {
          controller.abort(
            new DeltamapperError(
              'DM_DEADLINE_EXCEEDED',
              `the answer was not complete after ${timeoutSeconds} seconds`,
              'allow more time with --timeout, or go on from the end of the last extent with --starting-offset'
            )
          )
        }, timeoutSeconds * 1000)
  process.once('SIGINT', interrupt)
  try {
    return await work(controller.signal)
  } finally {
    process.removeListener('SIGINT', interrupt)
    clearTimeout(timer)
  }
}
