/**
 * The output of thin_dump, as mappings of each device.
 *
 *     <superblock uuid="" time="15" transaction="19" flags="0" version="2" data_block_size="128" nr_data_blocks="1024">
 *       <def name="357">                                                                     1.x: what devices share
 *         <range_mapping origin_begin="163" data_begin="218" length="4" time="0"/>
 *       </def>
 *       <device dev_id="1" mapped_blocks="5" transaction="2" creation_time="1" snap_time="1">
 *         <single_mapping origin_block="0" data_block="67" time="0"/>
 *         <ref name="357"/>
 *       </device>
 *     </superblock>
 *
 * For devices that nobody asked about, references are counted and not expanded: otherwise a list that many devices
 * refer to would be processed for each of them.
 *
 * A device also says how many blocks it maps. This is checked, because some dumps lack mappings without looking torn:
 * those made with --skip-mappings, and those that 0.9 --repair makes of damaged metadata.
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
import { type DeviceDetails, MAX_DEVICES } from './device-details.ts'
import { poolHeader, type PoolXmlHeader } from './pool-xml.ts'
import { type MappingRun, SHARED_BYTES, SharedMappings } from './shared-mappings.ts'

export interface DumpedDevice {
  readonly id: number
  readonly details: DeviceDetails
}

/**
 * Mappings of one device, in data blocks: virtual blocks from `begins[i]` on to data blocks from `dataBegins[i]` on.
 * They ascend and do not overlap. Valid until the next batch is requested.
 */
export interface MappingBatch {
  readonly device: DumpedDevice
  /** This is the last batch of the device, which is complete then. Devices without mappings have one empty batch. */
  readonly last: boolean
  readonly count: number
  readonly begins: Float64Array
  readonly dataBegins: Float64Array
  readonly lengths: Float64Array
  /** The pool's clock when the block was mapped. */
  readonly times: Uint32Array
}

/** Devices by ascending id. */
export type DumpXml = XmlDocument<PoolXmlHeader, MappingBatch>

export interface DumpXmlOptions extends XmlOptions {
  /** Memory for what devices share, in bytes. */
  sharedBytes?: number
  /**
   * Whether a device's mappings are wanted; for others only the last batch comes, and it is empty. All are by default.
   */
  isWanted?: (deviceId: number) => boolean
}

/**
 * Reads thin_dump's XML, as `openXml` does.
 *
 * @throws XmlInvalid; what the stream throws
 */
export async function readDumpXml(
  bytes: ByteStream,
  { sharedBytes = SHARED_BYTES, isWanted = () => true, ...options }: DumpXmlOptions = {}
): Promise<DumpXml> {
  return openXml(bytes, new DumpDialect(sharedBytes, isWanted), options)
}

const MAX_UINT32 = 2 ** 32 - 1
/** A mapping's time has 24 bits. */
const MAX_TIME = 2 ** 24 - 1

/** A batch that is being filled. */
type OwnBatch = { -readonly [K in keyof MappingBatch]: MappingBatch[K] }

type Place = 'superblock' | 'def' | 'device' | 'leaf'

class DumpDialect extends RunDialect<PoolXmlHeader, OwnBatch, Place> {
  readonly patterns = [
    '<single_mapping origin_block="#" data_block="#" time="#"/>',
    '<range_mapping origin_begin="#" data_begin="#" length="#" time="#"/>',
    '<ref name="#"/>'
  ]
  /** The header, before it is known whether thin_dump wrote it. */
  #pool: PoolXmlHeader | undefined
  /** Where an element without content stands. */
  #around: 'def' | 'device' = 'device'
  /** The first block that may follow in this list or device, and how many were mapped so far. */
  #next = 0
  #mapped = 0
  /** The device that came last: ids ascend. */
  #lastId = -1
  readonly #shared: SharedMappings
  /** The part of a reference that has not found room in the batch yet. */
  #referred: Generator<MappingRun, void> | undefined

  readonly #isWanted: (deviceId: number) => boolean
  /** Of the open device. */
  #wanted = true

  constructor(sharedBytes: number, isWanted: (deviceId: number) => boolean) {
    super('thin_dump', {
      // Set when a device is opened, before anything is in the batch.
      device: undefined as unknown as DumpedDevice,
      last: false,
      count: 0,
      begins: new Float64Array(BATCH_RUNS),
      dataBegins: new Float64Array(BATCH_RUNS),
      lengths: new Float64Array(BATCH_RUNS),
      times: new Uint32Array(BATCH_RUNS)
    })
    this.#shared = new SharedMappings(sharedBytes)
    this.#isWanted = isWanted
  }

  protected override get isOfUnknownTool(): boolean {
    return this.place === 'superblock' || this.#pool === undefined
  }

