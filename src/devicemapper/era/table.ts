/**
 * The table of an era device, read and written: era_ctr and era_status in drivers/md/dm-era-target.c.
 *
 *   era  METADATA-DEVICE ORIGIN-DEVICE BLOCK-SECTORS
 *
 * Devices are read as MAJOR:MINOR, the form in which the kernel prints them. The target reads its metadata when the
 * table is *loaded*. Commits between the load and the resume that puts the table in place are lost. So change a table
 * by suspend, load, resume.
 */
import { invalid } from '../../errors.ts'
import { type DeviceNumber, TargetWords } from '../target-words.ts'

export interface EraTable {
  readonly metadataDevice: DeviceNumber
  /** The device whose writes are tracked. */
  readonly originDevice: DeviceNumber
  /** The size of a tracked block, in sectors of 512 bytes: a multiple of 8 (MIN_BLOCK_SIZE). */
  readonly blockSectors: number
}

/** The most that a u32 holds in steps of 8. */
const MAX_BLOCK_SECTORS = 2 ** 32 - 8

/** Reads the parameters of an `era` target. Throws DM_STATUS_UNKNOWN. */
export function parseEraTable(params: string): EraTable {
  const words = new TargetWords(params, 'the table of an era device')
  const metadataDevice = words.device()
  const originDevice = words.device()
  const blockSectors = words.number()
  if (!isEraBlock(blockSectors)) words.refuseLast()
  words.end()
  return { metadataDevice, originDevice, blockSectors }
}

/** Writes the parameters of an `era` target. Throws DM_ARGUMENT_INVALID for an impossible block size. */
export function formatEraTable({ metadataDevice, originDevice, blockSectors }: EraTable): string {
  if (!isEraBlock(blockSectors)) {
    throw invalid(`an era device cannot have blocks of ${blockSectors} sectors`, 'take a multiple of 8 (4 KiB)')
  }
  const device = ({ major, minor }: DeviceNumber) => `${major}:${minor}`
  return [device(metadataDevice), device(originDevice), blockSectors].join(' ')
}

function isEraBlock(sectors: number): boolean {
  return Number.isInteger(sectors) && sectors >= 8 && sectors <= MAX_BLOCK_SECTORS && sectors % 8 === 0
}
