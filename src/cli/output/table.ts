/**
 * An answer as a table for people: one line for each extent, and a last one with the total, without which it is not
 * complete.
 */
import type { ExtentAnswer } from '../../devicemapper/extents.ts'
import { humanSize } from '../command-line/quantities.ts'
import { Phrase, type TextOutput } from './text-output.ts'
import { type Subject, summary } from './totals.ts'

const HUMAN_WIDTH = 12
/** Sizes repeat: most extents are a few blocks long. */
const REMEMBERED_SIZES = 10_000

export async function writeTable(answer: ExtentAnswer, output: TextOutput, subject: Subject): Promise<void> {
  const { capacityBytes } = answer
  const width = Math.max('SIZE (BYTES)'.length, String(capacityBytes ?? '').length)
  output.text(`${'BYTE OFFSET'.padStart(width)}  ${'SIZE (BYTES)'.padStart(width)}${'SIZE'.padStart(HUMAN_WIDTH)}\n`)

  const lineEnds = new Map<number, Phrase>()
  const total = { extents: 0, bytes: 0 }
  for await (const { count, offsets, sizes } of answer.batches) {
    for (let i = 0; i < count; i++) {
      const size = sizes[i]
      output.integer(offsets, i, width)
      output.integer(sizes, i, width + 2)
      let lineEnd = lineEnds.get(size)
      if (!lineEnd) {
        lineEnd = new Phrase(`${humanSize(size).padStart(HUMAN_WIDTH)}\n`)
        if (lineEnds.size < REMEMBERED_SIZES) lineEnds.set(size, lineEnd)
      }
      output.phrase(lineEnd)
      total.bytes += size
      if (output.isFull) await output.flush()
    }
    total.extents += count
  }
  output.text(`${summary(total, capacityBytes, subject)}\n`)
  await output.flush()
}
