/**
 * A recorded pool whose one volume is as fragmented as can be: every other block mapped, so that each mapping is an extent of its own.
 * For measuring streams, not truth: it is written from leaf to root in one pass, straight to disk, however many extents are wanted.
 */
import { crc32c } from '@node-rs/crc32'
import { mkdir, open, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { projectFolder } from '../scripts/setup.mjs'

const BLOCK = 4096
const ENTRIES = 252
const NODE_SALT = 121107
const SUPERBLOCK_SALT = 160774
const BLOCK_BYTES = 65536

/** The folder of the pool with one snapshot, `volume`, of `extents` extents; made once and kept in the cache. */
export async function fragmentedPool(extents: number): Promise<string> {
  return writtenPool(`fragmented-${extents}`, extents, 2)
}

/** The same of a volume all of whose `blocks` blocks are mapped, in order. */
export async function mappedPool(blocks: number): Promise<string> {
  return writtenPool(`mapped-${blocks}`, blocks, 1)
}

/** The same, with snapshots `s1`, `s2` and so on between which nothing changed: they have one tree. */
export async function unchangedPool(blocks: number, snapshots: number): Promise<string> {
  return writtenPool(`unchanged-${blocks}-${snapshots}`, blocks, 1, undefined, snapshots)
}

/**
 * A snapshot all of whose `blocks` blocks are mapped, but in no order: what a volume looks like that was written at random
 * from the beginning. The worst that a base record can be made of.
 */
export async function shuffledPool(blocks: number): Promise<string> {
  return writtenPool(`shuffled-${blocks}`, blocks, 1, (i) => {
    const drawn = mixed(i)
    return { data: drawn % blocks, time: mixed(drawn) % 97 }
  })
}

/** A snapshot of a volume that was filled in order, and then had 1 % of its blocks written at random, twenty times. */
export async function agedPool(blocks: number): Promise<string> {
  return writtenPool(`aged-${blocks}`, blocks, 1, (i) => {
    for (let time = 20; time > 0; time--) {
      const drawn = mixed(i ^ Math.imul(time, 0x9e3779b1))
      if (drawn % 100 === 0)
        return { data: blocks + ((Math.floor((time * blocks) / 100) + drawn) % Math.floor(blocks / 5)), time }
    }
    return { data: i, time: 0 }
  })
}

/** As good as random: the last step of MurmurHash3. */
function mixed(value: number): number {
  let bits = Math.imul(value ^ (value >>> 16), 0x85ebca6b)
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35)
  return (bits ^ (bits >>> 16)) >>> 0
}

/** Where a block is in the pool, and when it was written. */
type Place = (i: number) => { data: number; time: number }
/** The time at which the one device became a snapshot: after all of its mappings. */
const TAKEN_AT = 100

/** @param spacing every so many blocks, one is mapped */
async function writtenPool(name: string, extents: number, spacing: number, place?: Place, count = 1): Promise<string> {
  const folder = join(projectFolder, '.cache/bench', name)
  if (await stat(join(folder, 'pool.json')).catch(() => undefined)) return folder
  const unfinished = `${folder}.unfinished`
  await rm(unfinished, { recursive: true, force: true })
  await mkdir(unfinished, { recursive: true })
  await writeMetadata(join(unfinished, 'metadata.img'), extents, spacing, place, count)
  const size_bytes = spacing * extents * BLOCK_BYTES
  const snapshots = devicesUpTo(count).map((id) => {
    return { name: count === 1 ? 'volume' : `s${id}`, volume: 'volume', thin_id: id, size_bytes }
  })
  const description = {
    format: 1,
    data_block_size_bytes: BLOCK_BYTES,
    volumes: [{ name: 'volume' }],
    snapshots
  }
  await writeFile(join(unfinished, 'pool.json'), JSON.stringify(description))
  await rename(unfinished, folder)
  return folder
}

/** Ids of as many devices. */
function devicesUpTo(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i + 1)
}

