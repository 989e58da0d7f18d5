/**
 * What the service answers of tracked volumes, from a catalog in this process; and who records their history there.
 */
import { pino } from 'pino'
import type { DeviceMapper } from '../../native/device-mapper.ts'
import { answersWith } from '../../src/agent/targets.ts'
import { snapshotMetadataBackend } from '../../src/agent/answers/backend.ts'
import type { Catalog } from '../../src/agent/catalog/catalog.ts'
import { EraHistoryRecords } from '../../src/agent/era/history/history-record.ts'
import { Sources } from '../../src/agent/answers/sources.ts'
import { Walkers } from '../../src/agent/walks/walkers.ts'
import { decode } from '../agent/sample-pool.ts'
import type { Extent } from '../support/expected.ts'

export function recorderOf(catalog: Catalog, deviceMapper: DeviceMapper): EraHistoryRecords {
  return new EraHistoryRecords({ catalog, deviceMapper, logger: pino({ level: 'silent' }) })
}

export class EraAnswers {
  readonly #deviceMapper: DeviceMapper
  readonly #walkers = new Walkers(1)
  /** Walkers do not keep a process alive; in an agent the server does. */
  readonly #alive = setInterval(() => undefined, 1000)

  constructor(deviceMapper: DeviceMapper) {
    this.#deviceMapper = deviceMapper
  }

  /** Asks what changed, as the service does. @param base `VOLUME/SNAPSHOT`, as the target; the offset in bytes */
  async delta(catalog: Catalog, base: string, target: string, startingOffset = 0): Promise<Extent[]> {
    const sources = new Sources(new Map(), {
      deviceMapper: this.#deviceMapper,
      lvm: { logicalVolumes: async () => undefined, allLogicalVolumes: async () => [], snapshotLinks: async () => undefined },
      history: catalog
    })
    const { messages } = await snapshotMetadataBackend(sources, this.#walkers, answersWith({})).delta(
      { baseSnapshotId: base, targetSnapshotId: target, startingOffset: BigInt(startingOffset), maxResults: 0 },
      new AbortController().signal
    )
    return (await Array.fromAsync(messages)).flatMap((message) => decode(message).extents)
  }

  async close(): Promise<void> {
    clearInterval(this.#alive)
    await this.#walkers.close()
  }
}
