/**
 * The output of era_invalidate: the blocks written since an era.
 *
 *     <blocks> <block block="5"/> <range begin="64" end = "70"/>          0.9; 1.x leaves out the spaces. `end` is the
 *       first block that was not written
 *     </blocks>
 *
 * It names neither the device, nor the era, nor the size of a block. Nor does it show that some versions answer
 * wrongly: 0.9.0 --metadata-snapshot reads the live superblock, and 1.0.0 to 1.3.2 list nothing when all writesets have
 * been digested.
 */
import {
  type ByteStream,
  checkedEnd,
  openXml,
  type XmlDocument,
  type XmlElement,
  type XmlOptions
} from '../xml-stream.ts'
import { BATCH_RUNS, RunDialect } from '../run-dialect.ts'
import { mistaken } from '../xml-tools.ts'

/** An era device has fewer blocks than this (dm-era-target.c: valid_nr_blocks). */
export const MAX_ERA_BLOCKS = 2 ** 31

/**
 * Blocks `[begins[i], begins[i] + lengths[i])`, ascending, none overlapping, none empty. Valid until the next batch is
 * requested.
 */
export interface BlockRunBatch {
  count: number
  readonly begins: Float64Array
  readonly lengths: Float64Array
}

export type InvalidateXml = XmlDocument<object, BlockRunBatch>

/**
 * Reads era_invalidate's XML, as `openXml` does.
 *
 * @throws XmlInvalid; what the stream throws
 */
export async function readInvalidateXml(bytes: ByteStream, options?: XmlOptions): Promise<InvalidateXml> {
  return openXml(bytes, new InvalidateDialect(), options)
}

type Place = 'blocks' | 'leaf'

class InvalidateDialect extends RunDialect<object, BlockRunBatch, Place> {
  readonly patterns = ['<block block="#"/>', '<range begin="#" end="#"/>', '<range begin="#" end = "#"/>']
  /** The first block that may follow. */
  #next = 0

  constructor() {
    super('era_invalidate', {
      count: 0,
      begins: new Float64Array(BATCH_RUNS),
      lengths: new Float64Array(BATCH_RUNS)
    })
  }

  matched(pattern: number, numbers: Float64Array): void {
    if (this.place !== 'blocks') this.misplaced(pattern === 0 ? 'block' : 'range')
    this.#add(numbers[0], pattern === 0 ? numbers[0] + 1 : numbers[1])
  }

  opened(element: XmlElement): void {
    const { name } = element
    const block = (attribute: string) => element.number(attribute, MAX_ERA_BLOCKS)
    if (this.header === undefined) {
      if (name !== 'blocks') mistaken(name, 'era_invalidate', element)
      this.header = {}
      this.place = 'blocks'
    } else if (this.place === 'blocks' && (name === 'block' || name === 'range')) {
      if (name === 'block') this.#add(block('block'), block('block') + 1)
      else this.#add(block('begin'), block('end'))
      this.place = 'leaf'
    } else this.misplaced(name)
  }

  closed(): void {
    this.place = this.place === 'leaf' ? 'blocks' : 'outside'
  }

  #add(begin: number, end: number): void {
    this.#next = checkedEnd(begin, end - begin, this.#next, MAX_ERA_BLOCKS)
    const batch = this.batch
    const i = batch.count++
    batch.begins[i] = begin
    batch.lengths[i] = end - begin
  }
}
