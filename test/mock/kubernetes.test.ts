/**
 * `deltamapper kube` and its library against the mock's Kubernetes side, unchanged: the whole flow, in every
 * scenario.
 */
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { connectToCluster } from '../../src/kubernetes/snapshot-metadata.ts'
import type { Tuple } from '../../src/mock/driver/history.ts'
import { tuplesOf } from '../../src/mock/driver/question.ts'
import { type Mock, startMock } from '../../src/mock/mock.ts'
import { listScenarios } from '../../src/mock/driver/scenario.ts'
import { runCommand } from '../cli/run-command.ts'
import { turns } from '../support/turns.ts'
import { testFolder } from '../support/test-folder.ts'
import { type Copy, copyInto, isRight, snapshotsOf } from './backup.ts'

const folder = testFolder(test)
const inTurn = turns(4)

async function mockOf(t: ExecutionContext, scenario: string): Promise<Mock> {
  const mock = await startMock({ scenario, kubernetes: join(folder, `${scenario}-${Math.random()}`) })
  t.teardown(() => mock.stop())
  return mock
}

/** A full and an incremental backup, through the cluster. */
async function backup(t: ExecutionContext, mock: Mock): Promise<{ right: boolean; resumed: number }> {
  let resumed = 0
  const { kubeconfig, namespace } = mock.kubernetes!
  const kube = connectToCluster({ kubeconfig, pauseMs: 1, onResume: () => void resumed++ })
  t.teardown(() => kube.close())
  const [first, second] = snapshotsOf(mock)
  const copy: Copy = new Map()
  const take = async (target: typeof first, base?: typeof first) => {
    const request = { namespace, snapshotName: target.id, deadlineMs: 20_000 }
    const answer =
      base === undefined ? await kube.allocated(request) : await kube.delta({ ...request, baseSnapshotName: base.id })
    const tuples: Tuple[] = []
    for await (const { count, offsets, sizes } of answer.batches) {
      for (let i = 0; i < count; i++) tuples.push([offsets[i], sizes[i]])
    }
    copyInto(copy, target, tuples)
  }
  await take(first)
  if (!isRight(copy, first)) return { right: false, resumed }
  await take(second, first)
  return { right: isRight(copy, second), resumed }
}

for (const { name, kind } of listScenarios()) {
  test(`kube has a right backup in ${name}, or says that it has none`, async (t) => {
    const mock = await mockOf(t, name)
    try {
      t.true((await inTurn(() => backup(t, mock))).right)
    } catch (error) {
      t.true(error instanceof DeltamapperError, String(error))
      t.true(kind !== 'honest' || name.startsWith('base-gone'), String(error))
    }
  })
}

test('an expired token is renewed, a rotated authority accepted, and a name that is another snapshot by now refused', async (t) => {
  for (const name of ['token-expires', 'ca-rotated', 'cut-unavailable', 'cut-connection', 'cut-before-nothing']) {
    const mock = await mockOf(t, name)
    const { right, resumed } = await inTurn(() => backup(t, mock))
    t.true(right, name)
    t.true(resumed > 0, name)
  }
  const error = await t.throwsAsync(backup(t, await mockOf(t, 'name-reused')), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_SNAPSHOT_CHANGED')
})

test('a delta without a message has the capacity of the content; where that says none, the command leaves it out', async (t) => {
  const mock = await mockOf(t, 'no-message')
  const { kubeconfig, namespace } = mock.kubernetes!
  const [first, second] = snapshotsOf(mock)
  const delta = async (...at: string[]) => {
    const { status, stdout, stderr } = await runCommand([...at, '-o', 'json'])
    t.is(status, 0, stderr)
    return JSON.parse(stdout) as unknown
  }
  const nothing = { block_metadata_type: 'VARIABLE_LENGTH', block_metadata: [] }
  t.deepEqual(await delta('kube', 'delta', namespace, second.id, '--base', first.id, '--kubeconfig', kubeconfig), {
    ...nothing,
    volume_capacity_bytes: second.capacityBytes
  })
  t.deepEqual(await delta('delta', first.id, second.id, '--endpoint', mock.endpoint), nothing)
})

test('the command, with the kubeconfig that the mock prints', async (t) => {
  const mock = await mockOf(t, 'honest')
  const { kubeconfig, namespace } = mock.kubernetes!
  const [first, second] = snapshotsOf(mock)
  const flags = ['--base', first.id, '--kubeconfig', kubeconfig, '-o', 'json']
  const { status, stdout, stderr } = await runCommand(['kube', 'delta', namespace, second.id, ...flags])
  t.is(status, 0, stderr)
  const { block_metadata } = JSON.parse(stdout) as { block_metadata: { byte_offset: number; size_bytes: number }[] }
  const tuples = block_metadata.map(({ byte_offset, size_bytes }) => [byte_offset, size_bytes])
  t.deepEqual(
    tuples,
    tuplesOf({ base: first, target: second }, 'VARIABLE_LENGTH').map(([offset, size]) => [offset, size])
  )
  const unready = await runCommand(['kube', 'allocated', namespace, mock.unready, '--kubeconfig', kubeconfig])
  t.regex(unready.stderr, /DM_SNAPSHOT_NOT_READY/)
})

test('the command says of the sizes what the driver says', async (t) => {
  const mock = await mockOf(t, 'fixed-length')
  const { kubeconfig, namespace } = mock.kubernetes!
  const [first] = snapshotsOf(mock)
  for (const format of ['json', 'ndjson']) {
    const flags = ['--kubeconfig', kubeconfig, '-o', format]
    const { stdout, stderr } = await runCommand(['kube', 'allocated', namespace, first.id, ...flags])
    t.regex(stdout, /^{"block_metadata_type":"FIXED_LENGTH",/, stderr)
  }
})
