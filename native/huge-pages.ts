/**
 * Memory in pages of 2 MiB, where the kernel has some (madvise(2), MADV_HUGEPAGE; Documentation/admin-guide/mm/
 * transhuge.rst). A disk gets a read as pieces of memory that hang together: with small pages that is each 4 KiB, and
 * reading of 1 GiB was seen to take 1.3 to 1.6 times as long.
 */
import koffi from 'koffi'
import { addressOf } from './kernel-aio.ts'

export const HUGE_PAGE_BYTES = 2 ** 21
const MADV_HUGEPAGE = 14

/**
 * The part of fresh memory that lies at whole large pages, of which the kernel is asked to make it. Whether it does is
 * its own affair: without, everything works, only slower.
 *
 * @param memory HUGE_PAGE_BYTES longer than what is wanted; it must not move
 * @param bytes a multiple of HUGE_PAGE_BYTES
 */
export function inHugePages(memory: Buffer, bytes: number): Buffer {
  const address = addressOf(memory)
  const skipped = Math.ceil(address / HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES - address
  const madvise = koffi.load(null).func('int madvise(uintptr_t address, size_t bytes, int advice)') as (
    ...words: number[]
  ) => number
  madvise(address + skipped, bytes, MADV_HUGEPAGE)
  return memory.subarray(skipped, skipped + bytes)
}
