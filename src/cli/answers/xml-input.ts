/** XML input: a file, or standard input. */
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { addAbortSignal, type Readable } from 'node:stream'
import { systemRemedy } from '../../system-errors.ts'
import { DeltamapperError } from '../../errors.ts'

const READ_BYTES = 256 * 1024

export interface XmlInput {
  /** Its name in messages. */
  readonly name: string
  /** Whether it can be read a second time. */
  readonly again: boolean
  /** Its bytes, from the beginning. A chunk is valid until the next one is requested. */
  bytes(): AsyncIterable<Uint8Array>
  close(): Promise<void>
}

/**
 * Opens a file, or standard input for the path `-`.
 *
 * @param signal ends the reading, and the waiting for a writer that does not write
 * @throws DM_READ_FAILED
 */
export async function openXmlInput(path: string, signal: AbortSignal): Promise<XmlInput> {
  if (path === '-') return streamed('standard input', process.stdin, signal)
  const file = await open(path, constants.O_RDONLY).catch((error: unknown) => {
    throw readFailed(path, error)
  })
  // A pipe with a name: `<(thin_delta …)` of a shell is one.
  if (!(await file.stat()).isFile()) return streamed(path, file.createReadStream({ highWaterMark: READ_BYTES }), signal)
  return { name: path, again: true, bytes: () => fileBytes(path, file, signal), close: () => file.close() }
}

function streamed(name: string, stream: Readable, signal: AbortSignal): XmlInput {
  addAbortSignal(signal, stream)
  async function* bytes(): AsyncGenerator<Uint8Array> {
    try {
      yield* stream as AsyncIterable<Uint8Array>
    } catch (error) {
      signal.throwIfAborted()
      throw readFailed(name, error)
    }
  }
  return {
    name,
    again: false,
    bytes,
    async close() {
      stream.destroy()
    }
  }
}

async function* fileBytes(path: string, file: FileHandle, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const buffer = Buffer.allocUnsafe(READ_BYTES)
  for (let position = 0; ;) {
    // Much of it may be read before there is an answer that could be cut off.
    signal.throwIfAborted()
    const { bytesRead } = await file.read(buffer, 0, buffer.length, position).catch((error: unknown) => {
      throw readFailed(path, error)
    })
    if (bytesRead === 0) return
    position += bytesRead
    yield buffer.subarray(0, bytesRead)
  }
}

function readFailed(name: string, cause: unknown): DeltamapperError {
  return new DeltamapperError(
    'DM_READ_FAILED',
    `cannot read ${name}: ${(cause as Error).message}`,
    systemRemedy(cause) ?? 'name a file with the XML in it, or - for standard input',
    { cause }
  )
}
