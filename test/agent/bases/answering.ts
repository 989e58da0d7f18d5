/**
 * What an agent does from a question about a snapshot of a live pool to the end of its answer, without gRPC and without
 * a kernel: the catalog, the records and the walk are the agent's own, and the pool is an image in which nothing
 * changes.
 *
 * As a program, it answers about one snapshot after the other until it is killed, and says so on stdout before and after
 * each: `node answering.ts CATALOG FOLDER IMAGE FIRST`.
 */
import { writeSync } from 'node:fs'
import { pino } from 'pino'
import { BaseRecords } from '../../../src/agent/answers/base-records.ts'
import { catalogKnowledge, type FoundRecord } from '../../../src/agent/answers/served-target.ts'
import { type Catalog, openCatalog } from '../../../src/agent/catalog/catalog.ts'
import type { Snapshot } from '../../../src/agent/walks/snapshot.ts'
import { walkMessages } from '../../../src/agent/walks/thin-walk.ts'
import { noStatistics } from '../../../src/agent/walks/walk-messages.ts'
import { decode, type Extent, KIB_64 } from '../sample-pool.ts'

const silent = pino({ level: 'silent' })
export const volumeBytes = 300 * KIB_64

/** The catalog, and the records beside it, as an agent has them after its start. */
export async function startAnswering(catalogPath: string, folder: string) {
  const catalog = await openCatalog(catalogPath)
  const bases = new BaseRecords({
    ...{ catalog, folder, logger: silent, instanceOf: async () => 'boot/253:0/1' },
    deviceMapper: { status: async () => [workingPool] },
    retention: { keep: 3, keptMs: 86_400_000, maxBytes: 2 ** 30 }
  })
  await bases.start()
  return { catalog, bases, knowledge: catalogKnowledge(catalog, silent, { bases }) }
}

export type Answering = Awaited<ReturnType<typeof startAnswering>>

const workingPool = {
  startSector: 0,
  lengthSectors: 1_000_000,
  targetType: 'thin-pool',
  params: '1 10/100 10/100 - rw discard_passdown queue_if_no_space - 1024'
}

/** The snapshot of this number: one half is thin device 2, the other its successor, each by a name of its own. */
export function numbered(number: number, metadataPath: string): Snapshot {
  const thinId = number % 2 === 0 ? 2 : 3
  return { ...snapshotOf(thinId, metadataPath), handle: `vg/${number}`, identity: `uuid-${number}` }
}

export function snapshotOf(thinId: number, metadataPath: string): Snapshot {
  return {
    ...{ kind: 'thin' as const, handle: `vg/thin-${thinId}`, identity: `thin-${thinId}`, volume: 'uuid-1', thinId },
    ...{ sizeBytes: volumeBytes, metadataPath, poolIdentity: 'pool', live: true, madeReadOnly: true, writable: false },
    ...{ pool: { uuid: 'LVM-pool' }, poolDevice: { major: 253, minor: 0 } }
  }
}

/** An answer to its end. */
export async function answer(
  { knowledge }: Answering,
  { base, recorded, target }: { base?: Snapshot; recorded?: FoundRecord; target: Snapshot }
): Promise<Extent[]> {
  let kept: Awaited<ReturnType<typeof knowledge.check>>
  const question = { base, recorded, target, startingOffset: 0, maxResults: 3, direct: false }
  const messages = walkMessages(question, noStatistics(), new AbortController().signal, {
    onSeen: async (devices) => (kept = await knowledge.check(devices, false, recorded))?.wanted,
    onKept: async (outcome) => kept?.kept(outcome)
  })
  return (await Array.fromAsync(messages)).flatMap((bytes) => decode(bytes).extents)
}

export function closeAnswering({ catalog }: { readonly catalog: Catalog }): Promise<void> {
  return catalog.close()
}

if (import.meta.main) {
  const [catalog, folder, image, first] = process.argv.slice(2)
  const agent = await startAnswering(catalog, folder)
  // Every second answer is a delta, whose record is patched into that of its base.
  for (let number = Number(first); ; number++) {
    writeSync(1, `began ${number}\n`)
    const base = number % 2 === 0 ? undefined : numbered(number - 1, image)
    await answer(agent, { ...(base && { base }), target: numbered(number, image) })
    writeSync(1, `ended ${number}\n`)
  }
}
