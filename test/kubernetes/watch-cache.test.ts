/**
 * A cache over a real connection to an API server that does what real ones do to their watchers.
 */
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { pino } from 'pino'
import { DeltamapperError } from '../../src/errors.ts'
import { KubernetesApi } from '../../src/kubernetes/api.ts'
import { type KubernetesObject, textOf } from '../../src/kubernetes/object.ts'
import { WatchCache } from '../../src/kubernetes/watch-cache.ts'
import { eventually } from '../grpc/extent-backend.ts'
import { recordedObjects } from '../support/cluster-objects.ts'
import { FakeApiServer } from '../support/fake-api-server.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
const path = '/apis/topolvm.io/v1/logicalvolumes'
const { signal } = new AbortController()
/** Longer than any page takes here, on a machine that is busy, too. */
const PATIENCE_MS = 10_000
const volumes = recordedObjects('topolvm').filter(({ apiVersion }) => apiVersion === 'topolvm.io/v1')
const id = '6b2d1e90-3c55-4f62-a4d5-8a61c9d3b001'
/** What anybody can ask for. */
const asked = volumes.filter((object) => textOf(object, 'status', 'volumeID') !== undefined)
const monday = volumes.find((object) => textOf(object, 'status', 'volumeID') === id)!

let files = 0
async function cacheOf(t: ExecutionContext, server: FakeApiServer) {
  const log: Record<string, unknown>[] = []
  const logger = pino({}, { write: (line: string) => void log.push(JSON.parse(line) as Record<string, unknown>) })
  const api = new KubernetesApi({ kubeconfig: await server.kubeconfig(join(folder, `${files++}.json`)) })
  const cache = new WatchCache(api, {
    path,
    keys: (object) => [textOf(object, 'status', 'volumeID')].filter((each) => each !== undefined),
    fields: [
      ['status', 'volumeID'],
      ['spec', 'nodeName']
    ],
    logger
  })
  t.teardown(() => cache.close())
  return { cache, log }
}

/** A server with the recorded volumes, and a cache that has seen them. */
async function synced(t: ExecutionContext) {
  const server = await FakeApiServer.start(t, volumes)
  const { cache, log } = await cacheOf(t, server)
  t.true(await eventually(() => cache.asOf !== undefined && server.watchers === 1))
  return { server, cache, log }
}

const names = (objects: Iterable<KubernetesObject>) => [...objects].map(({ metadata }) => metadata.name).sort()
const nodeOf = (object: KubernetesObject | undefined) => textOf(object, 'spec', 'nodeName')
const onNode = (object: KubernetesObject, nodeName: string) =>
  ({ ...object, spec: { ...(object as { spec?: object }).spec, nodeName } }) as KubernetesObject

test('everything is listed, in pages, and found by its keys', async (t) => {
  const { server, cache } = await synced(t)
  t.true(asked.length < volumes.length)
  t.deepEqual(names(cache.all()), names(asked))
  t.deepEqual(names(cache.find(id)), [monday.metadata.name])
  t.is(cache.find('6b2d1e90-3c55-4f62-a4d5-8a61c9d3b005').length, 2)
  t.deepEqual(cache.find('nothing'), [])
  t.true(server.requests.filter((each) => each === `GET ${path}`).length > 1, 'there was more than one page')
  // Nothing is kept but what was asked for, and nothing of what nobody can ask for.
  const { namespace, name } = monday.metadata
  t.deepEqual<unknown, unknown>(cache.find(id)[0], {
    metadata: { ...(namespace !== undefined && { namespace }), name },
    status: { volumeID: id },
    spec: { nodeName: nodeOf(monday) }
  })
})

