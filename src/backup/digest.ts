/** The SHA-256 of a file, as `sha256sum` prints it. */
import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'

const PIECE_BYTES = 2 ** 20

/**
 * While one piece is hashed, the next one is read. (A stream would take a new buffer for each, and a third longer.)
 *
 * @param onBytes told of each piece that was read, in bytes
 * @throws what reading throws; the signal's reason
 */
export async function digestOf(
  path: string,
  { signal, onBytes }: { signal?: AbortSignal | undefined; onBytes?: (bytes: number) => void } = {}
): Promise<{ sha256: string; bytes: number }> {
  const hash = createHash('sha256')
  const file = await open(path)
  try {
    let [piece, other] = [Buffer.alloc(PIECE_BYTES), Buffer.alloc(PIECE_BYTES)]
    let bytes = 0
    let { bytesRead } = await file.read(piece, 0, PIECE_BYTES, 0)
    while (bytesRead > 0) {
      signal?.throwIfAborted()
      bytes += bytesRead
      const next = file.read(other, 0, PIECE_BYTES, bytes)
      hash.update(piece.subarray(0, bytesRead))
      onBytes?.(bytesRead)
      bytesRead = (await next).bytesRead
      ;[piece, other] = [other, piece]
    }
    return { sha256: hash.digest('hex'), bytes }
  } finally {
    await file.close()
  }
}
