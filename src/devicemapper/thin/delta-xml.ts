/**
 * The output of thin_delta, as runs of blocks.
 *
 *     <superblock uuid="" time="15" transaction="19" data_block_size="128" nr_data_blocks="0">
 *       <diff left="1" right="2">
 *         <different begin="0" length="3"/>                  plain
 *         <same>                                             --verbose
 *           <range begin="4" data_begin="69" length="17"/>
 *         </same>
 *       </diff>
 *     </superblock>
 *
 * 0.9 adds `metadata_snap` without -m. 1.x adds `flags` if the pool needs a check, writes `left_root` for --root1, and
 * ends without a newline. nr_data_blocks is 0 with -m. Blocks that neither device maps are not listed.
 *
 * The data addresses of --verbose are skipped: 1.0.0 to 1.3.3 print wrong ones for runs whose virtual blocks follow one
 * another while their data blocks do not.
 */
import {
  type ByteStream,
  checkedEnd,
  MAX_BLOCKS,
  openXml,
  refuse,
  type XmlDocument,
  type XmlElement,
  type XmlOptions
} from '../xml-stream.ts'
import { BATCH_RUNS, RunDialect } from '../run-dialect.ts'
import { mistaken } from '../xml-tools.ts'
import { MAX_DEVICES } from './device-details.ts'
import { poolHeader, type PoolXmlHeader } from './pool-xml.ts'

/** What became of a run; batches have the index. */
export const deltaKinds = ['same', 'different', 'left_only', 'right_only'] as const
export type DeltaKind = (typeof deltaKinds)[number]

export interface DeltaXmlHeader extends PoolXmlHeader {
  /** The two sides: thin device ids, or roots of mapping trees (metadata blocks). */
  left: DeltaSide
  right: DeltaSide
}

export type DeltaSide = { deviceId: number; root?: undefined } | { root: number; deviceId?: undefined }

/** Runs in ascending order, none overlapping, none empty, in data blocks. Valid until the next batch is requested. */
export interface DeltaRunBatch {
  count: number
  /** Index into `deltaKinds`. */
  readonly kinds: Uint8Array
  readonly begins: Float64Array
  readonly lengths: Float64Array
}

export type DeltaXml = XmlDocument<DeltaXmlHeader, DeltaRunBatch>

/**
 * Reads thin_delta's XML, plain or verbose, as `openXml` does.
 *
 * @throws XmlInvalid; what the stream throws
 */
export async function readDeltaXml(bytes: ByteStream, options?: XmlOptions): Promise<DeltaXml> {
  return openXml(bytes, new DeltaDialect(), options)
}

const DIFFERENT = deltaKinds.indexOf('different')
/** Indexes in `patterns`: where lists of ranges open and close, and the two forms of a range. */
const [OPENS, CLOSES, RANGE, DIFFERENT_RANGE] = [4, 8, 12, 13]

type Place = 'superblock' | 'diff' | 'list' | 'run' | 'range'

class DeltaDialect extends RunDialect<DeltaXmlHeader, DeltaRunBatch, Place> {
  readonly patterns = [
    ...deltaKinds.map((kind) => `<${kind} begin="#" length="#"/>`),
    ...deltaKinds.map((kind) => `<${kind}>`),
    ...deltaKinds.map((kind) => `</${kind}>`),
    '<range begin="#" data_begin="#" length="#"/>',
    '<range begin="#" left_data_begin="#" right_data_begin="#" length="#"/>'
  ]
  #pool: PoolXmlHeader | undefined
  /** The open list: what its ranges mean, and whether there was one. */
  #kind = 0
  #ranges = false
  /** The first block that may follow. */
  #next = 0

  constructor() {
    super('thin_delta', {
      count: 0,
      kinds: new Uint8Array(BATCH_RUNS),
      begins: new Float64Array(BATCH_RUNS),
      lengths: new Float64Array(BATCH_RUNS)
    })
  }