async function writeMetadata(
  path: string,
  extents: number,
  spacing: number,
  place: Place | undefined,
  snapshots: number
): Promise<void> {
  const file = await open(path, 'w')
  const buffer = Buffer.alloc(256 * BLOCK)
  let next = 1
  let filled = 0
  const flush = async () => {
    await file.write(buffer, 0, filled * BLOCK, (next - filled) * BLOCK)
    filled = 0
  }
  /** Writes one node and returns its block number. */
  const node = async (leaf: boolean, valueSize: number, entries: number, fill: (block: Buffer) => void) => {
    if (filled === 256) await flush()
    const block = buffer.subarray(filled * BLOCK, (filled + 1) * BLOCK).fill(0)
    block.writeUInt32LE(leaf ? 2 : 1, 4)
    block.writeUInt32LE(next, 8)
    block.writeUInt32LE(entries, 16)
    block.writeUInt32LE(valueSize === 8 ? ENTRIES : 126, 20)
    block.writeUInt32LE(valueSize, 24)
    fill(block)
    seal(block, NODE_SALT)
    filled++
    return next++
  }
  let level: { key: number; block: number }[] = []
  for (let done = 0; done < extents; done += ENTRIES) {
    const count = Math.min(ENTRIES, extents - done)
    const block = await node(true, 8, count, (bytes) => {
      for (let i = 0; i < count; i++) {
        writeU64(bytes, 32 + 8 * i, spacing * (done + i))
        // The mapping is data block << 24 | time.
        const { data, time } = place?.(done + i) ?? { data: done + i, time: 0 }
        bytes.writeUInt32LE((Math.floor(data) % 256) * 2 ** 24 + time, 32 + 8 * ENTRIES + 8 * i)
        bytes.writeUInt32LE(Math.floor(data / 256), 36 + 8 * ENTRIES + 8 * i)
      }
    })
    level.push({ key: spacing * done, block })
  }
  while (level.length > 1) {
    const above: typeof level = []
    for (let start = 0; start < level.length; start += ENTRIES) {
      const children = level.slice(start, start + ENTRIES)
      const block = await node(false, 8, children.length, (bytes) => {
        children.forEach((child, i) => {
          writeU64(bytes, 32 + 8 * i, child.key)
          writeU64(bytes, 32 + 8 * ENTRIES + 8 * i, child.block)
        })
      })
      above.push({ key: children[0].key, block })
    }
    level = above
  }
  const devices = devicesUpTo(snapshots)
  const mappingRoot = await node(true, 8, snapshots, (bytes) => {
    for (const [i, device] of devices.entries()) {
      writeU64(bytes, 32 + 8 * i, device)
      writeU64(bytes, 32 + 8 * ENTRIES + 8 * i, level[0].block)
    }
  })
  const detailsRoot = await node(true, 24, snapshots, (bytes) => {
    for (const [i, device] of devices.entries()) {
      const at = 32 + 8 * 126 + 24 * i
      writeU64(bytes, 32 + 8 * i, device)
      writeU64(bytes, at, extents)
      if (place) bytes.writeUInt32LE(TAKEN_AT, at + 16)
      if (place) bytes.writeUInt32LE(TAKEN_AT, at + 20)
    }
  })
  await flush()
  const superblock = Buffer.alloc(BLOCK)
  writeU64(superblock, 32, 27022010)
  superblock.writeUInt32LE(2, 40)
  if (place) superblock.writeUInt32LE(TAKEN_AT, 44)
  writeU64(superblock, 320, mappingRoot)
  writeU64(superblock, 328, detailsRoot)
  superblock.writeUInt32LE(BLOCK_BYTES / 512, 336)
  superblock.writeUInt32LE(8, 340)
  writeU64(superblock, 344, next)
  seal(superblock, SUPERBLOCK_SALT)
  await file.write(superblock, 0, BLOCK, 0)
  await file.close()
}

function seal(block: Buffer, salt: number): void {
  block.writeUInt32LE((crc32c(block.subarray(4)) ^ 0xffffffff ^ salt) >>> 0, 0)
}

function writeU64(block: Buffer, at: number, value: number): void {
  block.writeUInt32LE(value % 2 ** 32, at)
  block.writeUInt32LE(Math.floor(value / 2 ** 32), at + 4)
}
