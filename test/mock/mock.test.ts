/** `deltamapper mock` as a person uses it, and the driver's parts that a scenario does not change. */
import { copyFile, open, readFile, stat, writeFile } from 'node:fs/promises'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Client, credentials, status as grpcStatus } from '@grpc/grpc-js'
import test, { type ExecutionContext } from 'ava'
import { connect } from '../../src/grpc/client.ts'
import { controllerMethods } from '../../src/grpc/loaded-protos.ts'
import { allocatedBlocks, BLOCK_BYTES } from '../../src/mock/driver/history.ts'
import type { SnapshotImage } from '../../src/mock/driver/images.ts'
import { startMock } from '../../src/mock/mock.ts'
import { listScenarios } from '../../src/mock/driver/scenario.ts'
import { complaint, runCommand, startCommand } from '../cli/run-command.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)

/** One call with one answer, by a plain client. */
async function call<T>(t: ExecutionContext, endpoint: string, name: string, request: object): Promise<T> {
  const client = new Client(endpoint.replace('unix://', 'unix:'), credentials.createInsecure())
  t.teardown(() => client.close())
  const { path, requestSerialize, responseDeserialize } = controllerMethods[name]
  return new Promise((resolve, reject) =>
    client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, (error, response) =>
      error ? reject(error) : resolve(response as T)
    )
  )
}

test('the command serves, writes the data, and checks what was restored', async (t) => {
  const data = join(folder, 'data')
  const endpoint = `unix://${join(folder, 'csi.sock')}`
  const child = startCommand(['mock', '--listen', endpoint, '--data', data, '--scenario', 'fixed-length'])
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  for (;;) {
    const { value, done } = await lines.next()
    if (done || value === `listening on ${endpoint}`) break
  }
  const listed = JSON.parse(await readFile(join(data, 'snapshots.json'), 'utf8')) as SnapshotImage[]
  t.true(listed.length >= 4)
  const [first, second] = listed
  t.is(first.volume, second.volume)

  const client = connect(endpoint)
  t.teardown(() => client.close())
  for (const { id, image } of listed) {
    const { capacityBytes } = await client.allocated({ snapshotId: id })
    t.is(capacityBytes, (await stat(image)).size, 'an image is as long as the capacity')
  }
  // A full backup, and an incremental one on top of it.
  const restored = join(folder, 'restored.img')
  await writeFile(restored, '')
  for (const [answer, { id, image }] of [
    [await client.allocated({ snapshotId: first.id }), first],
    [await client.delta({ baseSnapshotId: first.id, targetSnapshotId: second.id }), second]
  ] as const) {
    await using from = await open(image)
    await using to = await open(restored, 'r+')
    await to.truncate(Number(answer.capacityBytes))
    for await (const { count, offsets, sizes } of answer.batches) {
      for (let i = 0; i < count; i++) {
        const { buffer } = await from.read(Buffer.alloc(sizes[i]), 0, sizes[i], offsets[i])
        await to.write(buffer, 0, sizes[i], offsets[i])
      }
    }
    const same = await runCommand(['mock', 'check', '--data', data, '--snapshot', id, restored])
    t.is(same.status, 0, same.stdout)
  }
  const differs = await runCommand(['mock', 'check', '--data', data, '--snapshot', first.id, restored])
  t.is(differs.status, 1)
  t.regex(differs.stdout, /bytes \d+ to \d+ differ \(\d+ bytes\)/)
  child.kill('SIGTERM')
  t.deepEqual(await once(child, 'exit'), [0, null])
  await t.throwsAsync(stat(join(folder, 'csi.sock')), { code: 'ENOENT' })
})

test('check tells of another length, of a snapshot that is not listed, and of what is missing', async (t) => {
  const data = join(folder, 'checked')
  const mock = await startMock({ data })
  await mock.stop()
  const [{ id, image }] = mock.snapshots
  const short = join(folder, 'short.img')
  await copyFile(image!, short)
  await using file = await open(short, 'r+')
  await file.truncate(1000)
  const { status, stdout } = await runCommand(['mock', 'check', '--data', data, '--snapshot', id, short])
  t.is(status, 1)
  t.regex(stdout, /it has 1000 bytes, and the snapshot 16777216/)
  const unknown = await runCommand(['mock', 'check', '--data', data, '--snapshot', 'nope', short])
  t.is(unknown.status, 1)
  t.regex(complaint(unknown), /lists no snapshot nope/)
  const incomplete = await runCommand(['mock', 'check', short])
  t.is(incomplete.status, 2)
  t.regex(complaint(incomplete), /--data and --snapshot are needed/)
})

