/** The SHA-256 of a file, as `sha256sum` prints it. */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'

const PIECE_BYTES = 2 ** 20

/**
 * @param onBytes told of each piece that was read, in bytes
 * @throws what reading throws; the signal's reason
 */
export async function digestOf(
  path: string,
  { signal, onBytes }: { signal?: AbortSignal | undefined; onBytes?: (bytes: number) => void } = {}
): Promise<{ sha256: string; bytes: number }> {
  const hash = createHash('sha256')
  let bytes = 0
  for await (const piece of createReadStream(path, { highWaterMark: PIECE_BYTES })) {
    signal?.throwIfAborted()
    hash.update(piece as Buffer)
    bytes += (piece as Buffer).length
    onBytes?.((piece as Buffer).length)
  }
  return { sha256: hash.digest('hex'), bytes }
}
