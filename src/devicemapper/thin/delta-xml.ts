/**
 * What thin_delta prints, as runs of blocks.
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
 * 0.9 adds `metadata_snap` without -m, 1.x adds `flags` where the pool needs a check, writes `left_root` for --root1, and ends without a
 * newline. nr_data_blocks is 0 with -m. What neither device maps is not mentioned.
 *
 * The data addresses of --verbose are read over and never handed out: 1.0.0 to 1.3.3 print wrong ones for runs whose virtual blocks
 * follow one another while their data blocks do not.
 */
import { type ByteStream, type Dialect, MAX_BLOCKS, readXml, refuse, type XmlElement, type XmlOptions } from '../xml-stream.ts'
import { identify, poolHeader, type PoolXmlHeader } from './pool-xml.ts'

/** What became of a run, by the numbers that batches have for it. */
export const deltaKinds = ['same', 'different', 'left_only', 'right_only'] as const
export type DeltaKind = (typeof deltaKinds)[number]

export interface DeltaXmlHeader extends PoolXmlHeader {
  /** What was compared: thin device ids, or roots of mapping trees (metadata blocks). */
  left: DeltaSide
  right: DeltaSide
}

export type DeltaSide = { deviceId: number; root?: undefined } | { root: number; deviceId?: undefined }

/** Runs in ascending order, none overlapping, none empty, in data blocks. Valid until the next batch is asked for. */
export interface DeltaRunBatch {
  count: number
  /** Index into `deltaKinds`. */
  readonly kinds: Uint8Array
  readonly begins: Float64Array
  readonly lengths: Float64Array
}

export interface DeltaXml {
  readonly header: DeltaXmlHeader
  /** Ends only where the document has ended well; throws XmlInvalid otherwise. */
  readonly batches: AsyncIterable<DeltaRunBatch>
}

/**
 * Reads thin_delta's XML, plain or verbose. Resolves once the header has been there; whoever then does not go through the batches leaves
 * the stream open.
 *
 * @throws XmlInvalid; whatever the stream throws
 */
export async function readDeltaXml(bytes: ByteStream, options?: XmlOptions): Promise<DeltaXml> {
  const dialect = new DeltaDialect()
  const steps = readXml(bytes, dialect, options)
  while (dialect.header === undefined) await steps.next()
  return { header: dialect.header, batches: batchesOf(steps, dialect) }
}

async function* batchesOf(steps: AsyncGenerator<void, void>, dialect: DeltaDialect): AsyncGenerator<DeltaRunBatch> {
  try {
    do {
      if (dialect.batch.count > 0) yield dialect.batch
      dialect.batch.count = 0
    } while (!(await steps.next()).done)
  } finally {
    await steps.return()
  }
}

const BATCH_RUNS = 4096
/** Thin device ids are below this. */
const MAX_DEVICES = 2 ** 24
/** In `patterns`: where those begin that open and close a list of ranges, and the two forms of a range. */
const [OPENS, CLOSES, RANGE, DIFFERENT_RANGE] = [deltaKinds.length, 2 * deltaKinds.length, 12, 13]
const DIFFERENT = deltaKinds.indexOf('different')

type Place = 'outside' | 'superblock' | 'diff' | 'list' | 'run' | 'range' | 'after'

class DeltaDialect implements Dialect {
  readonly patterns = [
    ...deltaKinds.map((kind) => `<${kind} begin="#" length="#"/>`),
    ...deltaKinds.map((kind) => `<${kind}>`),
    ...deltaKinds.map((kind) => `</${kind}>`),
    '<range begin="#" data_begin="#" length="#"/>',
    '<range begin="#" left_data_begin="#" right_data_begin="#" length="#"/>'
  ]
  header: DeltaXmlHeader | undefined
  readonly batch = {
    count: 0,
    kinds: new Uint8Array(BATCH_RUNS),
    begins: new Float64Array(BATCH_RUNS),
    lengths: new Float64Array(BATCH_RUNS)
  }
  #place: Place = 'outside'
  #pool: PoolXmlHeader | undefined
  /** Of the list that is open, and whether it has a range. */
  #kind = 0
  #ranges = false
  /** The first block that may follow. */
  #next = 0

