/**
 * Clients against the mock's scenarios. Those that make a usual mistake are shown wrong by one scenario each; ours is
 * right in all of them: it has a right backup, or says that it has none.
 */
import test, { type ExecutionContext } from 'ava'
import type { ExtentAnswer } from '../../src/devicemapper/extents.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { connect } from '../../src/grpc/client.ts'
import { resuming } from '../../src/kubernetes/resuming.ts'
import type { Tuple } from '../../src/mock/driver/history.ts'
import { type Mock, startMock } from '../../src/mock/mock.ts'
import { listScenarios } from '../../src/mock/driver/scenario.ts'
import { PlainClient } from '../grpc/plain-client.ts'
import { turns } from '../support/turns.ts'
import { type Copy, copyInto, isRight, snapshotsOf } from './backup.ts'

const inTurn = turns(4)

async function mockOf(t: ExecutionContext, scenario: string): Promise<Mock> {
  const mock = await startMock({ scenario })
  t.teardown(() => mock.stop())
  return mock
}

/** A full backup of the first snapshot and an incremental one of the second, by a client that hands over tuples. */
async function backup(
  mock: Mock,
  ask: (base: string | undefined, target: string) => Promise<readonly Tuple[]>
): Promise<boolean> {
  const [first, second] = snapshotsOf(mock)
  const copy: Copy = new Map()
  copyInto(copy, first, await ask(undefined, first.id))
  if (!isRight(copy, first)) return false
  copyInto(copy, second, await ask(first.id, second.id))
  return isRight(copy, second)
}

/** Asks as other people's clients do: proto-loader and grpc-js. */
function plainly(t: ExecutionContext, mock: Mock) {
  const client = new PlainClient(t, mock.endpoint.replace('unix://', ''))
  return async (base: string | undefined, target: string, startingOffset = 0) => {
    const starting_offset = String(startingOffset)
    const { messages, code } = await (base === undefined
      ? client.allocated({ snapshot_id: target, starting_offset })
      : client.delta({ base_snapshot_id: base, target_snapshot_id: target, starting_offset }))
    const tuples = messages.flatMap(({ block_metadata }) =>
      block_metadata.map(({ byte_offset, size_bytes }): Tuple => [Number(byte_offset), Number(size_bytes)])
    )
    return { tuples, code }
  }
}

const naive: Record<string, (ask: ReturnType<typeof plainly>) => Parameters<typeof backup>[1]> = {
  'ignores how a stream ends': (ask) => async (base, target) => (await ask(base, target)).tuples,
  'resumes behind what it wanted, not behind what it got': (ask) => async (base, target) => {
    const all: Tuple[] = []
    for (let at = 0; ;) {
      const { tuples, code } = await ask(base, target, at)
      all.push(...tuples)
      if (code === 0) return all
      at += 4 * 1024 * 1024
    }
  },
  'trusts the order': (ask) => async (base, target) => {
    const { tuples } = await ask(base, target)
    let done = 0
    return tuples.filter(([offset, size]) => {
      const isNew = offset >= done
      done = Math.max(done, offset + size)
      return isNew
    })
  }
}

for (const [mistake, scenario] of [
  ['ignores how a stream ends', 'cut-unavailable'],
  ['resumes behind what it wanted, not behind what it got', 'cut-unavailable'],
  ['trusts the order', 'unsorted']
] as const) {
  test(`a client that ${mistake} is shown wrong by ${scenario}, and by no honest driver`, async (t) => {
    for (const [name, right] of [
      [scenario, false],
      ['honest', true]
    ] as const) {
      const mock = await mockOf(t, name)
      t.is(await backup(mock, naive[mistake](plainly(t, mock))), right, name)
    }
  })
}

/** Tuples may touch: they come as the server cut them. */
async function tuplesOf({ batches }: ExtentAnswer): Promise<Tuple[]> {
  const tuples: Tuple[] = []
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) tuples.push([offsets[i], sizes[i]])
  }
  return tuples
}

/**
 * What the pieces of our own clients are good for: `connect`, which asks once, and the same resumed as
 * `deltamapper kube` resumes.
 */
function ours(t: ExecutionContext, mock: Mock, resumes: boolean): Parameters<typeof backup>[1] {
  const client = connect(mock.endpoint)
  t.teardown(() => client.close())
  return async (base, target) => {
    const ask = (startingOffset: number | bigint, signal: AbortSignal) => {
      const options = { startingOffset, signal, deadlineMs: 20_000 }
      return base === undefined
        ? client.allocated({ snapshotId: target, ...options })
        : client.delta({ baseSnapshotId: base, targetSnapshotId: target, ...options })
    }
    const { signal } = new AbortController()
    if (!resumes) return tuplesOf(await ask(0, signal))
    return tuplesOf(
      await resuming((at, _resumed, ends) => ask(at, ends), {
        startingOffset: 0,
        tries: 5,
        pauseMs: 1,
        signal,
        mayResume: ({ status }) => ['UNAVAILABLE', 'ABORTED', 'DEADLINE_EXCEEDED'].includes(status)
      })
    )
  }
}

for (const { name, kind } of listScenarios()) {
  test(`our clients have a right backup in ${name}, or say that they have none`, async (t) => {
    for (const resumes of [false, true]) {
      const mock = await mockOf(t, name)
      try {
        t.true(await inTurn(() => backup(mock, ours(t, mock, resumes))), resumes ? 'resumed' : 'asked once')
        if (!resumes) t.not(kind, 'cut', 'an answer that breaks off is no backup')
      } catch (error) {
        t.true(error instanceof DeltamapperError, String(error))
        t.true(kind !== 'honest' || name.startsWith('base-gone'), String(error))
        if (name.startsWith('base-gone'))
          t.is(
            (error as DeltamapperError).code,
            name.endsWith('not-found') ? 'DM_SNAPSHOT_NOT_FOUND' : 'DM_NOT_TRACKED'
          )
      }
    }
  })
}

test('what broke in mid-stream and may be asked again is resumed to a right backup', async (t) => {
  for (const name of [
    'cut-unavailable',
    'cut-aborted',
    'cut-deadline-exceeded',
    'cut-connection',
    'cut-before-nothing'
  ]) {
    const mock = await mockOf(t, name)
    t.true(await backup(mock, ours(t, mock, true)), name)
  }
})

test('each cut falls at least once in a backup', async (t) => {
  for (const { name } of listScenarios().filter(({ kind }) => kind === 'cut')) {
    const mock = await mockOf(t, name)
    let cuts = 0
    mock.driver.onCut = () => void cuts++
    await backup(mock, naive['ignores how a stream ends'](plainly(t, mock)))
    t.true(cuts >= 1, name)
  }
})
