/**
 * Pairs of a life's classic snapshots (cow-life.ts), asked of an agent: each snapshot is served as a target first, as the
 * full backup that makes it a base does.
 */
import type { SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { answerTo } from './ask.ts'
import type { AskPair } from './cow-life.ts'
import { deviceBytes } from './dmsetup.ts'

/** Serves a snapshot as a target. @throws where the answer is not the whole of it */
export async function serve(client: SnapshotMetadataClient, group: string, name: string): Promise<void> {
  const extents = await answerTo(client, { target: `${group}/${name}` })
  const size = deviceBytes(`/dev/${group}/${name}`)
  if (JSON.stringify(extents) !== JSON.stringify([[0, size]])) throw new Error(`${name}: ${JSON.stringify(extents)}`)
}

/** @returns what asks about pairs; what it has served, it does not serve again */
export function askAgent(client: SnapshotMetadataClient, group: string): AskPair {
  const served = new Map<string, Promise<void>>()
  return async (base, target) => {
    for (const { name, lost } of [base, target]) {
      if (lost === undefined && !served.has(name)) served.set(name, serve(client, group, name))
    }
    // (All of them together: LVM is asked once for all that is asked at one time.)
    await Promise.all([base, target].map(async ({ name }) => served.get(name)))
    return answerTo(client, { base: `${group}/${base.name}`, target: `${group}/${target.name}` })
  }
}
