/**
 * Backups of the mock's snapshots without data: what a block holds is the number of the write that filled it, so that
 * a copy of the map is a copy of the data, exactly.
 */
import type { Mock } from '../../src/mock/mock.ts'
import { BLOCK_BYTES, type Snapshot, type Tuple } from '../../src/mock/driver/history.ts'

/** What is in each block of a copy; nothing and zeroes read the same. */
export type Copy = Map<number, number>

export function snapshotsOf(mock: Mock): Snapshot[] {
  const [{ volume }] = mock.snapshots
  return mock.driver.history.snapshots.filter((each) => each.volume === volume)
}

/** Copies what the tuples name out of a snapshot; what is in a block by part is copied as a whole. */
export function copyInto(copy: Copy, { blocks, capacityBytes }: Snapshot, tuples: readonly Tuple[]): void {
  for (const [offset, size] of tuples) {
    const end = Math.min(offset + size, capacityBytes)
    for (let block = Math.floor(offset / BLOCK_BYTES); block * BLOCK_BYTES < end; block++) {
      copy.set(block, blocks.get(block) ?? 0)
    }
  }
}

export function isRight(copy: Copy, { blocks }: Snapshot): boolean {
  const all = new Set([...copy.keys(), ...blocks.keys()])
  return [...all].every((block) => (copy.get(block) ?? 0) === (blocks.get(block) ?? 0))
}
