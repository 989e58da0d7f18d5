/**
 * Puts a file onto the disk while somebody writes it. Otherwise the disk would rest during a copy, and have all of it
 * to do at its end; and whoever else writes to that disk would wait for as long.
 */
import { type FileHandle, open } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'

/** Between one look for what is there to be written and the next. */
const PAUSE_MS = 250

export class WriteOut {
  readonly #stopping = new AbortController()
  /**
   * Resolves some time after `stop`. The end of the file may not be on disk then.
   *
   * @throws what the disk fails by: the kernel tells that to one descriptor, and not to the next
   */
  readonly ended: Promise<void>

  /** @param path of a file that will be there soon, or never */
  constructor(path: string) {
    this.ended = this.#run(path)
  }

  stop(): void {
    this.#stopping.abort()
  }

  async #run(path: string): Promise<void> {
    let file: FileHandle | undefined
    try {
      while (!this.#stopping.signal.aborted) {
        await sleep(PAUSE_MS, undefined, this.#stopping).catch(() => undefined)
        file ??= await openIfThere(path)
        await file?.datasync()
      }
    } finally {
      await file?.close()
    }
  }
}

async function openIfThere(path: string): Promise<FileHandle | undefined> {
  return open(path, 'r+').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
}
