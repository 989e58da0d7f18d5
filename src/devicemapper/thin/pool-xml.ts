/** The beginning of thin_delta's and thin_dump's XML: the pool. */
import { MAX_BLOCKS, refuse, type XmlElement, type XmlTool } from '../xml-stream.ts'
import { mistaken } from '../xml-tools.ts'
import { SECTOR_BYTES } from '../../units.ts'

/** Data blocks are 64 KiB to 1 GiB, in steps of 64 KiB; here in sectors. */
const MIN_DATA_BLOCK = 128
const MAX_DATA_BLOCK = 2097152
const MAX_UINT32 = 2 ** 32 - 1
const NEEDS_CHECK = 1

export interface PoolXmlHeader {
  /** The pool's clock: one more with every snapshot taken. */
  time: number
  /** User space's transaction id. */
  transactionId: bigint
  /** The superblock's flags say that the pool needs a check. Not every version of the tools prints this. */
  needsCheck: boolean
  /** The pool's block size in sectors of 512 bytes, and in bytes. */
  dataBlockSectors: number
  dataBlockBytes: number
  /** Size of the data device in data blocks; 0 in the output for a metadata snapshot, which does not know it. */
  dataBlocks: number
  /** Metadata block of the held metadata snapshot. Not every version prints it. */
  metadataSnapshot: number | undefined
}

/** Reads the attributes of `<superblock>`, as `tool` writes them. */
export function poolHeader(element: XmlElement, tool: XmlTool): PoolXmlHeader {
  if (element.name !== 'superblock' || element.has('current_era')) mistaken(element.name, tool, element)
  const dataBlockSectors = element.number('data_block_size', MAX_DATA_BLOCK)
  if (dataBlockSectors < MIN_DATA_BLOCK || dataBlockSectors % MIN_DATA_BLOCK !== 0) {
    refuse(`a data block size of ${dataBlockSectors} sectors is impossible`)
  }
  return {
    time: element.number('time', MAX_UINT32),
    transactionId: element.bigint('transaction'),
    needsCheck: ((element.optionalNumber('flags', MAX_UINT32) ?? 0) & NEEDS_CHECK) !== 0,
    dataBlockSectors,
    dataBlockBytes: dataBlockSectors * SECTOR_BYTES,
    dataBlocks: element.number('nr_data_blocks', MAX_BLOCKS),
    metadataSnapshot: element.optionalNumber('metadata_snap', MAX_BLOCKS)
  }
}