  get full(): boolean {
    return this.batch.count === BATCH_RUNS
  }

  get complete(): boolean {
    return this.#place === 'outside' && this.header !== undefined
  }

  matched(pattern: number, numbers: Float64Array): void {
    if (pattern < OPENS) {
      if (this.#place !== 'diff') this.#misplaced(deltaKinds[pattern])
      this.#run(pattern, numbers[0], numbers[1])
    } else if (pattern < CLOSES) this.#open(pattern - OPENS)
    else if (pattern < RANGE) this.#close()
    else if (pattern === RANGE) this.#range(false, numbers[0], numbers[1], 0, numbers[2])
    else this.#range(true, numbers[0], numbers[1], numbers[2], numbers[3])
  }

  opened(element: XmlElement): void {
    const { name } = element
    const kind = deltaKinds.indexOf(name as DeltaKind)
    if (this.#place === 'outside' && this.#pool === undefined) {
      if (name !== 'superblock' || !element.has('data_block_size')) identify(element, "thin_delta's")
      this.#pool = poolHeader(element)
      this.#place = 'superblock'
    } else if (this.#place === 'superblock' && name === 'diff' && this.header === undefined) {
      this.header = { ...(this.#pool as PoolXmlHeader), left: side(element, 'left'), right: side(element, 'right') }
      this.#place = 'diff'
    } else if (this.#place === 'superblock' && this.header === undefined) identify(element, "thin_delta's")
    else if (this.#place === 'diff' && kind >= 0) {
      if (!element.has('begin') && !element.has('length')) this.#open(kind)
      else {
        this.#run(kind, element.number('begin', MAX_BLOCKS), element.number('length', MAX_BLOCKS))
        this.#place = 'run'
      }
    } else if (this.#place === 'list' && name === 'range') {
      const two = this.#kind === DIFFERENT
      const data = element.number(two ? 'left_data_begin' : 'data_begin', MAX_BLOCKS)
      const other = two ? element.number('right_data_begin', MAX_BLOCKS) : 0
      this.#range(two, element.number('begin', MAX_BLOCKS), data, other, element.number('length', MAX_BLOCKS))
      this.#place = 'range'
    } else this.#misplaced(name)
  }

  closed(): void {
    switch (this.#place) {
      case 'range':
        this.#place = 'list'
        break
      case 'run':
        this.#place = 'diff'
        break
      case 'list':
        this.#close()
        break
      case 'diff':
        this.#place = 'superblock'
        break
      default:
        if (this.header === undefined) refuse('<superblock> holds no <diff>')
        this.#place = 'outside'
    }
  }

  #open(kind: number): void {
    if (this.#place !== 'diff') this.#misplaced(deltaKinds[kind])
    this.#place = 'list'
    this.#kind = kind
    this.#ranges = false
  }

  #close(): void {
    if (!this.#ranges) refuse(`<${deltaKinds[this.#kind]}> says of no blocks`)
    this.#place = 'diff'
  }

  #range(two: boolean, begin: number, data: number, otherData: number, length: number): void {
    if (this.#place !== 'list') this.#misplaced('range')
    if (two !== (this.#kind === DIFFERENT)) refuse(`a range of <${deltaKinds[this.#kind]}> has not these attributes`)
    if (data > MAX_BLOCKS || otherData > MAX_BLOCKS) refuse(`data blocks beyond 2^40`)
    this.#ranges = true
    this.#run(this.#kind, begin, length)
  }

  #run(kind: number, begin: number, length: number): void {
    const end = begin + length
    if (begin < this.#next || length === 0 || end > MAX_BLOCKS) refuse(badRun(begin, length, this.#next))
    this.#next = end
    const { batch } = this
    const i = batch.count++
    batch.kinds[i] = kind
    batch.begins[i] = begin
    batch.lengths[i] = length
  }

  #misplaced(name: string): never {
    const where = this.#place === 'outside' ? 'outside of everything' : `in ${this.#place}`
    refuse(`<${name}> does not belong here, ${where}`)
  }
}
