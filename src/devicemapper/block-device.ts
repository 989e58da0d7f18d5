/**
 * A block device that is about to be used: its size, whether it is in use, and whether it is blank.
 *
 * The kernel tells the first two: O_EXCL on a block device is refused while a mount, a volume manager, a RAID or
 * another device-mapper device has claimed it (bd_prepare_to_claim in block/bdev.c). The third takes a look. A device
 * that begins with 4 KiB of zeros holds nothing that the usual tools would find, except for the few formats whose
 * signature is further in.
 */
import { constants } from 'node:fs'
import { type FileHandle, open, readFile } from 'node:fs/promises'
import { decodeDeviceNumber } from '../../native/device.ts'
import { type PlainClock, plainClock } from '../clock.ts'
import { DeltamapperError, invalid } from '../errors.ts'
import { systemRemedy } from '../system-errors.ts'
import { pageAligned } from './page-aligned.ts'
import type { DeviceNumber } from './target-words.ts'
import { SECTOR_BYTES } from '../units.ts'

/** The zeros at the start of a device that counts as blank, in bytes. */
const BLANK_BYTES = 4096
/** How many bytes of a device are examined: the last signature below ends before. */
export const LOOK_BYTES = 131072
/**
 * How long a free device may seem to be in use, in milliseconds. A child process has, for a moment, everything open
 * that this process has, so a device that was claimed and released meanwhile is still claimed. udev opens devices in
 * the same way.
 */
const SETTLE_MS = 2000
const SETTLE_INTERVAL_MS = 50

/** Magic bytes at their offset. Those below BLANK_BYTES only name the reason: the device is refused anyway. */
const signatures: readonly { readonly at: number; readonly bytes: Buffer; readonly what: string }[] = [
  { at: 0, bytes: Buffer.from('XFSB'), what: 'an XFS file system' },
  { at: 0, bytes: Buffer.from('LUKS'), what: 'a LUKS volume' },
  { at: 32, bytes: Buffer.from('ba529c0100000000', 'hex'), what: "a thin pool's metadata" },
  { at: 512, bytes: Buffer.from('LABELONE'), what: "a physical volume of LVM's" },
  { at: 512, bytes: Buffer.from('EFI PART'), what: 'a partition table' },
  { at: 510, bytes: Buffer.from('55aa', 'hex'), what: 'a partition table or boot sector' },
  { at: 1080, bytes: Buffer.from('53ef', 'hex'), what: 'an ext2, ext3 or ext4 file system' },
  { at: 4086, bytes: Buffer.from('SWAPSPACE2'), what: 'swap space' },
  { at: 4096, bytes: Buffer.from('fc4e2ba9', 'hex'), what: 'a member of a RAID (md)' },
  { at: 4120, bytes: Buffer.from('c68573f6', 'hex'), what: 'a bcache device or bcachefs file system' },
  { at: 16384, bytes: Buffer.from('010100000000000000000001', 'hex'), what: 'a member of a ZFS pool' },
  { at: 65600, bytes: Buffer.from('_BHRfS_M'), what: 'a btrfs file system' }
]

/**
 * The content of a device, in words; undefined when it is blank.
 *
 * @param start its first bytes, LOOK_BYTES or all there are
 */
export function describeContent(start: Buffer): string | undefined {
  const found = signatures.find(({ at, bytes }) => start.subarray(at, at + bytes.length).equals(bytes))
  if (found) return found.what
  return start.subarray(0, BLANK_BYTES).every((byte) => byte === 0) ? undefined : 'something that is not known here'
}

/** A block device that nobody else can claim while it is open, wherever it is. */
export type Claim = Pick<
  ClaimedDevice,
  'path' | 'number' | 'sizeBytes' | 'content' | 'zeroStart' | 'close' | typeof Symbol.asyncDispose
>

/** One of this machine. */
export class ClaimedDevice {
  readonly path: string
  readonly number: DeviceNumber
  readonly sizeBytes: number
  readonly #file: FileHandle

  private constructor(path: string, file: FileHandle, number: DeviceNumber, sizeBytes: number) {
    this.path = path
    this.#file = file
    this.number = number
    this.sizeBytes = sizeBytes
  }

