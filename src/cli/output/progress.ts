/** A bar on a terminal's stderr while a long answer passes by. Answers within half a second have none. */
import type { ExtentAnswer, ExtentBatch, ExtentStream } from '../../devicemapper/extents.ts'
import { humanSize, percentage } from '../command-line/quantities.ts'

const FIRST_AFTER_MS = 500
const REDRAW_EVERY_MS = 100
const BAR_CELLS = 20
const CLEAR_LINE = '\r\u001b[K'

/** The stream where the bar is drawn. */
export interface Terminal {
  readonly isTTY?: boolean
  readonly columns?: number
  write(text: string): unknown
}

/** The same answer, watched: the bar follows its consumer. Without a terminal or a capacity, the answer as it is. */
export function withProgress(answer: ExtentAnswer, terminal: Terminal): ExtentAnswer {
  const { capacityBytes, batches } = answer
  if (!terminal.isTTY || capacityBytes === undefined) return answer
  return { ...answer, batches: watched({ capacityBytes, batches }, terminal) }
}

async function* watched({ capacityBytes, batches }: ExtentStream, terminal: Terminal): AsyncGenerator<ExtentBatch> {
  const begin = performance.now()
  let extents = 0
  let reached = 0
  let drawn = false
  const timer = setInterval(() => {
    const elapsedMs = performance.now() - begin
    if (elapsedMs < FIRST_AFTER_MS) return
    drawn = true
    const line = progressLine(reached, capacityBytes, extents, elapsedMs)
    terminal.write(CLEAR_LINE + line.slice(0, (terminal.columns ?? 80) - 1))
  }, REDRAW_EVERY_MS)
  try {
    for await (const batch of batches) {
      yield batch
      if (batch.count === 0) continue
      const last = batch.count - 1
      extents += batch.count
      reached = batch.offsets[last] + batch.sizes[last]
    }
  } finally {
    clearInterval(timer)
    if (drawn) terminal.write(CLEAR_LINE)
  }
}

/** @param reached bytes of the volume that the answer has passed */
export function progressLine(reached: number, capacityBytes: number, extents: number, elapsedMs: number): string {
  const part = capacityBytes === 0 ? 1 : reached / capacityBytes
  const full = Math.floor(part * BAR_CELLS)
  const bar = '█'.repeat(full) + '░'.repeat(BAR_CELLS - full)
  const where = `${percentage(reached, capacityBytes)}, ${humanSize(reached)} of ${humanSize(capacityBytes)}`
  return `${bar} ${where}, ${magnitude(extents)} extents, ${magnitude((1000 * extents) / elapsedMs)}/s`
}

function magnitude(count: number): string {
  if (count >= 1e6) return `${(count / 1e6).toFixed(1)} million`
  return count >= 1e4 ? `${Math.round(count / 1e3)} thousand` : String(Math.round(count))
}
