/**
 * Arrays of dm-persistent-data, as dm-era keeps them (drivers/md/persistent-data/dm-array.c): a B-tree without gaps,
 * from 0 on, of blocks that hold the elements side by side. A bitset (dm-bitset.c) is an array of 64-bit words; bit `b`
 * is bit `b & 63` of word `b >> 6`.
 *
 *      0        4             8             12           16                24
 *      ┌────────┬─────────────┬─────────────┬────────────┬─────────────────┬──────────────────────────────┐
 *      │ csum   │ max entries │ entries     │ value size │ own block       │ elements, value size each    │
 *      │ u32    │ u32         │ u32         │ u32        │ number u64      │                              │
 *      └────────┴─────────────┴─────────────┴────────────┴─────────────────┴──────────────────────────────┘
 *
 * All blocks but the last are full. An array block does not say which part of which array it is: that stands in the
 * tree alone.
 */
import { type BlockReader, type BlockWindow, damaged } from './block-reader.ts'
import { blockAt, highestKey, keyAt, leafOf, U64_SIZE } from './btree.ts'
import { checksumSalt } from './checksum.ts'
import { METADATA_BLOCK_BYTES } from '../units.ts'

const HEADER_BYTES = 24
const HEADER_WORDS = HEADER_BYTES / 4

/** An array: the root of its tree, and its properties. */
export interface ArrayShape {
  /** Root block of its tree. */
  readonly root: number
  /** How many elements it has. */
  readonly length: number
  /** Bytes per element. */
  readonly valueSize: 4 | 8
}

/** Elements in a full array block. */
export function arrayBlockCapacity(valueSize: ArrayShape['valueSize']): number {
  return Math.floor((METADATA_BLOCK_BYTES - HEADER_BYTES) / valueSize)
}

/**
 * Checks an array block and gives the index in `window.words` of its first element.
 *
 * @param i which of the requested blocks it is
 * @param index which block of the array it is
 * @throws DM_METADATA_DAMAGED naming the block
 */
export function arrayElements(
  window: BlockWindow,
  i: number,
  { length, valueSize }: ArrayShape,
  index: number,
  reader: BlockReader,
  block: number
): number {
  const { words } = window
  const base = window.firstWord(i)
  const capacity = arrayBlockCapacity(valueSize)
  const [maxEntries, entries, size] = [words[base + 1], words[base + 2], words[base + 3]]
  if (size !== valueSize || maxEntries !== capacity) {
    const what = `${maxEntries} elements of ${size} bytes at most`
    throw damaged(reader.path, block, `it holds ${what} where ${capacity} of ${valueSize} are due`)
  }
  const due = Math.min(capacity, length - index * capacity)
  if (entries !== due) throw damaged(reader.path, block, `it holds ${entries} elements where ${due} are due`)
  return base + HEADER_WORDS
}

/** Finds an array's blocks. In ascending order it reads each leaf of the tree once, and keeps no more than one. */
export class ArrayIndex {
  readonly shape: ArrayShape
  readonly #reader: BlockReader
  /** The blocks of the array that the last leaf lists: from `#first` on. */
  #blocks = new Float64Array(0)
  #first = 0

  constructor(reader: BlockReader, shape: ArrayShape) {
    this.#reader = reader
    this.shape = shape
  }

  /** How many blocks the array has. */
  get count(): number {
    return Math.ceil(this.shape.length / arrayBlockCapacity(this.shape.valueSize))
  }

  /** Block `index` of the array, if the last leaf lists it. */
  known(index: number): number | undefined {
    return this.#blocks[index - this.#first]
  }

  /**
   * Block `index` of the array.
   *
   * @param index below `count`
   * @throws DM_METADATA_DAMAGED naming the block of the tree in which it should stand
   */
  async blockOf(index: number, signal?: AbortSignal): Promise<number> {
    const known = this.known(index)
    if (known !== undefined) return known
    await this.#findLeaf(index, signal)
    return this.#blocks[index - this.#first]
  }

  /**
   * Checks the length of the array: reads one path, and the last block.
   *
   * @throws DM_METADATA_DAMAGED
   */
  async checkLength(signal?: AbortSignal): Promise<void> {
    const { root } = this.shape
    if (this.count === 0) {
      if ((await highestKey(this.#reader, root, U64_SIZE, signal)) === undefined) return
      throw damaged(this.#reader.path, root, 'the array below it has elements where none are due')
    }
    const last = this.count - 1
    const block = await this.blockOf(last, signal)
    const check = (window: BlockWindow) => arrayElements(window, 0, this.shape, last, this.#reader, block)
    await this.#reader.read(block, checksumSalt.arrayBlock, check, signal)
  }

  async #findLeaf(index: number, signal?: AbortSignal): Promise<void> {
    const { path } = this.#reader
    const { root } = this.shape
    const found = await leafOf(
      this.#reader,
      root,
      index,
      U64_SIZE,
      ({ window: { words }, node, range, block }) => {
        const first = node.entries > 0 ? keyAt(words, node, 0) : 0
        const end = first + node.entries
        // Ascending keys without a gap: the last one determines all between.
        if (node.entries > 0 && keyAt(words, node, node.entries - 1) !== end - 1) {
          throw damaged(path, block, 'the blocks of an array do not follow each other without a gap')
        }
        if (index >= end) throw damaged(path, block, `it lacks block ${index} of an array`)
        // The last leaf has the last block, and no other has it.
        if (end > this.count || (end === this.count) !== (range.high === Infinity)) {
          throw damaged(path, block, `an array of ${this.count} blocks does not end where it has to`)
        }
        const blocks = new Float64Array(node.entries)
        for (let i = 0; i < blocks.length; i++) blocks[i] = blockAt(words, node, i)
        return { first, blocks }
      },
      signal
    )
    if (!found) throw damaged(path, root, `the array below it lacks block ${index}`)
    this.#first = found.first
    this.#blocks = found.blocks
  }
}
