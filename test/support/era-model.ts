/**
 * An era device as the kernel runs it, in the plainest way: what was written to in which era, which eras are digested, and what a metadata
 * snapshot has kept. What an answer has to be follows from the list of writes alone (`writtenSince`), and not from what is digested.
 */
import type { EraView } from './era-image.ts'
import type { Extent } from './expected.ts'

interface EraWrites {
  readonly era: number
  readonly bits: number
  readonly marked: Set<number>
}

export class EraModel {
  #blocks: number
  #era = 1
  #current: EraWrites | undefined
  #writesets: EraWrites[] = []
  #eras = new Map<number, number>()
  /** Every write there was, in order. */
  readonly #writes: { readonly block: number; readonly era: number }[] = []
  #held: { readonly view: EraView; readonly writes: number } | undefined

  /** @param blocks size of the device */
  constructor(blocks: number) {
    this.#blocks = blocks
    this.#current = { era: 1, bits: blocks, marked: new Set() }
  }

  get blocks(): number {
    return this.#blocks
  }

  get era(): number {
    return this.#era
  }

  write(block: number): void {
    if (!this.#current) throw new Error('the device is suspended')
    if (block >= this.#blocks) throw new RangeError(`there is no block ${block}`)
    this.#current.marked.add(block)
    this.#writes.push({ block, era: this.#era })
  }

  checkpoint(): void {
    this.suspend()
    this.resume()
  }

  suspend(): void {
    if (this.#current) this.#writesets.push(this.#current)
    this.#current = undefined
  }

  /** @param blocks the size from now on; by default the same. Growing only */
  resume(blocks = this.#blocks): void {
    this.#blocks = blocks
    this.#era++
    this.#current = { era: this.#era, bits: blocks, marked: new Set() }
  }

  /** Digests the oldest writeset; up to block `upTo` only, where that is given, so that it stays. */
  digest(upTo?: number): void {
    const oldest = this.#writesets.at(0)
    if (!oldest) return
    for (const block of oldest.marked) if (upTo === undefined || block < upTo) this.#eras.set(block, oldest.era)
    if (upTo === undefined) this.#writesets.shift()
  }

  takeSnapshot(): void {
    if (this.#held) throw new Error('there is a metadata snapshot already')
    this.checkpoint()
    this.#held = { view: this.view(), writes: this.#writes.length }
  }

  dropSnapshot(): void {
    this.#held = undefined
  }

  /** As the metadata has it now; nothing that happens later changes it. */
  view(): EraView {
    const copy = (each: EraWrites) => ({ ...each, marked: new Set(each.marked) })
    return {
      blocks: this.#blocks,
      currentEra: this.#era,
      current: this.#current && copy(this.#current),
      writesets: this.#writesets.map(copy),
      eras: new Map(this.#eras)
    }
  }

  get held(): EraView | undefined {
    return this.#held?.view
  }

  /** The last era that the view knows. */
  lastEra(view: 'live' | 'metadata-snapshot'): number {
    return view === 'live' || !this.#held ? this.#era : this.#held.view.currentEra - 1
  }

  /** What was really written to, in these eras. */
  writtenSince(sinceEra: number, view: 'live' | 'metadata-snapshot', untilEra = Infinity): Set<number> {
    const writes = view === 'live' || !this.#held ? this.#writes : this.#writes.slice(0, this.#held.writes)
    return new Set(writes.filter(({ era }) => era >= sinceEra && era <= untilEra).map(({ block }) => block))
  }
}

export interface EraSizing {
  readonly blockBytes: number
  readonly sizeBytes: number
  readonly baseSizeBytes?: number | undefined
  readonly startingOffset?: number | undefined
}

/** What the answer has to be, when these blocks were written to. */
export function extentsOfBlocks(
  blocks: Iterable<number>,
  { blockBytes, sizeBytes, baseSizeBytes = Infinity, startingOffset = 0 }: EraSizing
): Extent[] {
  const count = Math.ceil(sizeBytes / blockBytes)
  const all = new Set(blocks)
  if (baseSizeBytes < sizeBytes) {
    for (let block = Math.floor(baseSizeBytes / blockBytes); block < count; block++) all.add(block)
  }
  const first = startingOffset < sizeBytes ? Math.floor(startingOffset / blockBytes) : Infinity
  const extents: [number, number][] = []
  let end = -1
  for (const block of [...all].filter((each) => each >= first && each < count).sort((a, b) => a - b)) {
    const size = Math.min(blockBytes, sizeBytes - block * blockBytes)
    const last = extents.at(-1)
    if (last && block === end) last[1] += size
    else extents.push([block * blockBytes, size])
    end = block + 1
  }
  return extents
}