  /**
   * Claims a device.
   *
   * @param path absolute
   * @throws DM_ARGUMENT_INVALID when the path is not of a block device; DM_NO_SUCH_DEVICE, DM_DEVICE_BUSY,
   *   DM_PERMISSION, DM_READ_FAILED
   */
  static async open(path: string, { writable = false }: { writable?: boolean } = {}): Promise<ClaimedDevice> {
    if (!path.startsWith('/') || path.includes('\0')) {
      throw invalid(
        `${JSON.stringify(path)} is no absolute path`,
        'name a block device, best by a link under /dev/disk/by-id, which stays the same'
      )
    }
    // `stat` before opening it exclusively: O_EXCL means nothing on other files.
    await refuseUnlessBlockDevice(path)
    const access = writable ? constants.O_RDWR : constants.O_RDONLY
    const file = await onceFree(() =>
      open(path, access | constants.O_EXCL | constants.O_DIRECT).catch((cause: unknown) => {
        throw cannotClaim(path, cause)
      })
    )
    try {
      const number = decodeDeviceNumber((await file.stat()).rdev)
      return new ClaimedDevice(path, file, number, await sizeOf(number))
    } catch (cause) {
      await file.close()
      throw cannotClaim(path, cause)
    }
  }

  /** Its content, in words; undefined when it is blank. */
  async content(): Promise<string | undefined> {
    return describeContent(await this.start())
  }

  /** Its first LOOK_BYTES, or all there are: where file systems keep what a mount changes. */
  async start(): Promise<Buffer> {
    const buffer = pageAligned(LOOK_BYTES)
    let length = 0
    // A device may end in the middle of it.
    while (length < LOOK_BYTES) {
      const { bytesRead } = await this.#io(() => this.#file.read(buffer, length, LOOK_BYTES - length, length))
      if (bytesRead === 0) break
      length += bytesRead
    }
    return buffer.subarray(0, length)
  }

  /**
   * Overwrites its first bytes with zeros, and waits until they are on disk. `bytes`: a multiple of 4096, no more than
   * the device has.
   */
  async zeroStart(bytes: number): Promise<void> {
    const zeros = pageAligned(Math.min(bytes, this.sizeBytes))
    for (let at = 0; at < zeros.length;) {
      const { bytesWritten } = await this.#io(() => this.#file.write(zeros, at, zeros.length - at, at))
      at += bytesWritten
    }
    await this.#io(() => this.#file.sync())
  }

  async close(): Promise<void> {
    await this.#file.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #io<T>(call: () => Promise<T>): Promise<T> {
    try {
      return await call()
    } catch (cause) {
      throw new DeltamapperError(
        'DM_READ_FAILED',
        `${this.path} could not be read or written (${(cause as NodeJS.ErrnoException).code})`,
        'look into the kernel log for errors of the device',
        { cause }
      )
    }
  }
}

/** Runs an action that needs a free device, and tries again for a while if the device seems to be in use. */
export async function onceFree<T>(take: () => Promise<T>, clock: PlainClock = plainClock): Promise<T> {
  for (const deadline = clock.monotonic() + SETTLE_MS; ; await clock.sleep(SETTLE_INTERVAL_MS)) {
    try {
      return await take()
    } catch (error) {
      const busy = error instanceof DeltamapperError && error.code === 'DM_DEVICE_BUSY'
      if (!busy || clock.monotonic() > deadline) throw error
    }
  }
}

/** Size in bytes of a block device, as the kernel has it now. */
export async function sizeOf({ major, minor }: DeviceNumber): Promise<number> {
  return Number(await readFile(`/sys/dev/block/${major}:${minor}/size`, 'utf8')) * SECTOR_BYTES
}

async function refuseUnlessBlockDevice(path: string): Promise<void> {
  // O_NONBLOCK: opening a FIFO by mistake must fail below, not wait for a writer for ever.
  const flags = constants.O_RDONLY | constants.O_NONBLOCK
  const file = await open(path, flags).catch((cause: unknown) => {
    throw cannotClaim(path, cause)
  })
  try {
    if ((await file.stat()).isBlockDevice()) return
  } finally {
    await file.close()
  }
  throw invalid(`${path} is no block device`, 'name a disk, a partition, a loop device or another block device')
}

function cannotClaim(path: string, cause: unknown): DeltamapperError {
  const { code = 'unknown' } = cause as NodeJS.ErrnoException
  switch (code) {
    case 'ENOENT':
    case 'ENOTDIR':
      return new DeltamapperError('DM_NO_SUCH_DEVICE', `there is no ${path}`, 'check the path', { cause })
    case 'EBUSY':
      return new DeltamapperError(
        'DM_DEVICE_BUSY',
        `${path} is in use: mounted, part of LVM or a RAID, or below another device`,
        'see `lsblk` for who uses it',
        { cause }
      )
    case 'EACCES':
    case 'EPERM':
      return new DeltamapperError(
        'DM_PERMISSION',
        `${path} may not be opened (${code})`,
        systemRemedy(cause, 'the right to read and write it') ?? 'run the agent as root',
        { cause }
      )
    default:
      return new DeltamapperError(
        'DM_READ_FAILED',
        `${path} cannot be opened (${code === 'unknown' ? String(cause) : code})`,
        systemRemedy(cause) ?? 'look into the kernel log for errors of the device',
        { cause }
      )
  }
}
