/**
 * The tables of thin pools and thin devices, read and written: pool_ctr, thin_ctr and their counterparts pool_status
 * and thin_status in drivers/md/dm-thin.c.
 *
 *   thin-pool  METADATA-DEVICE DATA-DEVICE BLOCK-SECTORS LOW-WATER-BLOCKS #FEATURES FEATURE…
 *   thin       POOL-DEVICE DEVICE-ID [EXTERNAL-ORIGIN]
 *
 * Devices are read as MAJOR:MINOR, the form in which the kernel prints them. With an external origin, an unmapped block
 * is read from there: it is not a zero.
 */
import { invalid } from '../../errors.ts'
import { TargetWords, type DeviceNumber } from '../target-words.ts'

export interface PoolFeatures {
  /** New blocks are not zeroed outside of a partial write: they may keep old content. */
  readonly skipBlockZeroing: boolean
  readonly ignoreDiscard: boolean
  /** Discards unmap blocks and are not passed on to the data device. */
  readonly noDiscardPassdown: boolean
  readonly readOnly: boolean
  /** A write that finds no free block fails; otherwise it waits. */
  readonly errorIfNoSpace: boolean
}

export interface PoolTable {
  readonly metadataDevice: DeviceNumber
  readonly dataDevice: DeviceNumber
  /** The pool's block size in sectors of 512 bytes: 128 to 2097152, a multiple of 128. */
  readonly blockSectors: number
  /** At this many free data blocks (fewer, from then on) the kernel raises an event. */
  readonly lowWaterBlocks: number
  readonly features: PoolFeatures
}

export interface ThinTable {
  readonly poolDevice: DeviceNumber
  /** The device's id in the pool, 0 to 2^24 - 1. */
  readonly deviceId: number
  /** Where unmapped blocks are read from; undefined if they are zeros. */
  readonly externalOrigin: DeviceNumber | undefined
}

/** In the order in which the kernel prints them (emit_flags). */
const featureWords = {
  skipBlockZeroing: 'skip_block_zeroing',
  ignoreDiscard: 'ignore_discard',
  noDiscardPassdown: 'no_discard_passdown',
  readOnly: 'read_only',
  errorIfNoSpace: 'error_if_no_space'
} as const satisfies Record<keyof PoolFeatures, string>
const featureNames = Object.keys(featureWords) as (keyof PoolFeatures)[]
const featuresByWord = Object.fromEntries(featureNames.map((name) => [featureWords[name], name]))

/** Reads the parameters of a `thin-pool` target. Throws DM_STATUS_UNKNOWN. */
export function parsePoolTable(params: string): PoolTable {
  const words = new TargetWords(params, 'the table of a thin pool')
  const metadataDevice = words.device()
  const dataDevice = words.device()
  const blockSectors = words.number()
  if (!isBlockSectors(blockSectors)) words.refuseLast()
  const lowWaterBlocks = words.number()
  const count = words.number()
  const features = { ...noFeatures }
  for (let index = 0; index < count; index++) features[words.choice(featuresByWord)] = true
  words.end()
  return { metadataDevice, dataDevice, blockSectors, lowWaterBlocks, features }
}

/**
 * Writes the parameters of a `thin-pool` target. Throws DM_ARGUMENT_INVALID for an impossible block size or low-water
 * mark.
 */
export function formatPoolTable({
  metadataDevice,
  dataDevice,
  blockSectors,
  lowWaterBlocks,
  features
}: PoolTable): string {
  if (!isBlockSectors(blockSectors)) {
    throw invalid(
      `a thin pool cannot have blocks of ${blockSectors} sectors`,
      'take a multiple of 128 from 128 to 2097152'
    )
  }
  if (!Number.isSafeInteger(lowWaterBlocks) || lowWaterBlocks < 0) {
    throw invalid(`${lowWaterBlocks} blocks cannot be a low-water mark`, 'give a whole number, 0 for none')
  }
  const asked = featureNames.filter((name) => features[name]).map((name) => featureWords[name])
  const words = [formatDevice(metadataDevice), formatDevice(dataDevice), blockSectors, lowWaterBlocks, asked.length]
  return [...words, ...asked].join(' ')
}

/**
 * Reads the parameters of a `thin` target. Undefined when there is nothing to read: the pool has failed (the kernel
 * prints `Fail`), or the device is not open yet (`-`). Throws DM_STATUS_UNKNOWN.
 */
export function parseThinTable(params: string): ThinTable | undefined {
  if (['Fail', '-', 'Error'].includes(params.trim())) return undefined
  const words = new TargetWords(params, 'the table of a thin device')
  const poolDevice = words.device()
  const deviceId = words.number()
  if (!isDeviceId(deviceId)) words.refuseLast()
  const externalOrigin = words.done ? undefined : words.device()
  words.end()
  return { poolDevice, deviceId, externalOrigin }
}

/** Writes the parameters of a `thin` target. Throws DM_ARGUMENT_INVALID for an impossible id. */
export function formatThinTable({ poolDevice, deviceId, externalOrigin }: ThinTable): string {
  if (!isDeviceId(deviceId)) throw invalid(`${deviceId} is no thin device id`, 'ids are 0 to 16777215')
  const words = [formatDevice(poolDevice), deviceId]
  return (externalOrigin === undefined ? words : [...words, formatDevice(externalOrigin)]).join(' ')
}

const noFeatures: Record<keyof PoolFeatures, boolean> = {
  skipBlockZeroing: false,
  ignoreDiscard: false,
  noDiscardPassdown: false,
  readOnly: false,
  errorIfNoSpace: false
}

function isBlockSectors(value: number): boolean {
  return Number.isInteger(value) && value >= 128 && value <= 2097152 && value % 128 === 0
}

function isDeviceId(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value < 2 ** 24
}

function formatDevice({ major, minor }: DeviceNumber): string {
  return `${major}:${minor}`
}
