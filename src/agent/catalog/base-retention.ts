/**
 * Which records of bases are kept: the newest of each volume, all that are young, and no more bytes than there is room
 * for.
 */
import type { KnownBase } from './bases.ts'

export interface BaseRetention {
  /** How many of each volume; 0 keeps none at all. */
  readonly keep: number
  /** How long others are kept, in milliseconds. */
  readonly keptMs: number
  /** For all together. */
  readonly maxBytes: number
}

/** A record, and the volume that it is of. */
type Recorded = Pick<KnownBase, 'pool' | 'identity' | 'volume' | 'recordBytes' | 'recordedAt'>

/**
 * The records to remove, oldest first: what is neither among the newest of its volume nor young, and then as much as
 * exceeds the room. Of a volume that has more than `keep`, first; the newest of a volume, last.
 *
 * @param now milliseconds since 1970
 */
export function recordsToRemove<R extends Recorded>(
  records: readonly R[],
  { keep, keptMs, maxBytes }: BaseRetention,
  now: number
): R[] {
  const oldestFirst = records.toSorted((one, other) => (one.recordedAt ?? 0) - (other.recordedAt ?? 0))
  const left = new Map<string, number>()
  for (const each of oldestFirst) left.set(volumeOf(each), (left.get(volumeOf(each)) ?? 0) + 1)
  const removed = new Set<R>()
  const remove = (each: R) => {
    removed.add(each)
    left.set(volumeOf(each), (left.get(volumeOf(each)) ?? 0) - 1)
  }
  const leftOf = (each: R) => left.get(volumeOf(each)) ?? 0
  for (const each of oldestFirst) {
    if (leftOf(each) > keep && now - (each.recordedAt ?? 0) > keptMs) remove(each)
  }
  let bytes = oldestFirst.reduce((sum, each) => sum + (removed.has(each) ? 0 : (each.recordBytes ?? 0)), 0)
  for (const mayGo of [(each: R) => leftOf(each) > Math.max(keep, 1), (each: R) => leftOf(each) > 1, () => true]) {
    for (const each of oldestFirst) {
      if (bytes <= maxBytes) break
      if (removed.has(each) || !mayGo(each)) continue
      remove(each)
      bytes -= each.recordBytes ?? 0
    }
  }
  return oldestFirst.filter((each) => removed.has(each))
}

function volumeOf({ pool, identity, volume }: Recorded): string {
  return JSON.stringify([pool, volume ?? identity])
}
