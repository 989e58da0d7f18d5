/**
 * A question about an era volume's snapshots, answered from what is on record: bitmaps in, encoded messages out. Runs in a walker thread;
 * the catalog is the main thread's, and is asked for one page of bitmaps at a time.
 */
import type { HistoryPage, HistoryPlace } from '../catalog/era-snapshots.ts'
import { encodedMessages, type WalkStatistics } from './encoded-messages.ts'
import type { Walk } from './plan.ts'
import { firstChunk, historyExtents, type HistoryQuestion } from './history-extents.ts'
import type { WrittenChunk } from '../catalog/store/written-chunks.ts'

export interface HistoryWalkRequest {
  readonly question: HistoryQuestion
  /** Whether anything on record has a part in the answer. Otherwise all that counts is the sizes. */
  readonly isOnRecord: boolean
  /** The most extents in a message; 0 for as many as are good. */
  readonly maxResults: number
}

/** What comes after a place, in the order of chunk and boundary. Rejects when there is no answer any more. */
export type NextPage = (after: HistoryPlace) => Promise<HistoryPage>

/** The walk of era volumes' snapshots. @throws what `historyMessages` throws */
export const historyWalk: Walk<HistoryWalkRequest> = (request, { statistics, ask }) =>
  historyMessages(request, statistics, (after) => ask('page', after) as Promise<HistoryPage>)

/**
 * @param statistics kept up to date while the walk goes on: bitmaps count as nodes, pages as read calls
 * @throws DM_CATALOG_DAMAGED, and what `nextPage` throws
 */
export function historyMessages(
  { question, isOnRecord, maxResults }: HistoryWalkRequest,
  statistics: WalkStatistics,
  nextPage: NextPage
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
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
  return encodedMessages(historyExtents(question, chunks()), shape, statistics)
}