test('what is added, changed and deleted is known soon after', async (t) => {
  const { server, cache } = await synced(t)
  let changes = 0
  cache.onChange(() => changes++)
  server.delete(monday)
  t.true(await eventually(() => cache.find(id).length === 0))
  server.put(monday)
  t.true(await eventually(() => cache.find(id).length === 1))
  server.put(onNode(monday, 'worker-9'))
  t.true(await eventually(() => nodeOf(cache.find(id)[0]) === 'worker-9'))
  // One that gets its key later, as objects with a status do, and one whose key changes.
  const late = { ...monday, metadata: { name: 'late' } }
  server.put({ ...late, status: {} } as KubernetesObject)
  server.put({ ...late, status: { volumeID: 'late-1' } } as KubernetesObject)
  t.true(await eventually(() => cache.find('late-1').length === 1))
  server.put({ ...late, status: { volumeID: 'late-2' } } as KubernetesObject)
  t.true(await eventually(() => cache.find('late-2').length === 1))
  t.deepEqual(cache.find('late-1'), [])
  t.true(changes >= 6)
  t.is(server.requests.filter((each) => each.startsWith('WATCH')).length, 1)
})

test('a watch that ends goes on where it was, thanks to a bookmark even after a compaction', async (t) => {
  const { server, cache } = await synced(t)
  const lists = () => server.requests.filter((each) => each === `GET ${path}`).length
  const before = lists()
  server.bookmark()
  server.compact()
  // A moment for the bookmark to arrive.
  server.put(onNode(monday, 'worker-8'))
  t.true(await eventually(() => nodeOf(cache.find(id)[0]) === 'worker-8'))
  server.endWatches()
  server.put(onNode(monday, 'worker-7'))
  t.true(await eventually(() => nodeOf(cache.find(id)[0]) === 'worker-7'))
  t.is(lists(), before, 'nothing was listed again')
})

for (const how of ['as the status of the watch', 'as an event of it'] as const) {
  test(`410 Gone, ${how}: everything is listed again, and what was missed is made good`, async (t) => {
    const { server, cache } = await synced(t)
    if (how === 'as the status of the watch') {
      await server.stop()
      server.delete(monday)
      server.compact()
      await server.listen()
    } else {
      server.endWatches({ kind: 'Status', code: 410, message: 'too old resource version', reason: 'Expired' })
      server.delete(monday)
      server.compact()
    }
    t.true(await eventually(() => cache.find(id).length === 0))
    t.is(names(cache.all()).length, asked.length - 1)
    server.put(monday)
    t.true(await eventually(() => cache.find(id).length === 1), 'and it watches again')
  })
}

test('while the server is gone, what was known stays in use, and its age is said', async (t) => {
  const { server, cache, log } = await synced(t)
  await server.stop()
  t.true(await eventually(() => cache.failure !== undefined))
  t.is(cache.failure?.code, 'DM_CLUSTER_UNREACHABLE')
  t.is(cache.find(id).length, 1)
  const asOf = cache.asOf!
  t.true(asOf <= Date.now())
  const warning = log.find(({ msg }) => /no longer kept up to date/.test(String(msg)))
  t.like(warning, { path, code: 'DM_CLUSTER_UNREACHABLE', objects: asked.length })
  t.is(typeof warning?.['ageSeconds'], 'number')
  await t.throwsAsync(cache.refresh(signal, PATIENCE_MS), { instanceOf: DeltamapperError, message: /does not answer/ })
  t.is(cache.find(id).length, 1)
  t.is(cache.asOf, asOf)

  server.put(onNode(monday, 'worker-6'))
  await server.listen()
  t.true(await eventually(() => nodeOf(cache.find(id)[0]) === 'worker-6'))
  t.true(await eventually(() => cache.failure === undefined))
  t.true(cache.asOf! > asOf)
  t.truthy(log.find(({ msg }) => /up to date again/.test(String(msg))))
})

test('a server that comes later is found', async (t) => {
  const server = await FakeApiServer.start(t, volumes)
  await server.stop()
  const { cache } = await cacheOf(t, server)
  t.true(await eventually(() => cache.failure !== undefined))
  t.is(cache.asOf, undefined)
  await server.listen()
  t.true(await eventually(() => cache.find(id).length === 1))
})

