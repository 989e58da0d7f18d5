/** A line on a terminal's stderr while much is copied: how far, how fast, and how long it still takes. */
import { humanSize, percentage } from '../command-line/quantities.ts'
import type { Terminal } from './progress.ts'

const FIRST_AFTER_MS = 500
const REDRAW_EVERY_MS = 100
const CLEAR_LINE = '\r\u001b[K'

export class TransferProgress {
  readonly #terminal: Terminal
  readonly #now: () => number
  #label = ''
  #begin = 0
  #drawn = -Infinity
  #isDrawn = false

  constructor(terminal: Terminal, now = () => performance.now()) {
    this.#terminal = terminal
    this.#now = now
  }

  /** What is done now. Takes the line of what was done before away. */
  begin(label: string): void {
    this.end()
    this.#label = label
    this.#begin = this.#now()
  }

  /** In bytes. */
  update(done: number, total: number): void {
    const now = this.#now()
    const elapsedMs = now - this.#begin
    if (!this.#terminal.isTTY || elapsedMs < FIRST_AFTER_MS || now - this.#drawn < REDRAW_EVERY_MS) return
    this.#drawn = now
    this.#isDrawn = true
    const line = `${this.#label}: ${transferLine(done, total, elapsedMs)}`
    this.#terminal.write(CLEAR_LINE + line.slice(0, (this.#terminal.columns ?? 80) - 1))
  }

  end(): void {
    if (this.#isDrawn) this.#terminal.write(CLEAR_LINE)
    this.#isDrawn = false
  }
}

/** @param done bytes @param total bytes; 0 where there is nothing to copy */
export function transferLine(done: number, total: number, elapsedMs: number): string {
  const rate = (1000 * done) / Math.max(elapsedMs, 1)
  const where = `${percentage(done, Math.max(total, done))}, ${humanSize(done)} of ${humanSize(Math.max(total, done))}`
  const left = rate > 0 ? `, ${duration((Math.max(total, done) - done) / rate)} left` : ''
  return `${where}, ${humanSize(Math.round(rate))}/s${left}`
}

function duration(seconds: number): string {
  const whole = Math.ceil(seconds)
  if (whole < 60) return `${whole} s`
  if (whole < 3600) return `${Math.ceil(whole / 60)} min`
  return `${(whole / 3600).toFixed(1)} h`
}
