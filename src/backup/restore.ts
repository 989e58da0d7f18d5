/**
 * Writes a point to a file or a block device, by `qemu-img convert`.
 *
 * A file appears whole, by a rename. A device must be nobody's: not mounted, not below anything else (O_EXCL).
 */
import { constants } from 'node:fs'
import { type FileHandle, open, readFile, realpath, rename, rm, stat } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { decodeDeviceNumber } from '../../native/device.ts'
import { lockFile } from '../../native/file-lock.ts'
import { DeltamapperError } from '../errors.ts'
import type { Chain } from './chain.ts'
import { readLayer, swapped } from './layer.ts'
import type { Point } from './manifest.ts'
import { SECTOR_BYTES } from '../units.ts'
import { targetFailure } from './target-failure.ts'
import { checkDigest, type VerifyOptions } from './verify.ts'

export interface RestoreOptions extends VerifyOptions {
  /** Also onto a file that is there, or a device that is larger. */
  readonly force?: boolean | undefined
  /** Do not read the chain's files first. */
  readonly unverified?: boolean | undefined
  /** Told how much of it is written, in percent. */
  readonly onPercent?: (percent: number) => void
}

/** @throws DM_POINT_NOT_FOUND */
export function pointOf(chain: Chain, name: string): Point {
  const found = chain.points.find(({ point }) => point === name)
  if (found) return found
  const names = chain.points.map(({ point }) => point)
  throw new DeltamapperError(
    'DM_POINT_NOT_FOUND',
    `there is no point ${name} of ${chain.volume}`,
    names.length === 0 ? 'make a backup first: there is none yet' : `name one of ${names.join(', ')}`
  )
}

/** @throws DM_CHAIN_…, DM_NAME_TAKEN, DM_DEVICE_BUSY, DM_RESTORE_SIZE_DIFFERS, DM_RESTORE_FAILED, DM_TOOL_… */
export async function restore(chain: Chain, name: string, to: string, options: RestoreOptions = {}): Promise<Point> {
  const point = pointOf(chain, name)
  const path = resolve(to)
  await checkOutside(chain, path)
  const there = await atPath(path, () => stat(path).catch(orNothing))
  if (there && !there.isFile() && !there.isBlockDevice()) throw refused(path, 'is neither a file nor a block device')
  if (there?.isFile() && !options.force) throw taken(path)
  const device = there?.isBlockDevice() ? await claimDevice(path, there.rdev, point, options) : undefined
  try {
    if (!options.unverified) await checkFiles(chain, point, options)
    if (device) await convert(chain, point, path, ['-n'], options)
    else await toFile(chain, point, path, options)
    await atPath(path, async () => device?.sync())
  } finally {
    await device?.close()
  }
  return point
}

/** What is not the chain's own does not stay in its folder, and its own would be overwritten. */
async function checkOutside(chain: Chain, path: string): Promise<void> {
  const [folder, own] = await Promise.all([realpath(dirname(path)).catch(() => ''), realpath(chain.folder)])
  if (folder === own) throw refused(path, 'is in the folder of the backups that it is restored from')
}

/** Those that the point is read through: of each, that it is the one that was written. */
async function checkFiles(chain: Chain, point: Point, options: VerifyOptions): Promise<void> {
  const end = chain.points.indexOf(point)
  const begin = chain.points.findLastIndex(({ kind }, i) => kind === 'full' && i <= end)
  for (const each of chain.points.slice(Math.max(0, begin), end + 1)) await checkDigest(chain, each, options)
}

async function toFile(chain: Chain, point: Point, path: string, options: RestoreOptions): Promise<void> {
  const part = `${path}.part`
  await atPath(path, async () => {
    const file = await open(part, 'a+', 0o600)
    try {
      // One that was killed has left it; one that runs has it locked.
      if (!lockFile(file.fd, 'exclusive')) throw taken(part)
      await convert(chain, point, part, [], options)
      await file.sync()
      await rename(part, path)
    } catch (error) {
      if (!(error instanceof DeltamapperError) || error.code !== 'DM_NAME_TAKEN') await rm(part, { force: true })
      throw error
    } finally {
      await file.close()
    }
  })
}

async function convert(
  chain: Chain,
  point: Point,
  to: string,
  words: readonly string[],
  { signal, onPercent }: RestoreOptions
): Promise<void> {
  const name = await chain.nameOf(point.file)
  if ((await readLayer(chain, name)).sizeBytes !== point.size_bytes) throw swapped(chain, name, 'its size is another')
  try {
    await chain.run('qemu-img', ['convert', '-p', '-f', 'qcow2', '-O', 'raw', ...words, name, to], {
      signal,
      onLine: (line) => {
        const [, percent] = /\(([\d.]+)\/100%\)/.exec(line) ?? []
        if (percent !== undefined) onPercent?.(Number(percent))
      }
    })
  } catch (error) {
    if (!(error instanceof DeltamapperError) || error.code === 'DM_TOOL_MISSING' || signal?.aborted) throw error
    // What a tool says of a path may be of either side.
    if (
      await chain.checkThere().then(
        () => true,
        () => false
      )
    )
      throw failed(to, error)
    throw error
  }
}

/** Keeps others from mounting it, or putting anything onto it, until it is written. */
async function claimDevice(path: string, rdev: number, point: Point, { force }: RestoreOptions): Promise<FileHandle> {
  const device = await atPath(path, () =>
    open(path, constants.O_RDWR | constants.O_EXCL).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'EBUSY') throw busy(path)
      throw error
    })
  )
  try {
    const { major, minor } = decodeDeviceNumber(rdev)
    const bytes = Number(await readFile(`/sys/dev/block/${major}:${minor}/size`, 'utf8')) * SECTOR_BYTES
    if (bytes < point.size_bytes || (bytes > point.size_bytes && !force)) throw sizeDiffers(path, bytes, point)
    return device
  } catch (error) {
    await device.close()
    throw error
  }
}

function orNothing(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT') throw error
}

async function atPath<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof DeltamapperError) throw error
    throw failed(path, error as Error)
  }
}

function failed(path: string, cause: Error): DeltamapperError {
  const said = targetFailure(path, `${(cause as NodeJS.ErrnoException).code ?? ''} ${cause.message}`)
  return new DeltamapperError(
    'DM_RESTORE_FAILED',
    said?.message ?? `${path} could not be written: ${cause.message}`,
    'what is there now is not the point: make room or repair it, and restore again',
    { cause }
  )
}

function refused(path: string, what: string): DeltamapperError {
  return new DeltamapperError('DM_RESTORE_FAILED', `${path} ${what}`, 'name another place')
}

function taken(path: string): DeltamapperError {
  return new DeltamapperError('DM_NAME_TAKEN', `${path} is there already`, 'name another file, or say --force')
}

function busy(path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_DEVICE_BUSY',
    `${path} is in use: mounted, swapped to, or below another device`,
    'unmount it, or restore to another device'
  )
}

function sizeDiffers(path: string, bytes: number, { point, size_bytes: size }: Point): DeltamapperError {
  const isSmaller = bytes < size
  return new DeltamapperError(
    'DM_RESTORE_SIZE_DIFFERS',
    `${path} has ${bytes} bytes, and point ${point} has ${size}`,
    isSmaller ? 'take a device that is large enough' : 'say --force: what lies behind stays as it is'
  )
}
