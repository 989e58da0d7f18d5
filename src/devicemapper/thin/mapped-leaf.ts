/**
 * Where a thin device's data blocks are: one leaf of its mapping tree at a time.
 */
import type { BlockReader } from '../block-reader.ts'
import { ALL_KEYS, entries, keyAt, leafOf, U64_SIZE } from '../btree.ts'

/**
 * What a device maps of the virtual blocks `[low, high)`: `blocks[i]`, ascending, is in data block `data[i]`; the
 * others are not mapped.
 */
export interface MappedLeaf {
  readonly low: number
  readonly high: number
  readonly blocks: Float64Array
  readonly data: Float64Array
}

/**
 * The leaf that a virtual block is in, mapped or not.
 *
 * @param root block number of the device's mapping tree
 * @throws what reading metadata throws
 */
export async function mappedLeaf(
  reader: BlockReader,
  root: number,
  block: number,
  signal?: AbortSignal
): Promise<MappedLeaf> {
  const found = await leafOf(
    reader,
    root,
    block,
    U64_SIZE,
    ({ window: { words }, node, range }) => {
      const blocks = new Float64Array(node.entries)
      const data = new Float64Array(node.entries)
      for (let i = 0; i < node.entries; i++) {
        const value = node.values + 2 * i
        blocks[i] = keyAt(words, node, i)
        // data block << 24 | time (dm-thin-metadata.c, pack_block_time)
        data[i] = words[value + 1] * 256 + (words[value] >>> 24)
      }
      return { low: range.low, high: range.high, blocks, data }
    },
    signal
  )
  if (found) return found
  // It is below all that the tree has.
  const none = new Float64Array(0)
  const first = await entries(reader, root, U64_SIZE, () => undefined, signal).next()
  return { low: ALL_KEYS.low, high: first.done ? ALL_KEYS.high : first.value.key, blocks: none, data: none }
}
