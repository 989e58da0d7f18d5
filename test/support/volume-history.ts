/**
 * A volume's life as a chain of backups sees it, by a seed: snapshots with sizes that go up and down, blocks that are written, written anew and
 * trimmed. What a snapshot holds is known without any of the code under test; what is said of it is what dm-thin would say.
 */
import type { ExtentAnswer } from '../../src/devicemapper/extents.ts'
import type { NbdSource } from '../../src/nbd/source.ts'
import { Random } from './random.ts'

export interface HistoryOptions {
  readonly seed: number
  /** In bytes, of each snapshot: a multiple of 512. */
  readonly sizes: readonly number[]
  readonly blockBytes: number
}

/** What a block was last written with; blocks that are not mapped are not there. Beyond the end there can be more, as in LVM. */
type Mappings = ReadonlyMap<number, number>

export class VolumeHistory {
  readonly #options: HistoryOptions
  readonly #snapshots: { sizeBytes: number; mappings: Mappings }[] = []

  constructor(options: HistoryOptions) {
    this.#options = options
    const random = new Random(options.seed)
    let mappings = new Map<number, number>()
    options.sizes.forEach((sizeBytes, i) => {
      const blocks = Math.ceil(sizeBytes / options.blockBytes)
      mappings = new Map(mappings)
      for (let block = 0; block < blocks; block++) {
        if (random.chance(i === 0 ? 0.6 : 0.2)) mappings.set(block, random.integer(1, 250))
        else if (i > 0 && random.chance(0.1)) mappings.delete(block)
      }
      // The last one has old data in its tail, which is what shrinking is about.
      if (random.chance(0.7)) mappings.set(blocks - 1, random.integer(1, 250))
      this.#snapshots.push({ sizeBytes, mappings })
    })
  }

  get count(): number {
    return this.#snapshots.length
  }

  /** What a snapshot holds. */
  content(at: number): Buffer {
    const { sizeBytes, mappings } = this.#snapshots[at]
    const content = Buffer.alloc(sizeBytes)
    for (const [block, value] of mappings) {
      const begin = block * this.#options.blockBytes
      content.fill(value, Math.min(begin, sizeBytes), Math.min(begin + this.#options.blockBytes, sizeBytes))
    }
    return content
  }

  /** A snapshot to serve, by its handle `m/NUMBER`. */
  source(handle: string, bases: readonly string[]): NbdSource {
    const at = numberOf(handle)
    const { sizeBytes, mappings } = this.#snapshots[at]
    const content = this.content(at)
    const { blockBytes } = this.#options
    const blocks = Math.ceil(sizeBytes / blockBytes)
    const answer = (has: (block: number) => boolean) => async (): Promise<ExtentAnswer> => {
      const found = Array.from({ length: blocks }, (_, block) => block).filter(has)
      const batch = {
        count: found.length,
        offsets: Float64Array.from(found, (block) => block * blockBytes),
        sizes: Float64Array.from(found, (block) => Math.min(blockBytes, sizeBytes - block * blockBytes))
      }
      const batches = async function* () {
        if (batch.count > 0) yield batch
      }
      return { capacityBytes: sizeBytes, batches: batches() }
    }
    return {
      ...{ target: handle, identity: { fingerprint: handle }, sizeBytes, blockBytes },
      allocated: answer((block) => mappings.has(block)),
      bases: bases.map((name) => {
        const base = this.#snapshots[numberOf(name)]
        const beyond = Math.floor(base.sizeBytes / blockBytes)
        const differs = (block: number) =>
          base.mappings.get(block) !== mappings.get(block) || (block >= beyond && mappings.has(block))
        return { name, identity: { fingerprint: name }, sizeBytes: base.sizeBytes, delta: answer(differs) }
      }),
      data: {
        parts: async (offset, size) => [{ offset, size, position: offset }],
        read: async ({ position = 0, size }, into) => {
          content.copy(into, 0, position, position + size)
          return into.subarray(0, size)
        }
      },
      look: async () => undefined,
      close: async () => undefined
    }
  }
}

export function numberOf(handle: string): number {
  return Number(handle.split('/')[1])
}
