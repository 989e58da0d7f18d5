import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { progressLine, type Terminal, withProgress } from '../../../src/cli/output/progress.ts'
import type { ExtentBatch, ExtentStream } from '../../../src/devicemapper/extents.ts'

/** Batches of one extent, so many milliseconds apart. */
function slowly(batches: number, apartMs: number, failure?: Error): ExtentStream {
  async function* produce(): AsyncGenerator<ExtentBatch> {
    for (let i = 0; i < batches; i++) {
      await sleep(apartMs)
      yield { count: 1, offsets: Float64Array.of(i * 2 ** 20), sizes: Float64Array.of(2 ** 19) }
    }
    if (failure) throw failure
  }
  return { capacityBytes: batches * 2 ** 20, batches: produce() }
}

function terminal(columns = 80): Terminal & { written: string[] } {
  const written: string[] = []
  return { isTTY: true, columns, written, write: (text: string) => written.push(text) }
}

async function drained({ batches }: Pick<ExtentStream, 'batches'>): Promise<number[]> {
  const offsets = []
  for await (const batch of batches) offsets.push(batch.offsets[0])
  return offsets
}

test('a long answer is followed by a bar, which is gone in the end', async (t) => {
  const screen = terminal()
  t.is((await drained(withProgress(slowly(10, 100), screen))).length, 10)
  t.true(screen.written.length >= 2)
  t.true(screen.written[0].startsWith('\r\u001b[K'))
  t.regex(screen.written[0].slice(4), /^[█░]{20} [\d.]+ %, .* of 10 MiB, \d+ extents, \d+\/s$/)
  t.is(screen.written.at(-1), '\r\u001b[K')
})

test('the bar is no wider than the terminal', async (t) => {
  const screen = terminal(30)
  await drained(withProgress(slowly(7, 100), screen))
  t.true(screen.written.length >= 2)
  t.true(screen.written.every((text) => text.length <= '\r\u001b[K'.length + 29))
})

test('the bar is gone when the answer fails', async (t) => {
  const screen = terminal()
  const failure = new Error('broken')
  t.is(await t.throwsAsync(drained(withProgress(slowly(8, 100, failure), screen))), failure)
  t.is(screen.written.at(-1), '\r\u001b[K')
})

test('a short answer goes without', async (t) => {
  const screen = terminal()
  await drained(withProgress(slowly(3, 1), screen))
  t.deepEqual(screen.written, [])
})

test('off a terminal the answer passes untouched', (t) => {
  const answer = slowly(1, 1)
  t.is(withProgress(answer, { write: () => t.fail() }), answer)
})

test('numbers in the bar are short', (t) => {
  t.is(
    progressLine(2 ** 39, 2 ** 40, 12_345_678, 2000),
    '██████████░░░░░░░░░░ 50.0 %, 512 GiB of 1 TiB, 12.3 million extents, 6.2 million/s'
  )
  t.is(progressLine(0, 0, 0, 1000), `${'█'.repeat(20)} 0 %, 0 B of 0 B, 0 extents, 0/s`)
})