  override taken(): void {
    super.taken()
    this.#copyReferred()
  }

  override get full(): boolean {
    return super.full || this.#referred !== undefined
  }

  matched(pattern: number, numbers: Float64Array): void {
    if (this.place !== 'device' && this.place !== 'def')
      this.misplaced(['single_mapping', 'range_mapping', 'ref'][pattern])
    if (pattern === 0) this.#map(numbers[0], numbers[1], 1, numbers[2])
    else if (pattern === 1) this.#map(numbers[0], numbers[1], numbers[2], numbers[3])
    else this.#refer(String(numbers[0]))
  }

  opened(element: XmlElement): void {
    const { name } = element
    const block = (attribute: string) => element.number(attribute, MAX_BLOCKS)
    if (this.#pool === undefined) {
      this.#pool = poolHeader(element, 'thin_dump')
      this.place = 'superblock'
    } else if (this.place === 'superblock') {
      if (name !== 'device' && name !== 'def') mistaken(name, 'thin_dump')
      this.header = this.#pool
      if (name === 'device') this.#openDevice(element)
      else this.#shared.begin(element.text('name'))
      this.#next = 0
      this.place = name
    } else if (this.place === 'def' || this.place === 'device') {
      this.#around = this.place
      if (name === 'single_mapping') this.#map(block('origin_block'), block('data_block'), 1, block('time'))
      else if (name === 'range_mapping')
        this.#map(block('origin_begin'), block('data_begin'), block('length'), block('time'))
      else if (name === 'ref') this.#refer(element.text('name'))
      else this.misplaced(name)
      this.place = 'leaf'
    } else this.misplaced(name)
  }

  closed(): void {
    switch (this.place) {
      case 'leaf':
        this.place = this.#around
        break
      case 'def':
        this.#shared.end()
        this.place = 'superblock'
        break
      case 'device':
        this.#closeDevice()
        this.place = 'superblock'
        break
      case 'superblock':
      case 'outside':
        this.header = this.#pool
        this.place = 'outside'
    }
  }

  #openDevice(element: XmlElement): void {
    const id = element.number('dev_id', MAX_DEVICES - 1)
    if (id <= this.#lastId) refuse(`device ${id} comes after device ${this.#lastId}`)
    this.#lastId = id
    this.#wanted = this.#isWanted(id)
    this.#mapped = 0
    this.batch.device = {
      id,
      details: {
        mappedBlocks: element.number('mapped_blocks', MAX_BLOCKS),
        transactionId: element.bigint('transaction'),
        creationTime: element.number('creation_time', MAX_UINT32),
        snapshottedTime: element.number('snap_time', MAX_UINT32)
      }
    }
  }

  #closeDevice(): void {
    const { id, details } = this.batch.device
    if (details.mappedBlocks !== this.#mapped) {
      refuse(
        `device ${id} is said to map ${details.mappedBlocks} blocks, and ${this.#mapped} are there`,
        'dump it without --skip-mappings; if thin_check finds the metadata damaged, take a full backup instead'
      )
    }
    this.batch.last = true
  }

  #map(begin: number, data: number, length: number, time: number): void {
    this.#next = checkedEnd(begin, length, this.#next, MAX_BLOCKS)
    if (data + length > MAX_BLOCKS) refuse(`data blocks ${data} to ${data + length - 1} are beyond 2^40`)
    if (time > MAX_TIME) refuse(`time ${time} has more than 24 bits`)
    if (this.place === 'def') {
      this.#shared.add(begin, data, length, time)
      return
    }
    this.#mapped += length
    if (!this.#wanted) return
    const batch = this.batch
    const i = batch.count++
    batch.begins[i] = begin
    batch.dataBegins[i] = data
    batch.lengths[i] = length
    batch.times[i] = time
  }

  /**
   * Expands a reference in place. A list holds no references, and fits into a device only once. Its first run shows now
   * whether it fits: the others follow from there.
   */
  #refer(name: string): void {
    if (this.place !== 'device') refuse('<ref> belongs into a device only')
    if (!this.#wanted) {
      const { begin, end, blocks } = this.#shared.list(name)
      if (blocks === 0) return
      checkedEnd(begin, end - begin, this.#next, MAX_BLOCKS)
      this.#next = end
      this.#mapped += blocks
      return
    }
    this.#referred = this.#shared.runs(name)
    this.#copyReferred()
  }

  #copyReferred(): void {
    if (this.#referred === undefined) return
    while (this.batch.count < BATCH_RUNS) {
      const next = this.#referred.next()
      if (next.done === true) {
        this.#referred = undefined
        return
      }
      const { begin, data, length, time } = next.value
      this.#map(begin, data, length, time)
    }
  }
}
