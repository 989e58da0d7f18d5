/**
 * A question about snapshots of a tracked volume, answered from the catalog: bitmaps in, encoded messages out. Runs in
 * a walker thread. The catalog belongs to the main thread, and is asked for one page of bitmaps at a time.
 */
import type { HistoryPage, HistoryPlace } from '../catalog/era-snapshots.ts'
import { encodedMessages, type WalkStatistics } from './encoded-messages.ts'
import type { Walk } from './plan.ts'
import type { HistoryQuestion } from './history-extents.ts'
import type { WrittenChunk } from '../catalog/store/written-chunks.ts'

export interface HistoryWalkRequest {
  readonly question: HistoryQuestion
  /** Whether the catalog has anything for the answer. Otherwise only the sizes count. */
  readonly isOnRecord: boolean
  /** The most extents in a message; 0 chooses a good number. */
  readonly maxResults: number
}

/** The page after a place, in the order of chunk and boundary. Rejects when the answer is no longer possible. */
export type NextPage = (after: HistoryPlace) => Promise<HistoryPage>

/** The walk of tracked volumes' snapshots. @throws what `historyMessages` throws */
export const historyWalk: Walk<HistoryWalkRequest> = (request, { statistics, ask }) =>
  historyMessages(request, statistics, (after) => ask('page', after) as Promise<HistoryPage>)

/**
 * @param statistics updated during the walk: pages of bitmaps count as read calls
 * @throws DM_CATALOG_DAMAGED, and what `nextPage` throws
 */
export async function* historyMessages(
  { question, isOnRecord, maxResults }: HistoryWalkRequest,
  statistics: WalkStatistics,
  nextPage: NextPage
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  // Every walker thread loads this file, and most nodes have no tracked volume: the bitmaps' library is not small.
  const { firstChunk, historyExtents } = await import('./history-extents.ts')
  async function* chunks(): AsyncGenerator<WrittenChunk> {
    let after: HistoryPlace = { chunk: firstChunk(question), seq: 0 }
    for (let last = !isOnRecord; !last;) {
      const page = await nextPage(after)
      statistics.readCalls++
      for (const each of page.chunks) {
        statistics.nodesRead++
        statistics.bytesRead += each.bytes.length
        yield each
        after = each
      }
      last = page.last
    }
  }
  const shape = { capacityBytes: question.sizeBytes, maxResults }
  yield* encodedMessages(historyExtents(question, chunks()), shape, statistics)
}
