/**
 * What an answer from a classic snapshot's store consists of, in this process and one after the other: the list is read
 * and found to be in order; then its entries become extents and encoded messages. Reading is what dd can be compared
 * with.
 *
 *   node bench/cow-stages.ts STORE VOLUME-BYTES ENTRIES    prints Stages as JSON
 */
import { openCowStore } from '../src/devicemapper/cow/cow-store.ts'
import { changed } from '../src/devicemapper/cow/delta.ts'
import { encodedMessages } from '../src/agent/walks/encoded-messages.ts'
import { noStatistics } from '../src/agent/walks/walk-messages.ts'
import type { Cost } from './load-cow.ts'
import { peakMemoryMiB } from './measure.ts'

export interface Stages {
  /** Until the list is read, its entries marked, and its digest taken. */
  readonly read: Cost
  /** From there to the last message's bytes. */
  readonly encode: Cost
  readonly extents: number
  readonly peakMiB: number
}

/** @param entries in the list of the store, as the kernel would have counted them */
export async function measureStages(path: string, sizeBytes: number, entries: number): Promise<Stages> {
  const store = await openCowStore(path, { direct: true, reads: 'auto' })
  const statistics = noStatistics()
  let since = startClock()
  let read: Cost | undefined
  const { batches, capacityBytes } = changed({
    base: { store, sizeBytes, counted: entries },
    onRead: () => {
      read = since()
      since = startClock()
    }
  })
  for await (const message of encodedMessages(batches, { capacityBytes, maxResults: 0 }, statistics)) void message
  const encode = since()
  await store.close()
  if (!read) throw new Error(`${path} was not read`)
  return { read, encode, extents: statistics.extents, peakMiB: peakMemoryMiB(process.pid) }
}

function startClock(): () => Cost {
  const [began, cpu] = [performance.now(), process.cpuUsage()]
  return () => {
    const { user, system } = process.cpuUsage(cpu)
    return { seconds: (performance.now() - began) / 1000, cpu: (user + system) / 1e6 }
  }
}

if (import.meta.main) {
  const [path, sizeBytes, entries] = process.argv.slice(2)
  console.log(JSON.stringify(await measureStages(path, Number(sizeBytes), Number(entries))))
}
