/**
 * Discards without a program: starting one takes longer in the lab than anything that is done with it.
 */
import koffi from 'koffi'

/** linux/fs.h: _IO(0x12, 119); its argument points to a first byte and a length, 64 bits each. */
const BLKDISCARD = 0x1277

const ioctl = koffi.load('libc.so.6').func('int ioctl(int fd, unsigned long request, ...)') as (
  file: number,
  request: number,
  type: string,
  argument: Uint8Array
) => number

/** Discards bytes `[offset, offset + length)`, whole sectors, of the device that `file` is open on for writing. */
export function discard(file: number, offset: number, length: number): void {
  const range = Buffer.alloc(16)
  range.writeBigUInt64LE(BigInt(offset), 0)
  range.writeBigUInt64LE(BigInt(length), 8)
  if (ioctl(file, BLKDISCARD, 'void *', range) !== 0) {
    throw new Error(`discarding ${length} bytes from ${offset} failed with errno ${koffi.errno()}`)
  }
}
