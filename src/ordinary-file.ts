/**
 * Reads files that others put in place, and only if they are ordinary files. Opening a FIFO waits for a writer, and
 * reading a device may never end; neither can be cancelled.
 */
import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs'
import { open } from 'node:fs/promises'

/**
 * All of a file's bytes. Links are followed. @throws what open and read throw, and an Error that says what it is if it
 * is no file
 */
export async function readOrdinaryFile(path: string): Promise<Buffer<ArrayBuffer>> {
  // Without O_NONBLOCK, opening a FIFO waits.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    const status = await file.stat()
    if (!status.isFile()) throw new Error(`${path} is no file (but a ${kindOf(status)})`)
    return await file.readFile()
  } finally {
    await file.close()
  }
}

/** The same, for who cannot wait. */
export function readOrdinaryFileSync(path: string): Buffer {
  const file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    const status = fstatSync(file)
    if (!status.isFile()) throw new Error(`${path} is no file (but a ${kindOf(status)})`)
    return readFileSync(file)
  } finally {
    closeSync(file)
  }
}

interface Kinds {
  isFIFO(): boolean
  isDirectory(): boolean
}

function kindOf(status: Kinds): string {
  if (status.isFIFO()) return 'FIFO'
  return status.isDirectory() ? 'folder' : 'device'
}
