import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import test from 'ava'
import { unixClient } from '../../src/grpc/unix-client.ts'
import { RawConnection } from '../support/raw-http2.ts'
import { eventually, testServer } from './extent-backend.ts'
import { allocatedRequest, PlainClient } from './plain-client.ts'

/** Each connection is a client of its own. */
const strangers = () => undefined

test('calls that are cancelled by the thousand do not end another one of the same connection', async (t) => {
  const { path, backend, log } = await testServer(t)
  const connection = await RawConnection.open(path)
  t.teardown(() => connection.socket.destroy())
  const began = performance.now()
  const innocent = connection.call(allocatedRequest('gated'))
  t.true(await eventually(() => (connection.received.get(innocent) ?? 0) > 0))
  for (let round = 0; round < 5; round++) {
    // At once, as far as the server can tell: it reads all of them before it looks at the first.
    connection.socket.write(connection.calls(300, allocatedRequest('hanging'), true))
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  t.true(await eventually(() => connection.goaways.length > 0))
  t.true(
    connection.goaways.every((code) => code === 0),
    'it is asked to make no more calls here'
  )
  const allowed = 513 + (performance.now() - began) / 10
  t.true(backend.requests.length <= allowed, `${backend.requests.length} calls were let in`)
  t.true(log.some(({ msg }) => msg === 'a client was slowed down'))

  backend.letGo()
  t.true(await eventually(() => connection.ended.has(innocent)))
  t.is(connection.ended.get(innocent), 0)
  t.true(await eventually(() => backend.open === 0))
})

test('of calls that are cancelled in the packet that brings them, hardly any begins', async (t) => {
  const { path, backend, log } = await testServer(t)
  const connection = await RawConnection.open(path)
  t.teardown(() => connection.socket.destroy())
  connection.socket.write(connection.calls(400, allocatedRequest('hanging'), true))
  t.true(await eventually(() => log.filter(({ code }) => code === 'DM_CANCELLED').length >= 20))
  t.is((await new PlainClient(t, path).allocated({ snapshot_id: 'some' })).code, 0)
  t.true(await eventually(() => backend.open === 0))
  t.true(backend.requests.length < 100, `${backend.requests.length} of them asked the backend`)
})

test('a client that was slowed down is served again, and nobody else notices', async (t) => {
  const names = new Map<number, string>()
  let connections = 0
  // Two connections of one client, then one of another.
  const { path, backend } = await testServer(t, { nameUnixClient: () => names.get(++connections) ?? 'hasty' })
  names.set(2, 'patient')
  const first = await RawConnection.open(path)
  t.teardown(() => first.socket.destroy())
  t.true(await eventually(() => connections === 1))
  const patient = new PlainClient(t, path, { 'grpc.use_local_subchannel_pool': 1 })
  const ended = patient.allocated({ snapshot_id: 'gated' })
  t.true(await eventually(() => backend.open === 1))

  for (let round = 0; first.goaways.length === 0 && round < 50; round++) {
    first.socket.write(first.calls(200, allocatedRequest('hanging'), true))
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  t.true(first.goaways.length > 0 && first.goaways.every((code) => code === 0))
  backend.letGo()
  t.is((await ended).code, 0)
  const hasty = new PlainClient(t, path, { 'grpc.use_local_subchannel_pool': 1 })
  t.is((await hasty.allocated({ snapshot_id: 'some' }, { deadline: Date.now() + 30_000 })).code, 0)
})

test('whoever opens connections and says nothing keeps nobody out of a unix socket', async (t) => {
  const { path } = await testServer(t, { nameUnixClient: strangers })
  const silent: Socket[] = []
  const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'
  let closed = 0
  for (let i = 0; i < 300; i++) {
    const socket = connect(path)
    socket.on('error', () => undefined).on('close', () => closed++)
    socket.resume()
    await once(socket, 'connect')
    // Some say half of what they should.
    if (i % 2 === 0) socket.write(PREFACE.slice(0, i % PREFACE.length))
    silent.push(socket)
  }
  t.teardown(() => silent.forEach((socket) => socket.destroy()))
  t.is((await new PlainClient(t, path).allocated({ snapshot_id: 'some' })).code, 0)
  t.true(await eventually(() => closed >= 300 - 256))
  t.true(silent[299].readyState === 'open', 'the newest stays')
})

test('of one client no more than 64 connections stay, and those with calls under way do', async (t) => {
  const { path, backend } = await testServer(t, { nameUnixClient: () => 'one' })
  const connections: RawConnection[] = []
  t.teardown(() => connections.forEach(({ socket }) => socket.destroy()))
  const busy = await RawConnection.open(path)
  connections.push(busy)
  const call = busy.call(allocatedRequest('gated'))
  t.true(await eventually(() => backend.open === 1))
  for (let i = 0; i < 100; i++) connections.push(await RawConnection.open(path))
  const open = () => connections.filter(({ socket }) => socket.readyState === 'open').length
  t.true(await eventually(() => open() <= 64))
  backend.letGo()
  t.true(await eventually(() => busy.ended.get(call) === 0))
})

test('a client on a unix socket is its process', async (t) => {
  const named: (string | undefined)[] = []
  const { path } = await testServer(t, {
    nameUnixClient: (socket) => {
      named.push(unixClient(socket))
      return 'me'
    }
  })
  t.is((await new PlainClient(t, path).allocated({ snapshot_id: 'some' })).code, 0)
  t.deepEqual(named, [`pid-${process.pid}`])
})
