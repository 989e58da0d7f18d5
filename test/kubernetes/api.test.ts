/**
 * Requests to an API server, and what goes wrong with them.
 */
import { createServer } from 'node:http'
import { join } from 'node:path'
import { readFile, writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import test, { type ExecutionContext } from 'ava'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import { KubernetesApi, TooOld } from '../../src/kubernetes/api.ts'
import type { KubernetesObject } from '../../src/kubernetes/object.ts'
import { recordedObjects } from '../support/cluster-objects.ts'
import { FakeApiServer } from '../support/fake-api-server.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
const path = '/apis/topolvm.io/v1/logicalvolumes'
const volumes = recordedObjects('topolvm')
const ignore = () => undefined
let files = 0
const file = () => join(folder, `${files++}.json`)

async function connected(t: ExecutionContext) {
  const server = await FakeApiServer.start(t, volumes)
  return { server, api: new KubernetesApi({ kubeconfig: await server.kubeconfig(file()) }) }
}

async function fails(t: ExecutionContext, promise: Promise<unknown>, code: ErrorCode, words: RegExp) {
  const error = await t.throwsAsync(promise, { instanceOf: DeltamapperError, message: words })
  t.is(error.code, code)
  t.false(error.line.includes('a-token-of-the-cluster'))
}

test('one object, none, and all of them', async (t) => {
  const { server, api } = await connected(t)
  const { name } = volumes[0].metadata
  t.is((await api.get(`${path}/${name}`))?.metadata.name, name)
  t.is(await api.get(`${path}/nothing`), undefined)
  const items: KubernetesObject[] = []
  const resourceVersion = await api.list(path, {}, (page) => items.push(...page))
  t.deepEqual(
    items.map(({ metadata }) => metadata.name),
    volumes.filter(({ apiVersion }) => apiVersion === 'topolvm.io/v1').map(({ metadata }) => metadata.name)
  )
  t.regex(resourceVersion, /^\d+$/)
  t.is(api.server, server.address)
})

test('what the server refuses has a code of ours', async (t) => {
  const { server, api } = await connected(t)
  server.forbidden.add(`GET ${path}`)
  await fails(
    t,
    api.list(path, {}, ignore),
    'DM_ACCESS_DENIED',
    /does not let us list .*logicalvolumes: somebody cannot/
  )
  await fails(t, api.list('/apis/example.org/v1/things', {}, ignore), 'DM_CLUSTER_SETUP', /has no \/apis\/example\.org/)
  await fails(t, api.create('/api/v1/nothing', {}), 'DM_CLUSTER_SETUP', /has no/)
  const stranger = new KubernetesApi({ kubeconfig: await withToken(server, 'wrong') })
  await fails(t, stranger.get(path), 'DM_ACCESS_DENIED', /Unauthorized/)
  const { signal } = new AbortController()
  server.forbidden.clear()
  server.compact()
  await t.throwsAsync(api.watch(path, {}, '1', ignore, signal), { instanceOf: TooOld })
  await server.stop()
  await fails(t, api.get(path), 'DM_CLUSTER_UNREACHABLE', /does not answer \(.*ECONNREFUSED/)
  await fails(t, api.watch(path, {}, '1', ignore, signal), 'DM_CLUSTER_UNREACHABLE', /ECONNREFUSED/)
})

async function withToken(server: FakeApiServer, token: string): Promise<string> {
  const kubeconfig = file()
  await server.kubeconfig(kubeconfig)
  await writeFile(kubeconfig, (await readFile(kubeconfig, 'utf8')).replace(server.token, token))
  return kubeconfig
}

test('what a watch’s reader throws ends the watch, and so does the signal', async (t) => {
  const { server, api } = await connected(t)
  const failing = () => {
    throw new DeltamapperError('DM_INTERNAL', 'enough', 'stop')
  }
  const { signal } = new AbortController()
  await fails(t, api.watch(path, {}, '100', failing, signal), 'DM_INTERNAL', /enough/)
  const controller = new AbortController()
  const watching = api.watch(path, {}, '100', () => controller.abort(new Error('the end')), controller.signal)
  await t.throwsAsync(watching, { message: 'the end' })
  t.true(server.watchers <= 2)
})

test('a proxy that answers in its place is not taken for it', async (t) => {
  const proxy = createServer((_request, response) => response.end('<html>Please log in</html>'))
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve))
  t.teardown(() => proxy.close())
  const { server } = await connected(t)
  const kubeconfig = await server.kubeconfig(file())
  const config = (await readFile(kubeconfig, 'utf8')).replace(
    /127\.0\.0\.1:\d+/,
    `127.0.0.1:${(proxy.address() as AddressInfo).port}`
  )
  await writeFile(kubeconfig, config)
  await fails(
    t,
    new KubernetesApi({ kubeconfig }).list(path, {}, ignore),
    'DM_CLUSTER_UNREACHABLE',
    /does not speak it/
  )
})

test('a server that is asked over plain HTTP, or is no address, is refused before anything is sent', async (t) => {
  const { server } = await connected(t)
  const kubeconfig = file()
  const configured = JSON.parse(await readFile(await server.kubeconfig(kubeconfig), 'utf8')) as {
    clusters: { cluster: object }[]
  }
  for (const [address, words] of [
    [server.address, /http:\/\/127\.0\.0\.1:\d+ would be asked over plain HTTP/],
    ['localhost:6443', /no https:\/\/ address/],
    ['somewhere', /no https:\/\/ address/]
  ] as const) {
    configured.clusters[0].cluster = { server: address }
    await writeFile(kubeconfig, JSON.stringify(configured))
    const error = t.throws(() => new KubernetesApi({ kubeconfig }), { instanceOf: DeltamapperError, message: words })
    t.is(error?.code, 'DM_CONFIG_INVALID')
  }
  t.deepEqual(server.requests, [])
})

test('a file that is no kubeconfig, and a context that is none', async (t) => {
  const { server } = await connected(t)
  const kubeconfig = await server.kubeconfig(file())
  const code = (options: object) => t.throws(() => new KubernetesApi(options), { instanceOf: DeltamapperError })?.code
  t.is(code({ kubeconfig: '/nowhere' }), 'DM_CONFIG_INVALID')
  t.is(code({ kubeconfig, context: 'other' }), 'DM_CONFIG_INVALID')
  t.notThrows(() => new KubernetesApi({ kubeconfig, context: 'fake' }))
  const broken = file()
  await writeFile(broken, 'users:\n  - name: x\n    user:\n      token: hunter2\n     password: hunter2\n')
  const error = t.throws(() => new KubernetesApi({ kubeconfig: broken }), { instanceOf: DeltamapperError })
  t.regex(error.message, /cannot be used: .* is no YAML \(line \d+, column \d+\)/)
  t.false(`${error.stack} ${JSON.stringify(error)} ${String(error.cause)}`.includes('hunter2'))
})
