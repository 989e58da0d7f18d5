/**
 * What thin and era metadata have in common when they are opened and asked: a superblock is read until it is whole, and
 * answers come from one *view*, which is the metadata snapshot, if one is held, or the live root.
 */
import { DeltamapperError, invalid } from '../errors.ts'
import { METADATA_BLOCK_BYTES } from '../units.ts'
import { BlockReader, type ReadOptions } from './block-reader.ts'

/** Which state of the metadata is read. */
export type MetadataView = 'live' | 'metadata-snapshot'

/** How often to look again at metadata that changed meanwhile, before giving up. */
export const MOST_LOOKS = 100

export interface ReadSuperblock<S> {
  /** As it was read. */
  readonly block: Buffer
  readonly superblock: S
}

/** A target's metadata, as opening sees it. */
export interface MetadataFormat<S> {
  /** `dm-thin` */
  readonly target: string
  /** What to name where this is none. */
  readonly remedy: string
  /** @throws DM_METADATA_FOREIGN, DM_METADATA_DAMAGED, DM_METADATA_UNSUPPORTED */
  readonly parse: (content: Buffer, block: number, path: string) => S
  /** The block of the metadata snapshot that a live superblock names; 0 for none. */
  readonly heldRoot: (live: S) => number
  /** Reads that metadata snapshot, and checks it. */
  readonly readHeld: (reader: BlockReader, live: ReadSuperblock<S>) => Promise<ReadSuperblock<S>>
}

export interface OpenedMetadata<S> {
  /** To be closed by the caller. */
  readonly reader: BlockReader
  readonly live: ReadSuperblock<S>
  /** The superblock of the view. */
  readonly seen: ReadSuperblock<S>
  readonly view: MetadataView
}

/**
 * Opens metadata.
 *
 * @param path a metadata device, or a file that holds a copy of one
 * @param liveRoot read the live root even if a metadata snapshot is held
 * @throws DM_READ_FAILED, DM_METADATA_FOREIGN, DM_METADATA_DAMAGED, DM_METADATA_UNSUPPORTED
 */
export async function openMetadata<S>(
  path: string,
  format: MetadataFormat<S>,
  { liveRoot = false, ...reading }: { liveRoot?: boolean } & ReadOptions
): Promise<OpenedMetadata<S>> {
  const reader = await BlockReader.open(path, reading)
  try {
    if (reader.blocks === 0) {
      throw new DeltamapperError(
        'DM_METADATA_FOREIGN',
        `${path} holds no ${format.target} metadata: it is smaller than one block of ${METADATA_BLOCK_BYTES} bytes`,
        format.remedy
      )
    }
    for (let attempt = 1; ; attempt++) {
      const live = await readSuperblock(reader, 0, format)
      if (liveRoot || format.heldRoot(live.superblock) === 0) return { reader, live, seen: live, view: 'live' }
      try {
        return { reader, live, seen: await format.readHeld(reader, live), view: 'metadata-snapshot' }
      } catch (error) {
        // It may have been released in between; then the superblock says so.
        const mayBeGone = reader.isDevice && isDamage(error) && attempt < MOST_LOOKS
        if (!mayBeGone || (await reader.readRaw(0)).equals(live.block)) throw error
      }
    }
  } catch (error) {
    await reader.close()
    throw error
  }
}

/** Reads a superblock. On a device it reads again until it catches one between two writes. */
export async function readSuperblock<S>(
  reader: BlockReader,
  block: number,
  { parse }: Pick<MetadataFormat<S>, 'parse'>
): Promise<ReadSuperblock<S>> {
  for (let attempt = 1; ; attempt++) {
    const content = await reader.readRaw(block)
    try {
      return { block: content, superblock: parse(content, block, reader.path) }
    } catch (error) {
      if (!isDamage(error) || !reader.isDevice || attempt === MOST_LOOKS) throw error
    }
  }
}

export function isDamage(error: unknown): boolean {
  return error instanceof DeltamapperError && error.code === 'DM_METADATA_DAMAGED'
}

/** @throws DM_ARGUMENT_INVALID unless it is a whole number of bytes below 2^53, or left out */
export function checkSize(bytes: number | undefined): void {
  if (bytes === undefined || (Number.isSafeInteger(bytes) && bytes >= 0)) return
  throw invalid(`${bytes} is no size`, 'give a whole number of bytes below 2^53')
}

/** @throws DM_OFFSET_OUT_OF_RANGE unless it is from 0 to the size, in bytes */
export function checkStartingOffset(startingOffset: number, sizeBytes: number): void {
  if (startingOffset >= 0 && startingOffset <= sizeBytes) return
  throw new DeltamapperError(
    'DM_OFFSET_OUT_OF_RANGE',
    `starting offset ${startingOffset} is outside the volume of ${sizeBytes} bytes`,
    'resume at the end of the last extent received, or at 0'
  )
}
