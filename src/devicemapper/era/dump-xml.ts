/**
 * The output of era_dump: in which era each block was written.
 *
 *     <superblock uuid="" block_size="128" nr_blocks="512" current_era="3">
 *       <writeset era="3" nr_bits="512">                    an era whose writes are not in the array yet
 *         <bit block="0" value="true"/>                     one for each block, or
 *         <marked block_begin="0" len="17"/>                one for each run that was written to
 *       </writeset>
 *       <era_array>
 *         <era block="0" era="1"/>                          one for each block; era 0: never
 *       </era_array>
 *     </superblock>
 *
 * 1.x prints the writeset of the current era too, 0.9 does not. To get the writes since the last checkpoint, check for
 * a writeset of the header's `currentEra` (as xml-extents.ts does). 1.x fills up the bits of a writeset that is older
 * than the device's last growth; 0.9 does not. With --logical there are no writesets, and 0.9 then gives the oldest era
 * of a block that is in several, not the newest.
 */
import {
  type ByteStream,
  checkedEnd,
  openXml,
  refuse,
  type XmlDocument,
  type XmlElement,
  type XmlOptions
} from '../xml-stream.ts'
import { BATCH_RUNS, RunDialect } from '../run-dialect.ts'
import { mistaken } from '../xml-tools.ts'
import { MAX_ERA_BLOCKS } from './invalidate-xml.ts'
import { SECTOR_BYTES } from '../../units.ts'

export interface EraDumpHeader {
  /** Size of a block in sectors of 512 bytes, and in bytes. */
  blockSectors: number
  blockBytes: number
  /** Size of the device in blocks; the last may be a partial one. */
  blocks: number
  currentEra: number
}

/**
 * Blocks `[begins[i], begins[i] + lengths[i])`, ascending, written in era `eras[i]`: in that era among others (a
 * writeset), or last (the array; 0 is never). Valid until the next batch is requested.
 */
export interface EraRunBatch {
  readonly section: 'writeset' | 'era_array'
  /** The writeset's era; undefined for the array. */
  readonly era: number | undefined
  /** The last batch of this section. A writeset without marks has one empty batch. */
  readonly last: boolean
  readonly count: number
  readonly begins: Float64Array
  readonly lengths: Float64Array
  readonly eras: Uint32Array
}

/** Writesets by ascending era, then the array. */
export type EraDumpXml = XmlDocument<EraDumpHeader, EraRunBatch>

/**
 * Reads era_dump's XML, as `openXml` does.
 *
 * @throws XmlInvalid; what the stream throws
 */
export async function readEraDumpXml(bytes: ByteStream, options?: XmlOptions): Promise<EraDumpXml> {
  return openXml(bytes, new EraDumpDialect(), options)
}

/** Blocks are a multiple of 8 sectors (dm-era-target.c: MIN_BLOCK_SIZE). */
const MIN_BLOCK = 8
const MAX_UINT32 = 2 ** 32 - 1

/** A batch that is being filled. */
type OwnBatch = { -readonly [K in keyof EraRunBatch]: EraRunBatch[K] }

type Place = 'superblock' | 'writeset' | 'era_array' | 'leaf'

class EraDumpDialect extends RunDialect<EraDumpHeader, OwnBatch, Place> {
  readonly patterns = [
    '<bit block="#" value="true"/>',
    '<bit block="#" value="false"/>',
    '<era block="#" era="#"/>',
    '<marked block_begin="#" len="#"/>'
  ]
  /** Where an element without content stands. */
  #around: 'writeset' | 'era_array' = 'writeset'
  /** The run that may still grow: blocks [#begin, #end) of #era; none if they are equal. */
  #begin = 0
  #end = 0
  #era = 0
  /** The first block that may follow in this section. */
  #next = 0
  /** Of the writeset: the number of its bits, and in which of the two forms it lists them. */
  #bits = 0
  #way: 'bit' | 'marked' | undefined
  #lastEra = -1
  #arrayRead = false

  constructor() {
    super('era_dump', {
      section: 'writeset',
      era: undefined,
      last: false,
      count: 0,
      begins: new Float64Array(BATCH_RUNS),
      lengths: new Float64Array(BATCH_RUNS),
      eras: new Uint32Array(BATCH_RUNS)
    })
  }

  protected override get isOfUnknownTool(): boolean {
    return this.place === 'superblock' || this.header === undefined
  }

  matched(pattern: number, numbers: Float64Array): void {
    const [one, other] = numbers
    if (pattern === 2) this.#eraOf(one, other)
    else if (pattern === 3) this.#marked(one, other)
    else this.#bit(one, pattern === 0)
  }

  opened(element: XmlElement): void {
    const { name } = element
    const block = (attribute: string) => element.number(attribute, MAX_ERA_BLOCKS)
    if (this.header === undefined) {
      if (name !== 'superblock' || element.has('data_block_size')) mistaken(name, 'era_dump', element)
      this.header = dumpHeader(element)
      this.place = 'superblock'
    } else if (this.place === 'superblock') {
      if (name === 'writeset') this.#openWriteset(element)
      else if (name === 'era_array') this.#openArray()
      else mistaken(name, 'era_dump')
    } else if (this.place === 'writeset' || this.place === 'era_array') {
      const around = this.place
      if (name === 'bit') this.#bit(block('block'), truth(element.text('value')))
      else if (name === 'marked') this.#marked(block('block_begin'), block('len'))
      else if (name === 'era') this.#eraOf(block('block'), element.number('era', MAX_UINT32))
      else this.misplaced(name)
      this.#around = around
      this.place = 'leaf'
    } else this.misplaced(name)
  }

