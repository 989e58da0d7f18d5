/**
 * A block device in sysfs: its discard limit, its counters since it appeared, and whether it is still the same device.
 *
 * A device-mapper device takes its discard limit from the devices below when a table is put in place
 * (dm_calculate_queue_limits). For the devices above, a limit that was lowered through sysfs counts like any other. So
 * a 0 on a linear device lasts until that device itself gets another table, and keeps discards from everything above
 * it.
 *
 * Files: Documentation/ABI/stable/sysfs-block; the fields of `stat`: Documentation/block/stat.rst.
 */
import { readFile, stat, writeFile } from 'node:fs/promises'
import { DeltamapperError } from '../errors.ts'
import type { DeviceNumber } from './target-words.ts'

export interface BlockCounters {
  /** Sectors of 512 bytes; writes of zeros are writes. */
  readonly writtenSectors: number
  /** Discards that were carried out or failed below; those refused earlier are not counted. */
  readonly discards: number
}

/**
 * The most bytes of one discard; 0 if none is let through. For a whole device, not a partition. @throws DM_READ_FAILED
 */
export async function discardLimit(device: DeviceNumber): Promise<number> {
  return Number(await read(device, 'queue/discard_max_bytes'))
}

/**
 * Lets no discard through any more, until the device gets another table. @throws DM_CALL_FAILED when it still accepts
 * some
 */
export async function refuseDiscards(device: DeviceNumber): Promise<void> {
  const path = attribute(device, 'queue/discard_max_bytes')
  await writeFile(path, '0').catch((cause: unknown) => {
    throw new DeltamapperError(
      'DM_CALL_FAILED',
      `discards cannot be turned off in ${path} (${(cause as NodeJS.ErrnoException).code})`,
      'run the agent as root, with a /sys that can be written to',
      { cause }
    )
  })
  const limit = await discardLimit(device)
  if (limit === 0) return
  throw new DeltamapperError(
    'DM_CALL_FAILED',
    `${path} still says ${limit} after 0 was written to it`,
    'report it with the version of the kernel'
  )
}

/** @throws DM_READ_FAILED */
export async function blockCounters(device: DeviceNumber): Promise<BlockCounters> {
  const fields = (await read(device, 'stat')).trim().split(/ +/).map(Number)
  const [writtenSectors = NaN, discards = NaN] = [fields[6], fields[11]]
  if (Number.isSafeInteger(writtenSectors) && Number.isSafeInteger(discards)) return { writtenSectors, discards }
  throw new DeltamapperError(
    'DM_STATUS_UNKNOWN',
    `${attribute(device, 'stat')} does not have what this version knows`,
    'it takes Linux 4.19 or later'
  )
}

/** The kernel's id of this boot. */
export async function bootId(): Promise<string> {
  return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
}

/**
 * Tells a device from others that have or had its number. Equal ids are one device, whose counters have continued.
 * Empty if the kernel (before 5.15) does not say.
 *
 * A partition has its disk's sequence number, and another folder in sysfs each time the kernel finds it: its counters
 * begin anew then.
 */
export async function deviceInstance(device: DeviceNumber): Promise<string> {
  const own = await read(device, 'diskseq').catch(() => undefined)
  const sequence = own ?? (await read(device, '../diskseq').catch(() => ''))
  if (sequence === '') return ''
  const words = [await bootId(), `${device.major}:${device.minor}`, sequence.trim()]
  // (kernfs gives these numbers in turn, and none twice.)
  if (own === undefined) words.push(String((await stat(attribute(device, ''), { bigint: true })).ino))
  return words.join('/')
}

function attribute({ major, minor }: DeviceNumber, name: string): string {
  return `/sys/dev/block/${major}:${minor}/${name}`
}

async function read(device: DeviceNumber, name: string): Promise<string> {
  const path = attribute(device, name)
  return readFile(path, 'utf8').catch((cause: unknown) => {
    throw new DeltamapperError(
      'DM_READ_FAILED',
      `${path} cannot be read (${(cause as NodeJS.ErrnoException).code})`,
      'mount sysfs, or ask again: the device may just have gone',
      { cause }
    )
  })
}
