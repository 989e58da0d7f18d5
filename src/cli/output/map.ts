/**
 * An answer as a map of the volume: rows of cells, each shaded by how much of it is changed. For a volume of any size
 * and an answer of any length it takes the same number of cells.
 */
import type { ExtentAnswer } from '../../devicemapper/extents.ts'
import { exactSize } from '../command-line/quantities.ts'
import type { TextOutput } from './text-output.ts'
import { type Subject, summary, type Totals } from './totals.ts'

const MAX_ROWS = 16
/** The smallest data block of dm-thin: nothing finer can show. */
const MIN_CELL_BYTES = 65536
const LABEL_WIDTH = 10

export interface MapStyle {
  /** Cells in a row. */
  columns: number
  /** Whether escape sequences may be used. */
  colour: boolean
}

/**
 * The style for a stream.
 *
 * @param terminalColumns width of the terminal, or undefined when it is none
 */
export function mapStyle(terminalColumns: number | undefined, environment: NodeJS.ProcessEnv): MapStyle {
  if (terminalColumns === undefined) return { columns: 64, colour: false }
  // A power of two, so that each row begins at a round offset.
  const room = terminalColumns - LABEL_WIDTH - ' ││'.length
  const columns = Math.min(128, Math.max(16, 2 ** Math.floor(Math.log2(Math.max(1, room)))))
  // See https://no-color.org
  return { columns, colour: !environment['NO_COLOR'] && environment['TERM'] !== 'dumb' }
}

export async function writeMap(
  { capacityBytes, batches }: ExtentAnswer,
  output: TextOutput,
  subject: Subject,
  style: MapStyle
): Promise<void> {
  if (capacityBytes === undefined) {
    // Nothing was found, and there is no volume to draw; but the answer may still fail.
    for await (const { count } of batches) if (count > 0) throw new TypeError('extents of a volume of unknown size')
    output.text(`${summary({ extents: 0, bytes: 0 }, undefined, subject)}\n`)
    await output.flush()
    return
  }
  const map = new VolumeMap(capacityBytes, style.columns)
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) map.add(offsets[i], sizes[i])
  }
  for (const line of map.lines(subject, style.colour)) {
    output.text(`${line}\n`)
    if (output.isFull) await output.flush()
  }
  await output.flush()
}

/** The cells of a map. All sizes in bytes. */
export class VolumeMap {
  readonly total: Totals = { extents: 0, bytes: 0 }
  readonly #capacityBytes: number
  readonly #columns: number
  readonly #cellBytes: number
  /** How many bytes of each cell are in extents. */
  readonly #cells: Float64Array

  constructor(capacityBytes: number, columns: number) {
    this.#capacityBytes = capacityBytes
    this.#columns = columns
    let cellBytes = MIN_CELL_BYTES
    while (cellBytes * columns * MAX_ROWS < capacityBytes) cellBytes *= 2
    this.#cellBytes = cellBytes
    this.#cells = new Float64Array(Math.ceil(capacityBytes / cellBytes))
  }

  /** Adds the bytes `[offset, offset + size)`, which lie within the capacity. */
  add(offset: number, size: number): void {
    this.total.extents++
    this.total.bytes += size
    const end = offset + size
    let start = offset
    while (start < end) {
      const cell = Math.floor(start / this.#cellBytes)
      const next = Math.min(end, (cell + 1) * this.#cellBytes)
      this.#cells[cell] += next - start
      start = next
    }
  }

  /** Legend, rows and total. */
  *lines(subject: Subject, colour: boolean): Generator<string> {
    const [shade, frame, plain] = colour ? ['\u001b[36m', '\u001b[2m', '\u001b[0m'] : ['', '', '']
    const cell = `${exactSize(this.#cellBytes)} a cell, ${exactSize(this.#cellBytes * this.#columns)} a row`
    const shades = ['░ some of it', '▒ a third', '▓ two thirds', '█ all'].map(
      (each) => `${shade}${each[0]}${plain}${each.slice(1)}`
    )
    yield `${subject}, ${cell}:  ${shades.join('  ')}`
    for (let first = 0; first < this.#cells.length; first += this.#columns) {
      const label = exactSize(first * this.#cellBytes).padStart(LABEL_WIDTH)
      const count = Math.min(this.#columns, this.#cells.length - first)
      const cells = Array.from({ length: count }, (_, i) => this.#shade(first + i)).join('')
      yield `${label} ${frame}│${plain}${shade}${cells}${plain}${frame}│${plain}`
    }
    yield summary(this.total, this.#capacityBytes, subject)
  }

  /** Any change shows, and only a cell that has changed completely is full. */
  #shade(cell: number): string {
    const whole = Math.min(this.#cellBytes, this.#capacityBytes - cell * this.#cellBytes)
    const part = this.#cells[cell] / whole
    if (part === 0) return ' '
    if (part === 1) return '█'
    return part < 1 / 3 ? '░' : part < 2 / 3 ? '▒' : '▓'
  }
}