test('--list begins each line with a name, each of which is a scenario; another one is named', async (t) => {
  const { stdout, status } = await runCommand(['mock', '--list'])
  t.is(status, 0)
  const names = stdout
    .trimEnd()
    .split('\n')
    .map((line) => line.split(' ')[0])
  t.deepEqual(
    names,
    listScenarios().map(({ name }) => name)
  )
  for (const name of [
    'honest',
    'fixed-length',
    'no-message',
    'many-messages',
    'slow',
    'unsorted',
    'overlapping',
    'past-capacity'
  ]) {
    t.true(names.includes(name), name)
  }
  t.true(names.filter((name) => name.startsWith('cut-')).length >= 11)
  const unknown = await runCommand(['mock', '--listen', `unix://${folder}/unknown.sock`, '--scenario', 'nope'])
  t.is(unknown.status, 1)
  t.regex(complaint(unknown), /there is no scenario nope/)
})

test("a scenario of one's own is a file, and says what is wrong with it", async (t) => {
  const own = join(folder, 'own.yaml')
  await writeFile(own, 'summary: mine\nkind: honest\ntuplesPerMessage: 2\n')
  const mock = await startMock({ scenario: own })
  t.teardown(() => mock.stop())
  t.is(mock.scenario.tuplesPerMessage, 2)
  await writeFile(own, 'summary: mine\nkind: honest\ntuplesPerMesage: 2\n')
  await t.throwsAsync(startMock({ scenario: own }), {
    message: /own\.yaml cannot be used: .*"tuplesPerMesage", is tuplesPerMessage meant\? \(line 3\)/
  })
})

test('a seed makes the same history again, another one another, and picks a scenario', async (t) => {
  const [one, same, other] = await Promise.all([startMock(), startMock({ seed: 1 }), startMock({ seed: 2 })])
  t.teardown(() => Promise.all([one, same, other].map((mock) => mock.stop())))
  const blocks = ({ driver }: typeof one) => driver.history.snapshots.map(allocatedBlocks)
  t.deepEqual(blocks(one), blocks(same))
  t.notDeepEqual(blocks(one), blocks(other))
  const picked = await Promise.all(Array.from({ length: 6 }, (_, seed) => startMock({ scenario: 'random', seed })))
  t.true(new Set(picked.map(({ scenario }) => scenario.name)).size > 2)
  await Promise.all(picked.map((mock) => mock.stop()))
})

test('Controller takes, lists and deletes snapshots, their data included', async (t) => {
  const data = join(folder, 'controller')
  const mock = await startMock({ data })
  t.teardown(() => mock.stop())
  const { endpoint, snapshots } = mock
  const [{ volume }] = snapshots
  interface Taken {
    snapshot: { snapshot_id: string; source_volume_id: string; size_bytes: string; ready_to_use: boolean }
  }
  const request = { source_volume_id: volume, name: 'nightly' }
  const { snapshot } = await call<Taken>(t, endpoint, 'CreateSnapshot', request)
  t.is(snapshot.source_volume_id, volume)
  t.true(snapshot.ready_to_use)
  t.deepEqual(
    (await call<Taken>(t, endpoint, 'CreateSnapshot', request)).snapshot,
    snapshot,
    'the same name, the same snapshot'
  )
  const listed = JSON.parse(await readFile(join(data, 'snapshots.json'), 'utf8')) as SnapshotImage[]
  const image = listed.find(({ id }) => id === snapshot.snapshot_id)?.image ?? ''
  t.is((await stat(image)).size, Number(snapshot.size_bytes))
  const client = connect(endpoint)
  t.teardown(() => client.close())
  const base = snapshots.filter((each) => each.volume === volume).at(-1)!.id
  const delta = await client.delta({ baseSnapshotId: base, targetSnapshotId: snapshot.snapshot_id })
  t.is(Number(delta.capacityBytes) % BLOCK_BYTES, 0)

  interface Listed {
    entries: Taken[]
    next_token: string
  }
  const ids: string[] = []
  for (let token = ''; ;) {
    const page = await call<Listed>(t, endpoint, 'ListSnapshots', {
      max_entries: 2,
      starting_token: token,
      source_volume_id: volume
    })
    ids.push(...page.entries.map((each) => each.snapshot.snapshot_id))
    if ((token = page.next_token) === '') break
  }
  t.is(ids.length, new Set(ids).size)
  t.true(ids.includes(snapshot.snapshot_id))
  for (let again = 0; again < 2; again++)
    await call(t, endpoint, 'DeleteSnapshot', { snapshot_id: snapshot.snapshot_id })
  await t.throwsAsync(stat(image), { code: 'ENOENT' })
  const gone = await t.throwsAsync(client.allocated({ snapshotId: snapshot.snapshot_id }))
  t.regex(gone.message, /NOT_FOUND/)
  const unknown = await t.throwsAsync<Error & { code: number }>(
    call(t, endpoint, 'CreateSnapshot', { ...request, source_volume_id: 'nope' })
  )
  t.is(unknown.code, grpcStatus.NOT_FOUND)
})
