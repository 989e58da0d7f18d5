/**
 * What came of comparing data with answers, as it is recorded: which bytes of a history's snapshots the answers left
 * out.
 */
export interface ContentRecord {
  readonly kind: 'content'
  /** The history, as in docs/conformance.md. */
  readonly history: string
  readonly base: string | null
  readonly target: string
  /** Bytes of the device that was restored from the target. */
  readonly deviceBytes: number
  /** volume_capacity_bytes of the answer; null where it had no message. */
  readonly capacityBytes: number | null
  /** Bytes that really changed or hold data, at 4 KiB. */
  readonly changedBytes: number
  readonly reportedBytes: number
  /** The first ranges that differ and were not reported, start and end one after the other. */
  readonly lost: readonly number[]
  /** Why it could not be compared; null where it was. */
  readonly failure: string | null
  /** Why the history was not tried; then the other fields say nothing. */
  readonly skipped?: string
}
