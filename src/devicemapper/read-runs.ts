/**
 * Parts of one buffer, each to be filled from its own place of a file: a window of blocks is one of these, and goes to
 * the kernel as a whole. Arrays of numbers in place of objects, because a walk asks for tens of thousands.
 */

export class ReadRuns {
  count = 0
  /** In the buffer, in bytes. */
  readonly starts: Uint32Array
  /** In bytes. */
  readonly lengths: Uint32Array
  /** In the file, in bytes. */
  readonly positions: Float64Array
  /** Of all together. */
  bytes = 0

  /** @param most of runs */
  constructor(most: number) {
    this.starts = new Uint32Array(most)
    this.lengths = new Uint32Array(most)
    this.positions = new Float64Array(most)
  }

  clear(): void {
    this.count = this.bytes = 0
  }

  add(start: number, length: number, position: number): void {
    const i = this.count++
    this.starts[i] = start
    this.lengths[i] = length
    this.positions[i] = position
    this.bytes += length
  }
}

/** What became of a run that was not read whole. */
export interface FailedRun {
  readonly run: number
  /** The error, or how many bytes came back. */
  readonly outcome: Error | number
}
