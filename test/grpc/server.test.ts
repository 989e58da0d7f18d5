import { once } from 'node:events'
import { existsSync, lstatSync, readdirSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import {
  Client,
  credentials,
  loadPackageDefinition,
  status,
  type ClientDuplexStream,
  type ServiceClientConstructor,
  type ServiceError
} from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { eventually, some, temporaryFolder, testServer } from './extent-backend.ts'
import { allocatedRequest, outcome, PlainClient, rawCall } from './plain-client.ts'

/** A grace that is not waited for: who does runs out of the test's time. */
const A_DAY_MS = 24 * 3_600_000

test('the socket has mode 0600, or as configured', async (t) => {
  const { path } = await testServer(t)
  t.is(lstatSync(path).mode & 0o777, 0o600)
  const other = await testServer(t, { socketMode: 0o666, socketGroup: process.getegid!() })
  t.is(lstatSync(other.path).mode & 0o777, 0o666)
})

test('listens on all addresses, or on none', async (t) => {
  const folder = temporaryFolder(t)
  const paths = ['a.sock', 'b.sock', 'c.sock'].map((name) => join(folder, name))
  const { server } = await testServer(t, { listen: paths })
  t.deepEqual(
    server.addresses,
    paths.map((path) => `unix://${path}`)
  )
  for (const path of paths) t.is((await new PlainClient(t, path).allocated({ snapshot_id: 'some' })).code, 0)
  await server.drain(0)
  t.deepEqual(readdirSync(folder), [])

  writeFileSync(paths[2], '')
  const error = await t.throwsAsync(testServer(t, { listen: paths }), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_CONFIG_INVALID')
  t.deepEqual(readdirSync(folder), ['c.sock'])
  await t.throwsAsync(testServer(t, { listen: [] }), { message: /no address/ })
})

test('a second server on the same socket is refused, and the first goes on', async (t) => {
  const { path } = await testServer(t)
  const error = await t.throwsAsync(testServer(t, { listen: [path] }), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_SOCKET_IN_USE')
  t.is((await new PlainClient(t, path).allocated({ snapshot_id: 'some' })).code, 0)
})

test('TCP is refused, but on loopback where it is allowed', async (t) => {
  await t.throwsAsync(testServer(t, { listen: ['tcp://127.0.0.1:0'] }), { message: /mutual TLS/ })
  await t.throwsAsync(testServer(t, { listen: ['tcp://0.0.0.0:0'], allowLoopbackTcp: true }), { message: /mutual TLS/ })
  const { server } = await testServer(t, { listen: ['tcp://127.0.0.1:0'], allowLoopbackTcp: true })
  const [, port] = /^tcp:\/\/127\.0\.0\.1:(\d+)$/.exec(server.addresses[0])!
  const socket = connect(Number(port), '127.0.0.1')
  await once(socket, 'connect')
  socket.destroy()
  const error = await t.throwsAsync(testServer(t, { listen: [...server.addresses], allowLoopbackTcp: true }), {
    instanceOf: DeltamapperError
  })
  t.is(error.code, 'DM_SOCKET_IN_USE')
})

test('clients that speak something else harm no one', async (t) => {
  const { path } = await testServer(t)
  for (const bytes of ['GET / HTTP/1.1\r\n\r\n', `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n${'\xff'.repeat(200)}`, '']) {
    const socket = connect(path)
    socket.on('error', () => undefined)
    await once(socket, 'connect')
    socket.write(Buffer.from(bytes, 'latin1'))
    await new Promise((resolve) => setTimeout(resolve, 30))
    socket.destroy()
  }
  t.is((await new PlainClient(t, path).allocated({ snapshot_id: 'some' })).code, 0)
})

const services = ['', 'csi.v1.SnapshotMetadata', 'csi.v1.Identity']

test('health follows readiness, service by service', async (t) => {
  let ready = false
  const { path } = await testServer(t, { isReady: async () => ready })
  const client = new PlainClient(t, path)
  for (const service of services) {
    t.deepEqual<object, object>(await client.unary('Health', 'check', { service }), { status: 'NOT_SERVING' })
  }
  const watch = client.stream<{ status: string }>('Health', 'watch', { service: 'csi.v1.SnapshotMetadata' })
  watch.on('error', () => undefined)
  const seen: string[] = []
  watch.on('data', (message: { status: string }) => seen.push(message.status))
  await eventually(() => seen.length === 1)
  ready = true
  t.true(await eventually(() => seen.length === 2))
  t.deepEqual(seen, ['NOT_SERVING', 'SERVING'])
  for (const service of services) {
    t.deepEqual<object, object>(await client.unary('Health', 'check', { service }), { status: 'SERVING' })
  }
  const error = await t.throwsAsync<ServiceError>(client.unary('Health', 'check', { service: 'csi.v1.Node' }))
  t.is(error.code, status.NOT_FOUND)
  watch.cancel()
})

interface Reflection extends Client {
  ServerReflectionInfo(): ClientDuplexStream<
    object,
    {
      list_services_response?: { service: { name: string }[] }
      file_descriptor_response?: { file_descriptor_proto: Buffer[] }
      error_response?: object
    }
  >
}

for (const version of ['v1', 'v1alpha'] as const) {
  test(`reflection ${version} lists the services and describes them`, async (t) => {
    const { path } = await testServer(t)
    const directory = `${import.meta.dirname}/../../node_modules/@grpc/reflection/build/proto`
    const loaded = loadPackageDefinition(
      loadSync(`grpc/reflection/${version}/reflection.proto`, { includeDirs: [directory], keepCase: true })
    ) as unknown as { grpc: { reflection: Record<string, { ServerReflection: ServiceClientConstructor }> } }
    const constructor = loaded.grpc.reflection[version].ServerReflection
    const client = new constructor(`unix:${path}`, credentials.createInsecure()) as unknown as Reflection
    t.teardown(() => client.close())
    const stream = client.ServerReflectionInfo()
    const answers: Awaited<ReturnType<typeof stream.read>>[] = []
    stream.on('data', (answer) => answers.push(answer))
    stream.write({ list_services: '*' })
    stream.write({ file_containing_symbol: 'csi.v1.SnapshotMetadata' })
    stream.write({ file_containing_symbol: 'csi.v1.Identity.Probe' })
    stream.write({ file_containing_symbol: 'grpc.health.v1.Health' })
    stream.end()
    await once(stream, 'end')
    const [list, ...files] = answers as {
      list_services_response?: { service: { name: string }[] }
      file_descriptor_response?: { file_descriptor_proto: Buffer[] }
    }[]
    const names = list.list_services_response!.service.map(({ name }) => name)
    for (const name of ['csi.v1.SnapshotMetadata', 'csi.v1.Identity', 'grpc.health.v1.Health']) {
      t.true(names.includes(name), names.join(' '))
    }
    t.is(files.length, 3)
    for (const { file_descriptor_response: response } of files) t.true(response!.file_descriptor_proto.length > 0)
    // Probe's answer needs the file with BoolValue.
    t.true(Buffer.concat(files[1].file_descriptor_response!.file_descriptor_proto).includes('BoolValue'))
  })
}

test('a drain removes the socket at once, says NOT_SERVING, refuses new streams and lets running ones finish', async (t) => {
  const { server, path, backend } = await testServer(t)
  const client = new PlainClient(t, path)
  await client.unary('Identity', 'Probe')
  const watch = client.stream<{ status: string }>('Health', 'watch', { service: '' })
  watch.on('error', () => undefined)
  const health: string[] = []
  watch.on('data', (message: { status: string }) => health.push(message.status))
  const running = outcome(client.stream('SnapshotMetadata', 'GetMetadataAllocated', { snapshot_id: 'gated' }))
  await eventually(() => health.length === 1)

  const drained = server.drain(A_DAY_MS)
  t.false(existsSync(path))
  t.is(server.drain(A_DAY_MS), drained, 'a second drain is the first')
  t.true(await eventually(() => health.length === 2))
  t.deepEqual(health, ['SERVING', 'NOT_SERVING'])
  const late = await client.allocated({ snapshot_id: 'some' })
  t.is(late.code, status.UNAVAILABLE)
  t.regex(late.details, /^DM_SHUTTING_DOWN: /)
  t.deepEqual<object, object>(await client.unary('Identity', 'Probe'), { ready: { value: false } })

  backend.letGo()
  const { code, messages } = await running
  t.is(code, status.OK)
  t.is(messages.flatMap(({ block_metadata: list }) => list).length, some.length)
  await drained
})

test('a successor may listen while the predecessor drains', async (t) => {
  const { server, path, backend } = await testServer(t)
  const old = new PlainClient(t, path)
  const running = outcome(old.stream('SnapshotMetadata', 'GetMetadataAllocated', { snapshot_id: 'gated' }))
  await old.unary('Identity', 'Probe')
  const drained = server.drain(A_DAY_MS)
  await testServer(t, { listen: [path] })
  t.is(
    (await new PlainClient(t, path, { 'grpc.use_local_subchannel_pool': 1 }).allocated({ snapshot_id: 'some' })).code,
    0
  )
  backend.letGo()
  t.is((await running).code, status.OK)
  await drained
  t.true(existsSync(path), 'the socket is the successor’s')
})

test('what outlasts the grace ends with UNAVAILABLE', async (t) => {
  const { server, path, backend, log } = await testServer(t)
  const client = new PlainClient(t, path)
  const endings = ['endless', 'hanging'].map((id) =>
    outcome(client.stream('SnapshotMetadata', 'GetMetadataAllocated', { snapshot_id: id }))
  )
  await eventually(() => backend.open === 2)
  const begin = performance.now()
  await server.drain(200)
  const elapsed = performance.now() - begin
  t.true(elapsed >= 195, `${elapsed} ms`)
  for (const { code, details } of await Promise.all(endings)) {
    t.is(code, status.UNAVAILABLE)
    t.regex(details, /^DM_SHUTTING_DOWN: the server is stopping; /)
  }
  t.is(backend.open, 0)
  t.is(log.filter(({ code }) => code === 'DM_SHUTTING_DOWN').length, 2)
})

test('neither a client that does not read nor a backend that does not listen holds up the end', async (t) => {
  const { server, path, backend } = await testServer(t)
  const { closed } = rawCall(t, path, { body: allocatedRequest('endless') })
  const stubborn = outcome(
    new PlainClient(t, path).stream('SnapshotMetadata', 'GetMetadataAllocated', { snapshot_id: 'stubborn' })
  )
  await eventually(() => backend.open === 2)
  await server.drain(0)
  t.is((await stubborn).code, status.UNAVAILABLE)
  await closed
  t.pass()
})

test('an idle server drains at once', async (t) => {
  const { server, path } = await testServer(t)
  await new PlainClient(t, path).unary('Identity', 'Probe')
  await server.drain(A_DAY_MS)
  t.pass()
})