test('a refresh lists what no event has told of yet, once for all who ask', async (t) => {
  const { server, cache } = await synced(t)
  const before = server.requests.filter((each) => each === `GET ${path}`).length
  await Promise.all(Array.from({ length: 20 }, () => cache.refresh(signal, PATIENCE_MS)))
  const pages = Math.ceil(volumes.length / server.pageSize)
  t.true(server.requests.filter((each) => each === `GET ${path}`).length <= before + 2 * pages)
  t.true(await eventually(() => server.watchers === 1), 'and it watches again')
  const controller = new AbortController()
  const refresh = cache.refresh(controller.signal, PATIENCE_MS)
  controller.abort(new Error('enough'))
  await t.throwsAsync(refresh, { message: 'enough' })
})

test('who asks at once shares one list, which may take as long as it takes; silence may not', async (t) => {
  const { server, cache } = await synced(t)
  const lists = () => server.requests.filter((each) => each === `GET ${path}`).length
  const before = lists()
  const pages = Math.ceil(volumes.length / server.pageSize)
  server.pageMs = 700
  // All pages together take longer than the server may be silent.
  t.true(pages * server.pageMs > 2000)
  await Promise.all(Array.from({ length: 20 }, () => cache.refresh(signal, 2000)))
  t.is(lists(), before + pages)
  server.pageMs = Infinity
  const error = await t.throwsAsync(cache.refresh(signal, 500), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_CLUSTER_UNREACHABLE')
  t.regex(error.message, /nothing came of a list of .*logicalvolumes .* for 0\.5 seconds/)
})

test('a role that lacks a permission is told, and works once it has it', async (t) => {
  const server = await FakeApiServer.start(t, volumes)
  server.forbidden.add(`GET ${path}`)
  const { cache, log } = await cacheOf(t, server)
  t.true(await eventually(() => cache.failure !== undefined))
  t.is(cache.failure?.code, 'DM_ACCESS_DENIED')
  t.truthy(log.find(({ msg }) => msg === 'cannot be listed yet'))
  server.forbidden.clear()
  t.true(await eventually(() => cache.find(id).length === 1))
})

test('watches that end as soon as they have begun are asked for ever more slowly, and that is said once', async (t) => {
  const server = await FakeApiServer.start(t, volumes)
  server.watchesAre = 'ended'
  const { cache, log } = await cacheOf(t, server)
  const begun = performance.now()
  const watches = () => server.requests.filter((each) => each.startsWith('WATCH')).length
  t.true(await eventually(() => watches() >= 5))
  // Pauses of 200, 400, 800 and 1600 ms, up to half of which is left to chance.
  t.true(performance.now() - begun > 1400)
  t.is(cache.failure?.code, 'DM_CLUSTER_UNREACHABLE')
  t.is(cache.find(id).length, 1)
  const said = (words: RegExp) => log.filter(({ msg }) => words.test(String(msg))).length
  t.is(said(/no longer kept up to date/), 1)
  server.watchesAre = 'answered'
  t.true(await eventually(() => cache.failure === undefined))
  t.is(said(/up to date again/), 1)
})

for (const how of ['unanswered', 'forgotten'] as const) {
  test(`watches that are ${how} are a server that does not answer, and what is known gets older`, async (t) => {
    t.timeout(900_000)
    const server = await FakeApiServer.start(t, volumes)
    server.watchesAre = how
    const { cache } = await cacheOf(t, server)
    t.true(await eventually(() => cache.asOf !== undefined))
    const listed = cache.asOf
    t.true(await eventually(() => cache.failure !== undefined, 120_000))
    t.is(cache.failure?.code, 'DM_CLUSTER_UNREACHABLE')
    t.is(cache.asOf, listed)
    server.watchesAre = 'answered'
    t.true(await eventually(() => cache.failure === undefined))
    t.true(await eventually(() => server.watchers === 1))
  })
}
