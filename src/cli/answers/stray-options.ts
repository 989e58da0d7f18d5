/** Options that say something to another source of answers than the one that was named. */
import { UsageError } from '../command-line/failure.ts'

/** @param options by their names, with their values. @throws UsageError where one has a value */
export function refuseStray(options: Readonly<Record<string, unknown>>, source: string): void {
  for (const [option, value] of Object.entries(options)) {
    if (value !== undefined) throw new UsageError(`${option} does not go with ${source}`, 'leave it out')
  }
}
