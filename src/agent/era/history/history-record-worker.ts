/**
 * The thread that reads the blocks written in some eras (history-reading.ts). One thread for each snapshot: the event
 * loop stays free, and the memory for a large volume is freed at the end.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { asDeltamapperError } from '../../../errors.ts'
import type { WrittenChunk } from '../../catalog/store/written-chunks.ts'
import { type PortableError, toPortable } from '../../../portable-error.ts'
import { type HistoryReading, readHistory } from './history-reading.ts'

/** After `chunks` the worker waits for `more`; the others are final. */
export type FromHistoryReader =
  | { readonly kind: 'chunks'; readonly chunks: readonly WrittenChunk[] }
  | { readonly kind: 'end'; readonly isExact: boolean }
  | { readonly kind: 'error'; readonly error: PortableError }

if (parentPort) {
  const port = parentPort
  const say = (message: FromHistoryReader) => {
    port.postMessage(message)
  }
  readHistory(workerData as HistoryReading, async (chunks) => {
    const more = new Promise((resolve) => port.once('message', resolve))
    say({ kind: 'chunks', chunks })
    await more
  })
    .then(
      (isExact) => say({ kind: 'end', isExact }),
      (thrown: unknown) => say({ kind: 'error', error: toPortable(asDeltamapperError(thrown)) })
    )
    .finally(() => {
      port.close()
    })
}
