import test from 'ava'
import { lookAtTracked } from '../../../src/agent/era/tracked-state.ts'

type Volumes = Parameters<typeof lookAtTracked>[0]

const well = { active: true, suspended: false, problem: '', line: 'second', usage: undefined }

/** The list of tracked volumes and of their snapshots, newest last. */
function volumes(listed: readonly object[], snapshots: readonly (readonly [volume: string, line: string])[]): Volumes {
  return {
    listEra: async () => ({ volumes: listed }),
    listEraSnapshots: async () => ({
      snapshots: snapshots.map(([volume, line], i) => ({ volume, line, takenAtMs: 1000 + i }))
    })
  } as unknown as Volumes
}

test('how a tracked volume is, and how full its metadata', async (t) => {
  const usage = { currentEra: 7, metadataUsedBytes: 4096, metadataTotalBytes: 40_960, openCount: 1 }
  const states = await lookAtTracked(
    volumes(
      [
        { ...well, name: 'b', suspended: true },
        { ...well, name: 'a', problem: 'full', usage }
      ],
      []
    )
  )
  t.deepEqual(states, [
    {
      ...{ name: 'a', active: true, suspended: false, hasProblem: true, historyLost: false },
      metadata: { bytes: 40_960, usedBytes: 4096 }
    },
    { name: 'b', active: true, suspended: true, hasProblem: false, historyLost: false, metadata: undefined }
  ])
})

test('a history is lost from its end until the next snapshot, and where there is no snapshot there is none', async (t) => {
  const lost = async (...snapshots: (readonly [string, string])[]) =>
    (await lookAtTracked(volumes([{ ...well, name: 'v' }], snapshots)))[0].historyLost
  t.false(await lost())
  t.true(await lost(['v', 'first']))
  t.false(await lost(['v', 'first'], ['v', 'second']))
  t.true(await lost(['v', 'second'], ['v', 'first']))
  t.false(await lost(['v', 'second'], ['other', 'first']))
})
