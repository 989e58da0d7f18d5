/**
 * What is in each block of a device, told apart by hashes: enough to see which blocks differ between two times.
 */
import { createHash } from 'node:crypto'
import { closeSync, constants, openSync, readSync } from 'node:fs'
import { alignedBuffer } from './dmsetup.ts'

const buffer = alignedBuffer(2 ** 20)

/**
 * One for each block, in their order; read around the page cache.
 *
 * @param blockBytes divides 1 MiB; the last block may be shorter
 * @param mostBytes how much of the device is looked at, in whole MiB
 */
export function blockFingerprints(device: string, blockBytes: number, mostBytes = Infinity): string[] {
  const file = openSync(device, constants.O_RDONLY | constants.O_DIRECT)
  try {
    const found: string[] = []
    for (let at = 0, read; at < mostBytes && (read = readSync(file, buffer, 0, buffer.length, at)) > 0; at += read) {
      for (let from = 0; from < read; from += blockBytes) {
        const block = buffer.subarray(from, Math.min(from + blockBytes, read))
        found.push(createHash('sha256').update(block).digest('base64').slice(0, 16))
      }
    }
    return found
  } finally {
    closeSync(file)
  }
}
