/** Snapshots that the agent takes: in pools of its own, and of tracked volumes. Their names tell their chain. */
import { DeltamapperError } from '../errors.ts'
import type { AdminClient } from '../grpc/admin-client.ts'
import { parseHandle } from '../handle.ts'
import type { Chain } from './chain.ts'
import type { SnapshotMaker } from './live-snapshots.ts'
import { markOf } from './snapshot-names.ts'

/** @param volume POOL/VOLUME */
export function ownedSnapshots(volume: string, agent: AdminClient): SnapshotMaker {
  const { source: pool, name: origin } = parseHandle(volume)
  const [mappedPool, mappedName] = [pool, origin].map((each) => each.replaceAll('-', '--'))
  return {
    needsBase: true,
    device: `/dev/mapper/${mappedPool}-${mappedName}`,
    async take(_, name) {
      await agent.createSnapshot({ pool, origin, name })
      await agent.activateVolume({ pool, name, writable: false })
      return `${pool}/${name}`
    },
    async marked(chain) {
      const { snapshots } = await agent.listSnapshots({ pool })
      const mark = markOf(chain, origin)
      const ours = snapshots.filter(({ name }) => name.startsWith(mark))
      return ours.map(({ name }) => `${pool}/${name}`)
    },
    async remove(_, handle) {
      const { name } = parseHandle(handle)
      await agent.deactivateVolume({ pool, name }).catch(unlessGone)
      await agent.deleteSnapshot({ pool, name }).catch(unlessGone)
    }
  }
}

/** @param volume the tracked volume: what was written between two snapshots stays known when they are removed */
export function trackedSnapshots(volume: string, agent: AdminClient): SnapshotMaker {
  return {
    needsBase: false,
    device: `/dev/mapper/${volume}`,
    async take(_, name) {
      await agent.createEraSnapshot({ volume, name, deadlineMs: 0 })
      return `${volume}/${name}`
    },
    async marked(chain: Chain) {
      const { snapshots } = await agent.listEraSnapshots({ volume })
      const mark = markOf(chain, volume)
      const there = snapshots.filter(({ name, removedAtMs }) => name.startsWith(mark) && removedAtMs === undefined)
      return there.map(({ name }) => `${volume}/${name}`)
    },
    async remove(_, handle) {
      const { name } = parseHandle(handle)
      await agent.deleteSnapshot({ pool: volume, name }).catch(unlessGone)
    }
  }
}

function unlessGone(error: unknown): void {
  if (!(error instanceof DeltamapperError) || error.status !== 'NOT_FOUND') throw error
}
