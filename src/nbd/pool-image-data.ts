/**
 * A thin snapshot's bytes without its kernel: found through its mapping tree, read from the pool's data image or
 * device.
 *
 *   virtual block ──mapping tree──▶ data block ──▶ position in the data
 *                 └─ not mapped ──▶ zeros
 */
import type { MappedLeaf } from '../devicemapper/thin/mapped-leaf.ts'
import type { PoolMetadata, ThinDevice } from '../devicemapper/thin/pool-metadata.ts'
import type { DataFile } from './data-file.ts'
import type { ExportData, Part } from './export.ts'

/** Leaves that are remembered, each of up to 252 mappings: neighbours are asked for together. */
const MOST_LEAVES = 64

export class PoolImageData implements ExportData {
  readonly #metadata: PoolMetadata
  readonly #device: ThinDevice
  readonly #file: DataFile
  /** The one used last is at the end. */
  readonly #leaves: MappedLeaf[] = []

  constructor(metadata: PoolMetadata, device: ThinDevice, file: DataFile) {
    this.#metadata = metadata
    this.#device = device
    this.#file = file
  }

  async parts(offset: number, size: number): Promise<Part[]> {
    const blockBytes = this.#metadata.superblock.dataBlockBytes
    const parts: { offset: number; size: number; position: number | undefined }[] = []
    const end = offset + size
    for (let at = offset; at < end;) {
      const block = Math.floor(at / blockBytes)
      const leaf = await this.#leafOf(block)
      const { dataBlock, untilBlock } = find(leaf, block)
      const next = Math.min(end, untilBlock * blockBytes)
      const position = dataBlock === undefined ? undefined : dataBlock * blockBytes + (at - block * blockBytes)
      const last = parts.at(-1)
      const follows =
        last !== undefined &&
        (last.position === undefined ? position === undefined : last.position + last.size === position)
      if (follows) last.size += next - at
      else parts.push({ offset: at, size: next - at, position })
      at = next
    }
    return parts
  }

  async read(part: Part, into: Buffer): Promise<Buffer> {
    return this.#file.read(part, into)
  }

  async #leafOf(block: number): Promise<MappedLeaf> {
    const known = this.#leaves.findLastIndex(({ low, high }) => block >= low && block < high)
    const leaf = known < 0 ? await this.#metadata.mappedLeaf(this.#device, block) : this.#leaves.splice(known, 1)[0]
    if (this.#leaves.length === MOST_LEAVES) this.#leaves.shift()
    this.#leaves.push(leaf)
    return leaf
  }
}

/** Where a block is; undefined and up to which block nothing is. */
function find({ blocks, data, high }: MappedLeaf, block: number): { dataBlock?: number; untilBlock: number } {
  let below = 0
  let above = blocks.length
  while (below < above) {
    const middle = (below + above) >>> 1
    if (blocks[middle] < block) below = middle + 1
    else above = middle
  }
  if (blocks[below] === block) return { dataBlock: data[below], untilBlock: block + 1 }
  return { untilBlock: below < blocks.length ? blocks[below] : high }
}
