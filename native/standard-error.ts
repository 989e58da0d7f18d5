/**
 * Captures what a C library writes to standard error during a call.
 *
 * libdevmapper explains a failure through a variadic log function. A callback with a `...` cannot be written portably
 * through FFI, and formatting C's way by hand would be a second printf. By default the library prints to standard
 * error, formatted by the C library itself. So during one (synchronous) call, file descriptor 2 is a memory file. None
 * of our code can run meanwhile.
 */
import { fstatSync, ftruncateSync, readSync } from 'node:fs'
import koffi from 'koffi'

const closeOnExec = 1
const fromStart = 0
const mostBytes = 65536

export class StandardErrorCapture {
  readonly #dup2: (from: number, to: number) => number
  readonly #lseek: (file: number, offset: number, whence: number) => number
  readonly #memory: number
  readonly #original: number

  constructor() {
    const libc = koffi.load(null)
    this.#dup2 = libc.func('int dup2(int from, int to)')
    this.#lseek = libc.func('int64_t lseek(int file, int64_t offset, int whence)')
    const memfdCreate = libc.func('int memfd_create(const char *name, unsigned int flags)') as (
      name: string,
      flags: number
    ) => number
    const dup = libc.func('int dup(int file)') as (file: number) => number
    this.#memory = memfdCreate('libdevmapper', closeOnExec)
    this.#original = dup(2)
    if (this.#memory < 0 || this.#original < 0)
      throw new Error('no file descriptor left to listen to libdevmapper with')
  }

  /**
   * Runs the action and returns the lines it wrote to standard error along with what it returned. What it throws
   * passes.
   */
  during<T>(action: () => T): { result: T; lines: string[] } {
    this.#dup2(this.#memory, 2)
    let result: T
    try {
      result = action()
    } finally {
      this.#dup2(this.#original, 2)
    }
    return { result, lines: this.#take() }
  }

  #take(): string[] {
    const { size } = fstatSync(this.#memory)
    if (size === 0) return []
    const bytes = Buffer.alloc(Math.min(size, mostBytes))
    const count = readSync(this.#memory, bytes, 0, bytes.length, 0)
    ftruncateSync(this.#memory, 0)
    this.#lseek(this.#memory, 0, fromStart)
    return bytes
      .toString('utf8', 0, count)
      .split('\n')
      .map((line) => line.replace(/\s+/g, ' ').trim())
      .filter((line) => line !== '')
  }
}