  closed(): void {
    switch (this.place) {
      case 'leaf':
        this.place = this.#around
        break
      case 'writeset':
      case 'era_array':
        this.#closeSection(this.place)
        this.place = 'superblock'
        break
      case 'superblock':
      case 'outside':
        if (!this.#arrayRead) refuse('<superblock> holds no <era_array>')
        this.place = 'outside'
    }
  }

  #openWriteset(element: XmlElement): void {
    const { currentEra } = this.header as EraDumpHeader
    const era = element.number('era', MAX_UINT32)
    if (this.#arrayRead) refuse('a writeset comes after the era array')
    if (era <= this.#lastEra) refuse(`the writeset of era ${era} comes after that of era ${this.#lastEra}`)
    if (era > currentEra) refuse(`a writeset of era ${era}, and the current era is ${currentEra}`)
    this.#bits = element.number('nr_bits', MAX_ERA_BLOCKS)
    // As in metadata: the kernel writes no era 0, and it would look like an era without writes.
    if (this.#bits === 0) refuse(`the writeset of era ${era} is of no blocks at all`)
    this.#way = undefined
    this.#lastEra = era
    this.#begin = this.#end = this.#next = 0
    this.#era = era
    this.batch.section = this.place = 'writeset'
    this.batch.era = era
  }

  #openArray(): void {
    if (this.#arrayRead) refuse('there are two era arrays')
    this.#arrayRead = true
    this.#way = undefined
    this.#begin = this.#end = this.#next = 0
    this.batch.section = this.place = 'era_array'
    this.batch.era = undefined
  }

  /** If each block is listed, none may be missing: otherwise lines cut out of the middle would not show. */
  #closeSection(section: 'writeset' | 'era_array'): void {
    const { blocks } = this.header as EraDumpHeader
    const due = section === 'writeset' ? this.#bits : blocks
    const filled = this.#next === due || this.#next === blocks
    if (!filled && this.#way !== 'marked') refuse(`it tells of ${this.#next} blocks where there are ${due}`)
    this.#flush()
    this.batch.last = true
  }

  #bit(block: number, marked: boolean): void {
    if (this.place !== 'writeset' || this.#way === 'marked') this.misplaced('bit')
    this.#way = 'bit'
    this.#follows(block, Math.max(this.#bits, (this.header as EraDumpHeader).blocks))
    if (!marked) return
    if (block >= this.#bits) refuse(`block ${block} is marked in a writeset of ${this.#bits} bits`)
    this.#add(block, block + 1, this.#era)
  }

  #marked(begin: number, length: number): void {
    if (this.place !== 'writeset' || this.#way === 'bit') this.misplaced('marked')
    this.#way = 'marked'
    this.#next = checkedEnd(begin, length, this.#next, MAX_ERA_BLOCKS)
    if (this.#next > this.#bits) refuse(`block ${this.#next - 1} is marked in a writeset of ${this.#bits} bits`)
    this.#add(begin, this.#next, this.#era)
  }

  #eraOf(block: number, era: number): void {
    if (this.place !== 'era_array') this.misplaced('era')
    const { blocks, currentEra } = this.header as EraDumpHeader
    this.#follows(block, blocks)
    if (era > currentEra) refuse(`block ${block} was written to in era ${era}, and the current era is ${currentEra}`)
    this.#add(block, block + 1, era)
  }

  #follows(block: number, blocks: number): void {
    if (block !== this.#next) refuse(`block ${block} comes where block ${this.#next} is due`)
    if (block >= blocks) refuse(`there is no block ${block} in a device of ${blocks} blocks`)
    this.#next++
  }

  #add(begin: number, end: number, era: number): void {
    if (begin !== this.#end || era !== this.#era) {
      this.#flush()
      this.#begin = begin
      this.#era = era
    }
    this.#end = end
  }

  #flush(): void {
    if (this.#begin === this.#end) return
    const batch = this.batch
    const i = batch.count++
    batch.begins[i] = this.#begin
    batch.lengths[i] = this.#end - this.#begin
    batch.eras[i] = this.#era
    this.#begin = this.#end
  }
}

function dumpHeader(element: XmlElement): EraDumpHeader {
  const blockSectors = element.number('block_size', MAX_UINT32)
  if (blockSectors < MIN_BLOCK || blockSectors % MIN_BLOCK !== 0) {
    refuse(`a block size of ${blockSectors} sectors is impossible`)
  }
  return {
    blockSectors,
    blockBytes: blockSectors * SECTOR_BYTES,
    blocks: element.number('nr_blocks', MAX_ERA_BLOCKS - 1),
    currentEra: element.number('current_era', MAX_UINT32)
  }
}

function truth(text: string): boolean {
  if (text !== 'true' && text !== 'false') refuse(`${JSON.stringify(text.slice(0, 40))} is neither true nor false`)
  return text === 'true'
}
