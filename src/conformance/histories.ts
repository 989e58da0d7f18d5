/**
 * Histories of the content rules: what is written between the base and the target, each with a name. All sizes and
 * offsets are multiples of a sector.
 */
import type { FileHandle } from 'node:fs/promises'
import type { Random } from '../random.ts'
import { SECTOR_BYTES } from '../units.ts'

/** Bytes: the smallest write that a device takes. */

/** Bytes: what "a block" is in the histories; drivers track coarser and finer than that. */
const BLOCK_BYTES = 64 * 1024

/** A volume that is written. */
export interface Written {
  readonly file: FileHandle
  readonly random: Random
  readonly sizeBytes: number
  /** Undefined where the volume cannot be discarded. */
  readonly discard: ((offsetBytes: number, lengthBytes: number) => Promise<void>) | undefined
}

export type Change = (volume: Written) => Promise<void>

/** Writes bytes that were never there. */
export async function write({ file, random }: Written, offset: number, length: number): Promise<void> {
  const content = Buffer.alloc(length)
  // Every word is drawn anew: no sector is like another one.
  for (let at = 0; at < length; at += 4) content.writeUInt32LE(random.uint32(), at)
  await file.write(content, 0, length, offset)
}

const block = ({ random, sizeBytes }: Written) => random.integer(0, sizeBytes / BLOCK_BYTES - 2) * BLOCK_BYTES

/** What every volume holds before its first snapshot: a third of it, its first and last sector included. */
export const firstLoad: Change = async (volume) => {
  const { sizeBytes, random } = volume
  for (let at = 0; at < sizeBytes; at += BLOCK_BYTES) if (random.chance(1 / 3)) await write(volume, at, BLOCK_BYTES)
  await write(volume, 0, SECTOR_BYTES)
  await write(volume, sizeBytes - SECTOR_BYTES, SECTOR_BYTES)
}

const scattered: Change = async (volume) => {
  for (let i = 0; i < 24; i++) await write(volume, block(volume), 4096)
}

/** By name; null is a history that takes something else than a change, see content-run.ts. */
export const histories: Readonly<Record<string, Change>> = {
  'single-write': (volume) => write(volume, block(volume), 4096),
  'same-block-twice': async (volume) => {
    const at = block(volume)
    for (let i = 0; i < 2; i++) await write(volume, at, 4096)
  },
  'old-content': async (volume) => {
    const [at, old] = [block(volume), Buffer.alloc(4096)]
    await volume.file.read(old, 0, old.length, at)
    await write(volume, at, old.length)
    await volume.file.sync()
    await volume.file.write(old, 0, old.length, at)
  },
  zeroes: async (volume) => void (await volume.file.write(Buffer.alloc(BLOCK_BYTES), 0, BLOCK_BYTES, 0)),
  discard: async (volume) => {
    await volume.file.sync()
    for (let i = 0; i < 4; i++) await volume.discard?.(block(volume), BLOCK_BYTES)
  },
  'whole-volume': async (volume) => {
    for (let at = 0; at < volume.sizeBytes; at += BLOCK_BYTES) {
      await write(volume, at, Math.min(BLOCK_BYTES, volume.sizeBytes - at))
    }
  },
  nothing: async () => undefined,
  ends: async (volume) => {
    await write(volume, 0, SECTOR_BYTES)
    await write(volume, volume.sizeBytes - SECTOR_BYTES, SECTOR_BYTES)
  },
  'across-blocks': async (volume) => {
    for (let i = 0; i < 8; i++) await write(volume, block(volume) + BLOCK_BYTES - 2048, 4096)
  },
  'sub-block': async (volume) => {
    for (let i = 0; i < 16; i++)
      await write(volume, block(volume) + volume.random.integer(0, 127) * SECTOR_BYTES, SECTOR_BYTES)
  },
  scattered
}

/** What is written where it does not matter what. */
export const someWrites = scattered
