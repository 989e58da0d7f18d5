/**
 * Lists of classic snapshots' stores for the bench, as the kernel would have written them
 * (drivers/md/dm-snap-persistent.c): to make them by writing to a volume takes days.
 */
import { closeSync, constants, openSync, writeSync } from 'node:fs'
import { COW_MAGIC } from '../src/devicemapper/metadata-kind.ts'
import { alignedBuffer } from '../test/kernel/dmsetup.ts'

export const CHUNK_BYTES = 4096
export const ENTRIES_PER_AREA = CHUNK_BYTES / 16

/** `scattered`: every other chunk of the volume, in no order that would be of help. `in order`: its first ones. */
export type Order = 'scattered' | 'in order'

/** Of the volume, so that the entries are of half of its chunks. */
export function volumeBytesFor(entries: number): number {
  return Math.ceil((2 * entries * CHUNK_BYTES) / 2 ** 20) * 2 ** 20
}

/** Areas with so many entries, the last one that ends the list included. */
export function areasFor(entries: number): number {
  return Math.floor(entries / ENTRIES_PER_AREA) + 1
}

/** Of a store with room for what its entries have copied. */
export function storeBytesFor(entries: number): number {
  return (1 + areasFor(entries) * (ENTRIES_PER_AREA + 1)) * CHUNK_BYTES
}

/** Writes the areas of a store that has a header. @param onArea where each goes, in bytes */
export function writeList(
  path: string,
  entries: number,
  order: Order,
  onArea = (area: number) => (1 + area * (ENTRIES_PER_AREA + 1)) * CHUNK_BYTES
): void {
  const bytes = alignedBuffer(CHUNK_BYTES)
  const numbers = new BigUint64Array(bytes.buffer, bytes.byteOffset, CHUNK_BYTES / 8)
  const file = openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_DIRECT)
  for (let area = 0; area < areasFor(entries); area++) {
    numbers.fill(0n)
    for (let i = 0, index = area * ENTRIES_PER_AREA; i < ENTRIES_PER_AREA && index < entries; i++, index++) {
      numbers[2 * i] = BigInt(order === 'scattered' ? 2 * ((index * 7919) % entries) : index)
      numbers[2 * i + 1] = BigInt(2 + index + area)
    }
    writeSync(file, bytes, 0, CHUNK_BYTES, onArea(area))
  }
  closeSync(file)
}

/** A header as the kernel writes it into a new store (write_header). */
export function writeHeader(path: string): void {
  const bytes = alignedBuffer(CHUNK_BYTES)
  new Uint32Array(bytes.buffer).set([COW_MAGIC, 1, 1, CHUNK_BYTES / 512])
  const file = openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_DIRECT)
  writeSync(file, bytes, 0, CHUNK_BYTES, 0)
  closeSync(file)
}
