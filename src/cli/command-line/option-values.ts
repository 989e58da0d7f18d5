/**
 * Strict values on the command line: a half-understood number would be a wrong answer to a question that nobody asked.
 */
import { InvalidArgumentError } from 'commander'
import { UsageError } from './failure.ts'

/**
 * Units of a byte count by their first letter, in either case: LVM takes `g` and `G` for the same when it reads a size
 * (lvm(8)).
 */
const units: Record<string, bigint> = {
  '': 1n,
  B: 1n,
  S: 512n,
  K: 2n ** 10n,
  M: 2n ** 20n,
  G: 2n ** 30n,
  T: 2n ** 40n,
  P: 2n ** 50n,
  E: 2n ** 60n
}
const MAX_INT32 = 2 ** 31 - 1
/** setTimeout counts in milliseconds of 31 bits. */
const MAX_TIMEOUT_SECONDS = Math.floor(MAX_INT32 / 1000)

/**
 * A byte count from 0 to 2^53 - 1: decimal digits, and optionally a unit, as in 64KiB, 64k or 64K; B for bytes and S
 * for sectors of 512 bytes, as LVM writes them. No fractions, because LVM rounds what it prints with one.
 */
export function byteCount(text: string): number {
  const [, digits, letter = '', prefix = letter] =
    /^(0|[1-9]\d*)(?:([bskmgtpeBSKMGTPE]?)|([KMGTPE])iB)$/.exec(text) ?? []
  if (digits === undefined) throw invalid(notBytes(text))
  const bytes = BigInt(digits) * units[prefix.toUpperCase()]
  if (bytes > Number.MAX_SAFE_INTEGER)
    throw invalid('It is beyond 2^53 - 1 bytes (8PiB - 1), more than can be told exactly.')
  return Number(bytes)
}

function notBytes(text: string): string {
  if (/^\d+\.\d+/.test(text)) {
    return 'A byte count has no fraction, which LVM rounds: `lvs --units b` prints the size in bytes.'
  }
  if (/^\d+[kmgtp]b$/i.test(text))
    return "Say whether a thousand or 1024 is meant: 64KiB (or LVM's 64k) is 65536 bytes."
  return 'A byte count is a whole number, as in 65536, 64KiB or 64k (MiB, GiB, TiB, PiB).'
}

/** A count from 0 to 2^31 - 1, as in the protocol. */
export function count(text: string): number {
  if (!/^(0|[1-9]\d*)$/.test(text) || Number(text) > MAX_INT32) {
    throw invalid(`It is a whole number from 0 to ${MAX_INT32}.`)
  }
  return Number(text)
}

/** A count from 1 to 2^31 - 1. */
export function atLeastOne(text: string): number {
  const value = count(text)
  if (value === 0) throw invalid('It is at least 1.')
  return value
}

/** An era of dm-era: 32 bits. */
export function era(text: string): number {
  if (!/^(0|[1-9]\d*)$/.test(text) || Number(text) >= 2 ** 32) {
    throw invalid('An era is a whole number, as `dmsetup status` and `deltamapper inspect` show it.')
  }
  return Number(text)
}

/** The block size of an era device in bytes that dm-era accepts: a multiple of 4 KiB below 2^41. */
export function eraBlockSize(text: string): number {
  const bytes = byteCount(text)
  if (bytes === 0 || bytes % 4096 !== 0 || bytes >= 2 ** 41) {
    throw invalid(
      'Blocks of era devices are a multiple of 4 KiB; the last word of the device-mapper table has their size, in sectors of 512 bytes.'
    )
  }
  return bytes
}

/** Seconds above 0, with decimal places if need be. */
export function seconds(text: string): number {
  const value = Number(text)
  if (!/^\d+(\.\d+)?$/.test(text) || value === 0 || value > MAX_TIMEOUT_SECONDS) {
    throw invalid(`It is a number of seconds above 0, at most ${MAX_TIMEOUT_SECONDS}.`)
  }
  return value
}

/** A thin device id. Whether it exists, the pool tells. @throws UsageError */
export function deviceId(text: string, option: '--metadata' | '--xml'): number {
  const id = Number(text)
  if (/^(0|[1-9]\d*)$/.test(text) && id < 2 ** 24) return id
  throw new UsageError(
    `${JSON.stringify(text)} is no thin device id`,
    `with ${option}, snapshots go by the id in their pool, a whole number from 0 to 16777215 (deltamapper inspect lists them)`
  )
}

/** `NAME=DIR`, collected into a record. */
export function recordedPool(text: string, previous: Record<string, string> = {}): Record<string, string> {
  const [, name, folder] = /^([^=]+)=(.+)$/s.exec(text) ?? []
  if (name === undefined) throw invalid('It is NAME=DIR: the name before the slash of its handles, and its folder.')
  if (Object.hasOwn(previous, name)) throw invalid(`There is a recorded pool ${name} already.`)
  return { ...previous, [name]: folder }
}

function invalid(why: string): InvalidArgumentError {
  return new InvalidArgumentError(why)
}
