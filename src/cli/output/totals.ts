/** The totals of an answer, in the words that end a table and a map. */
import { counted, humanSize, percentage } from '../command-line/quantities.ts'

/** What the extents of an answer say of the volume. */
export type Subject = 'allocated' | 'changed'

export interface Totals {
  extents: number
  /** Sum of their sizes. */
  bytes: number
}

/** One line. It is the last, and says so: an output that is cut off lacks it. */
export function summary({ extents, bytes }: Totals, capacityBytes: number | undefined, subject: Subject): string {
  const found = `${counted(extents, 'extent')}, ${bytes} bytes (${humanSize(bytes)}) ${subject}`
  if (capacityBytes === undefined) return `${found} of a volume whose size the driver did not say; complete`
  const volume = `${capacityBytes} bytes (${humanSize(capacityBytes)})`
  const part = percentage(bytes, capacityBytes)
  return `${found} of ${volume}: ${part}; complete`
}
