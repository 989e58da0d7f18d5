/**
 * Memory at large pages: where it lies, and that the kernel was told (proc_pid_smaps(5): `hg`).
 */
import { existsSync, readFileSync } from 'node:fs'
import test from 'ava'
import { HUGE_PAGE_BYTES, inHugePages } from '../../native/huge-pages.ts'
import { addressOf } from '../../native/kernel-aio.ts'
import { pageAligned } from '../../src/devicemapper/page-aligned.ts'

test('it begins at a large page, has its length, and the kernel is to make it of large pages', (t) => {
  const bytes = 2 * HUGE_PAGE_BYTES
  const memory = inHugePages(pageAligned(bytes + HUGE_PAGE_BYTES), bytes)
  const address = addressOf(memory)
  t.is(memory.length, bytes)
  t.is(address % HUGE_PAGE_BYTES, 0)
  memory.fill(1)
  t.true(memory.every((byte) => byte === 1))
  // A kernel without them ignores it.
  if (!existsSync('/sys/kernel/mm/transparent_hugepage')) return
  const areas = readFileSync('/proc/self/smaps', 'utf8').split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)
  const own = areas.find((area) => {
    const [begin, end] = (/^([0-9a-f]+)-([0-9a-f]+)/.exec(area) ?? []).slice(1).map((word) => parseInt(word, 16))
    return begin <= address && address < end
  })
  t.regex(own ?? '', /^VmFlags:.* hg( |$)/m)
})
