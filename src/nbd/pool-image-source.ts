/**
 * A thin snapshot out of copies of its pool's metadata and data, or out of their devices while the pool is not in use:
 * no kernel has to know of them.
 */
import { constants, fstatSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { DeltamapperError } from '../errors.ts'
import { openPoolMetadata, type PoolMetadata } from '../devicemapper/thin/pool-metadata.ts'
import { DataFile } from './data-file.ts'
import { PoolImageData } from './pool-image-data.ts'
import type { NbdSource } from './source.ts'

export interface PoolImage {
  readonly metadataPath: string
  readonly dataPath: string
  /** Read the live root even where a metadata snapshot is held. */
  readonly liveRoot: boolean
  /** What reading may take of the data, in bytes a second. */
  readonly bytesPerSecond?: number | undefined
}

/** What is asked about, in thin device ids, and what it is called. */
export interface PoolImageQuestion extends Omit<NbdSource, 'blockBytes' | 'data' | 'look' | 'close'> {
  readonly thinId: number
}

/**
 * Opens both.
 *
 * @param describe told of the open metadata, says what is asked about; what it opens is its own to close
 * @throws DM_DEVICE_BUSY where one is a device in use; what reading throws; DM_METADATA_DAMAGED also where the device's
 *   tree does not have what its details say, because what is lost there would read as zeros
 */
export async function openPoolImage(
  { metadataPath, dataPath, liveRoot, bytesPerSecond }: PoolImage,
  describe: (metadata: PoolMetadata) => Promise<PoolImageQuestion & { close?: () => Promise<void> }>
): Promise<NbdSource> {
  const closing: (() => Promise<void>)[] = []
  const close = async () => {
    for (const each of closing.splice(0).reverse()) await each()
  }
  try {
    for (const path of [metadataPath, dataPath]) {
      const claim = await claimed(path)
      if (claim) closing.push(() => claim.close())
    }
    const metadata = await openPoolMetadata(metadataPath, { liveRoot })
    closing.push(() => metadata.close())
    const opened = fstatSync(metadata.descriptor)
    const file = await DataFile.open(dataPath, { bytesPerSecond })
    closing.push(() => file.close())
    const { close: closeQuestion, thinId, ...question } = await describe(metadata)
    if (closeQuestion) closing.push(closeQuestion)
    const device = await metadata.device(thinId)
    await metadata.isPristine(thinId)
    return {
      ...question,
      blockBytes: metadata.superblock.dataBlockBytes,
      data: new PoolImageData(metadata, device, file),
      async look() {
        file.checkUnchanged()
        const now = fstatSync(metadata.descriptor)
        const same = now.size === opened.size && now.mtimeMs === opened.mtimeMs && now.ctimeMs === opened.ctimeMs
        if (!opened.isBlockDevice() && !same) throw rewritten(metadataPath)
      },
      close
    }
  } catch (error) {
    await close()
    throw error
  }
}

/**
 * Keeps a device to itself: a pool that is active has claimed what it stands on, and none can be made of it while this
 * holds it. Undefined for a file.
 */
async function claimed(path: string): Promise<FileHandle | undefined> {
  // (What is wrong with a path is said by whoever reads from it.)
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK).catch(() => undefined)
  if (!file) return undefined
  const isDevice = (await file.stat()).isBlockDevice()
  await file.close()
  if (!isDevice) return undefined
  try {
    return await open(path, constants.O_RDONLY | constants.O_EXCL)
  } catch (cause) {
    throw new DeltamapperError(
      'DM_DEVICE_BUSY',
      `${path} is in use, most likely by its pool: what is read there can change at any moment`,
      'ask the agent for a snapshot of it (--endpoint), or deactivate the pool first',
      { cause }
    )
  }
}

function rewritten(path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_SNAPSHOT_CHANGED',
    `${path} was written to while it was served`,
    'begin again, on a copy that nobody changes'
  )
}