  matched(pattern: number, numbers: Float64Array): void {
    if (pattern < OPENS) {
      if (this.place !== 'diff') this.misplaced(deltaKinds[pattern])
      this.#run(pattern, numbers[0], numbers[1])
    } else if (pattern < CLOSES) this.#open(pattern - OPENS)
    else if (pattern < RANGE) this.#close()
    else if (pattern < DIFFERENT_RANGE) this.#range(false, numbers[0], numbers[1], 0, numbers[2])
    else this.#range(true, numbers[0], numbers[1], numbers[2], numbers[3])
  }

  opened(element: XmlElement): void {
    const { name } = element
    const kind = deltaKinds.indexOf(name as DeltaKind)
    const begin = () => element.number('begin', MAX_BLOCKS)
    const length = () => element.number('length', MAX_BLOCKS)
    if (this.#pool === undefined) {
      this.#pool = poolHeader(element, 'thin_delta')
      this.place = 'superblock'
    } else if (this.header === undefined) {
      if (name !== 'diff') mistaken(name, 'thin_delta')
      this.header = { ...this.#pool, left: side(element, 'left'), right: side(element, 'right') }
      this.place = 'diff'
    } else if (this.place === 'diff' && kind >= 0) {
      if (!element.has('begin') && !element.has('length')) this.#open(kind)
      else {
        this.#run(kind, begin(), length())
        this.place = 'run'
      }
    } else if (this.place === 'list' && name === 'range') {
      const data = (attribute: string) => element.number(attribute, MAX_BLOCKS)
      if (this.#kind !== DIFFERENT) this.#range(false, begin(), data('data_begin'), 0, length())
      else this.#range(true, begin(), data('left_data_begin'), data('right_data_begin'), length())
      this.place = 'range'
    } else this.misplaced(name)
  }

  closed(): void {
    switch (this.place) {
      case 'range':
        this.place = 'list'
        break
      case 'run':
        this.place = 'diff'
        break
      case 'list':
        this.#close()
        break
      case 'diff':
        this.place = 'superblock'
        break
      case 'superblock':
      case 'outside':
        if (this.header === undefined) refuse('<superblock> holds no <diff>')
        this.place = 'outside'
    }
  }

  #open(kind: number): void {
    if (this.place !== 'diff') this.misplaced(deltaKinds[kind])
    this.place = 'list'
    this.#kind = kind
    this.#ranges = false
  }

  #close(): void {
    if (!this.#ranges) refuse(`<${deltaKinds[this.#kind]}> says of no blocks`)
    this.place = 'diff'
  }

  #range(two: boolean, begin: number, data: number, otherData: number, length: number): void {
    if (this.place !== 'list') this.misplaced('range')
    if (two !== (this.#kind === DIFFERENT)) refuse(`a range of <${deltaKinds[this.#kind]}> has other attributes`)
    if (data + length > MAX_BLOCKS || otherData + length > MAX_BLOCKS) refuse('its data blocks are beyond 2^40')
    this.#ranges = true
    this.#run(this.#kind, begin, length)
  }

  #run(kind: number, begin: number, length: number): void {
    this.#next = checkedEnd(begin, length, this.#next, MAX_BLOCKS)
    const batch = this.batch
    const i = batch.count++
    batch.kinds[i] = kind
    batch.begins[i] = begin
    batch.lengths[i] = length
  }
}

/** `left` or `left_root`, and the like: exactly one of the two. */
function side(element: XmlElement, name: 'left' | 'right'): DeltaSide {
  const deviceId = element.optionalNumber(name, MAX_DEVICES - 1)
  const root = element.optionalNumber(`${name}_root`, MAX_BLOCKS)
  if (deviceId !== undefined && root === undefined) return { deviceId }
  if (deviceId === undefined && root !== undefined) return { root }
  return refuse(`<diff> says not what its ${name} side is: either ${name} or ${name}_root does`)
}
