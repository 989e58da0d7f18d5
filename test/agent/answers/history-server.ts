/**
 * A server with a real catalog of tracked volumes behind it, asked as a client asks; and a hand that takes snapshots in that catalog.
 */
import { join } from 'node:path'
import type { ExecutionContext } from 'ava'
import { pino } from 'pino'
import { snapshotMetadataBackend } from '../../../src/agent/answers/backend.ts'
import { type Catalog, openCatalog } from '../../../src/agent/catalog/catalog.ts'
import type { EraSnapshot } from '../../../src/agent/catalog/era-snapshots.ts'
import type { EraVolume } from '../../../src/agent/catalog/era-volumes.ts'
import { ChunkWriter } from '../../../src/agent/catalog/store/written-chunks.ts'
import { loadRecordedPool } from '../../../src/agent/answers/recorded-pool.ts'
import { Sources } from '../../../src/agent/answers/sources.ts'
import { answersWith } from '../../../src/agent/targets.ts'
import { Walkers } from '../../../src/agent/walks/walkers.ts'
import { connect, type SnapshotMetadataClient } from '../../../src/grpc/client.ts'
import { startServer } from '../../../src/grpc/server.ts'
import { eraVolume, testFolder } from '../catalog/examples.ts'
import { writeSamplePool } from '../sample-pool.ts'

export interface HistoryServer {
  readonly catalog: Catalog
  readonly client: SnapshotMetadataClient
}

/** Serves the catalog's tracked volumes, and a recorded pool `sample`. Closed when the test is over. */
export async function historyServer(t: ExecutionContext): Promise<HistoryServer> {
  const folder = testFolder(t)
  const catalog = await openCatalog(join(folder, 'catalog.db'))
  const walkers = new Walkers(1)
  const sample = await loadRecordedPool('sample', (await writeSamplePool(join(folder, 'sample'))).folder)
  const sources = new Sources(new Map([['sample', sample]]), {
    // There are no pools here beside those.
    deviceMapper: { info: async () => undefined, table: async () => [] },
    lvm: {
      logicalVolumes: async () => undefined,
      allLogicalVolumes: async () => [],
      snapshotLinks: async () => undefined
    },
    history: catalog
  })
  const address = `unix://${join(folder, 'agent.sock')}`
  const server = await startServer({
    listen: [address],
    backend: snapshotMetadataBackend(sources, walkers, answersWith({})),
    identity: { driverName: 'test.local' },
    logger: pino({ level: 'silent' })
  })
  const client = connect(address)
  t.teardown(async () => {
    client.close()
    await server.drain(0)
    await walkers.close()
    await catalog.close()
  })
  return { catalog, client }
}

/** Attaches a volume: no device, only what is on record of one. */
export async function attach(catalog: Catalog, name: string, changes: Partial<EraVolume> = {}): Promise<void> {
  await catalog.eraVolumes.begin({ kind: 'attach', volume: eraVolume(name, changes) })
  await catalog.eraVolumes.complete(name)
}

export interface Taken {
  readonly sizeBytes: number
  readonly exact?: boolean
  readonly takenAt?: number
}

/** Takes a snapshot `VOLUME/NAME` after these blocks were written, each block or run of them above the one before. */
export async function take(
  catalog: Catalog,
  handle: string,
  blocks: Iterable<number | readonly [begin: number, end: number]>,
  { sizeBytes, exact = true, takenAt = 1 }: Taken
): Promise<EraSnapshot> {
  const [volume, name] = handle.split('/')
  await catalog.eraVolumes.begin({ kind: 'snapshot', volume, snapshot: name, token: handle })
  const since = await catalog.eraSnapshots.beginHistory(volume)
  if (since.boundaryEra !== undefined) {
    const writer = new ChunkWriter()
    for (const each of blocks) {
      const [begin, end] = typeof each === 'number' ? [each, each + 1] : each
      writer.addRun(begin, end)
    }
    await catalog.eraSnapshots.stageWrites(volume, writer.takeLast())
  }
  const taken = { name, boundaryEra: (since.boundaryEra ?? 1) + 1, sizeBytes, takenAt, suspendedMs: 1, lower: '' }
  return catalog.eraSnapshots.record(volume, taken, since, exact)
}
