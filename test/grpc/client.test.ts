import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { Server, ServerCredentials, status, type ServerWritableStream, type ServiceDefinition } from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import test, { type ExecutionContext } from 'ava'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import type { ExtentAnswer } from '../../src/devicemapper/extents.ts'
import type { CallContext } from '../../src/grpc/call-context.ts'
import { connect, type ConnectOptions } from '../../src/grpc/client.ts'
import type { AllocatedRequest } from '../../src/grpc/snapshot-metadata-methods.ts'
import { capacityBytes, eventually, some, temporaryFolder, testServer, type Extent } from './extent-backend.ts'
import { reachableHere } from '../support/reachable-memory.ts'

function client(t: ExecutionContext, address: string, options?: ConnectOptions) {
  const made = connect(address, options)
  t.teardown(() => made.close())
  return made
}

async function extentsOf({ batches }: ExtentAnswer): Promise<Extent[]> {
  const extents: Extent[] = []
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) extents.push([offsets[i], sizes[i]])
  }
  return extents
}

/** Reads on and on, as extentsOf would, but keeps nothing. */
async function readOn({ batches }: ExtentAnswer): Promise<void> {
  for await (const { count } of batches) if (count < 0) break
}

async function fails(t: ExecutionContext, promise: Promise<unknown>, code: ErrorCode, message?: RegExp) {
  const error = await t.throwsAsync(promise, { instanceOf: DeltamapperError, ...(message && { message }) })
  t.is(error?.code, code, error?.line)
  return error
}

test('allocated and delta bring capacity and extents', async (t) => {
  const { address, backend } = await testServer(t)
  const agent = client(t, address)
  const allocated = await agent.allocated({ snapshotId: 'some' })
  t.is(allocated.capacityBytes, capacityBytes)
  t.deepEqual(await extentsOf(allocated), some)
  const delta = await agent.delta({
    baseSnapshotId: 'empty',
    targetSnapshotId: 'some',
    startingOffset: 10 * 131072,
    maxResults: 7
  })
  t.deepEqual(await extentsOf(delta), some.slice(10))
  t.deepEqual<object | undefined, object>(backend.requests.at(-1), {
    baseSnapshotId: 'empty',
    targetSnapshotId: 'some',
    startingOffset: 1310720n,
    maxResults: 7
  })
})

test('who has the data of a device is answered about that device, or not at all', async (t) => {
  const { address, backend } = await testServer(t)
  const agent = client(t, address)
  const device = 'thin:253:2:7'
  // A server that does not know what is meant.
  for (const snapshotId of ['some', 'silent']) {
    await fails(t, agent.allocated({ snapshotId, device }), 'DM_ANSWER_INVALID', /about the device/)
  }
  await fails(t, agent.delta({ baseSnapshotId: 'empty', targetSnapshotId: 'some', device }), 'DM_ANSWER_INVALID')
  const answer = backend.allocated.bind(backend)
  const asked: unknown[] = []
  backend.allocated = async (request: AllocatedRequest, signal: AbortSignal, call?: CallContext) => {
    asked.push(call?.device)
    return { ...(await answer(request, signal)), device }
  }
  t.deepEqual(await extentsOf(await agent.allocated({ snapshotId: 'some', device })), some)
  await fails(t, agent.allocated({ snapshotId: 'some', device: 'thin:253:2:8' }), 'DM_ANSWER_INVALID')
  t.deepEqual(asked, [device, 'thin:253:2:8'])
})

test('an empty answer has a capacity and no batch', async (t) => {
  const { address } = await testServer(t)
  const answer = await client(t, address).allocated({ snapshotId: 'empty' })
  t.is(answer.capacityBytes, capacityBytes)
  t.deepEqual(await extentsOf(answer), [])
})

test("an error of the server's keeps its code, words and remedy", async (t) => {
  const { address } = await testServer(t)
  const agent = client(t, address)
  const notFound = await fails(
    t,
    agent.allocated({ snapshotId: 'nobody' }),
    'DM_SNAPSHOT_NOT_FOUND',
    /no snapshot nobody/
  )
  t.is(notFound?.remedy, 'list what there is')
  t.is(notFound?.status, 'NOT_FOUND')
  await fails(t, agent.allocated({ snapshotId: '' }), 'DM_ARGUMENT_MISSING')
  await fails(t, agent.allocated({ snapshotId: 'some', startingOffset: -1 }), 'DM_OFFSET_OUT_OF_RANGE')
  await fails(t, agent.allocated({ snapshotId: 'some', startingOffset: 2n ** 63n - 1n }), 'DM_OFFSET_OUT_OF_RANGE')
  await fails(t, agent.allocated({ snapshotId: 'some', maxResults: -1 }), 'DM_ARGUMENT_INVALID', /max_results is -1/)
  t.deepEqual(await extentsOf(await agent.allocated({ snapshotId: 'some' })), some)
})

test('numbers that the wire cannot carry are refused before anything is sent', async (t) => {
  const { address, backend } = await testServer(t)
  const agent = client(t, address)
  for (const startingOffset of [0.5, NaN, 2 ** 53, 2n ** 63n]) {
    await fails(t, agent.allocated({ snapshotId: 'some', startingOffset }), 'DM_ARGUMENT_INVALID', /starting offset/)
  }
  for (const maxResults of [0.5, NaN, 2 ** 31]) {
    await fails(t, agent.allocated({ snapshotId: 'some', maxResults }), 'DM_ARGUMENT_INVALID', /number of results/)
  }
  t.is(backend.requests.length, 0)
})

test('an error in the middle comes after what came before it', async (t) => {
  const { address } = await testServer(t)
  const answer = await client(t, address).allocated({ snapshotId: 'damaged' })
  const received: number[] = []
  const error = await t.throwsAsync(
    async () => {
      for await (const { count } of answer.batches) received.push(count)
    },
    { instanceOf: DeltamapperError }
  )
  t.deepEqual(received, [100, 100, 100])
  t.is(error?.line, 'DM_METADATA_DAMAGED: block 7 is damaged; repair it')
})

test('an answer can be read once', async (t) => {
  const { address } = await testServer(t)
  const answer = await client(t, address).allocated({ snapshotId: 'some' })
  await extentsOf(answer)
  await t.throwsAsync(extentsOf(answer), { instanceOf: TypeError })
})

test.serial('leaving the loop early ends the walk', async (t) => {
  const { address, backend } = await testServer(t)
  const agent = client(t, address)
  const answer = await agent.allocated({ snapshotId: 'endless' })
  let extents = 0
  for await (const { count } of answer.batches) if ((extents += count) > 3 * 8192) break
  t.true(await eventually(() => backend.open === 0))
  // The connection serves the next call.
  t.deepEqual(await extentsOf(await agent.allocated({ snapshotId: 'some' })), some)
})

test.serial('a slow reader makes the server wait', async (t) => {
  const { address, backend } = await testServer(t)
  const answer = await client(t, address).allocated({ snapshotId: 'endless' })
  // It goes on until everything between the two is full, and then stops.
  let asked: number
  do {
    asked = backend.asked
    await new Promise((resolve) => setTimeout(resolve, 500))
  } while (backend.asked !== asked && asked <= 1000)
  // 16 messages in grpc-js, 1 MiB of about 100 KiB each on the way, and a few at the server.
  t.true(asked <= 40, `${asked} messages were asked for`)
  let extents = 0
  for await (const { count } of answer.batches) if ((extents += count) >= 100 * 8192) break
  t.true(backend.asked >= 100)
})

test.serial('memory does not grow with the length of an answer', async (t) => {
  const { address } = await testServer(t)
  const answer = await client(t, address).allocated({ snapshotId: 'endless' })
  let extents = 0
  let before = 0
  for await (const { count } of answer.batches) {
    extents += count
    if (before === 0 && extents > 1e6) before = reachableHere()
    if (extents > 8e6) break
  }
  const grown = reachableHere() - before
  t.true(grown < 2 ** 25, `${grown} bytes more`)
})

test('an answer that is left ends its call, also before anything of it was taken', async (t) => {
  const { address, backend } = await testServer(t)
  const agent = client(t, address)
  for (const taken of [0, 1]) {
    const { batches } = await agent.allocated({ snapshotId: 'endless' })
    const reader = batches[Symbol.asyncIterator]()
    for (let i = 0; i < taken; i++) await reader.next()
    t.is(backend.open, 1)
    await reader.return?.()
    t.true(await eventually(() => backend.open === 0), `${taken} taken`)
    t.true((await reader.next()).done)
  }
})

test('a signal ends a call at any time', async (t) => {
  const { address, backend } = await testServer(t)
  const agent = client(t, address)
  await fails(t, agent.allocated({ snapshotId: 'some', signal: AbortSignal.abort() }), 'DM_CANCELLED')
  t.is(backend.requests.length, 0)

  const waiting = new AbortController()
  const hanging = agent.allocated({ snapshotId: 'hanging', signal: waiting.signal })
  await eventually(() => backend.open === 1)
  waiting.abort()
  await fails(t, hanging, 'DM_CANCELLED')
  t.true(await eventually(() => backend.open === 0))

  const reading = new AbortController()
  const answer = await agent.allocated({ snapshotId: 'endless', signal: reading.signal })
  let extents = 0
  const read = async () => {
    for await (const { count } of answer.batches) if ((extents += count) === 5 * 8192) reading.abort()
  }
  await fails(t, read(), 'DM_CANCELLED')
  t.is(extents, 5 * 8192)
  t.true(await eventually(() => backend.open === 0))

  const unread = new AbortController()
  const left = await agent.allocated({ snapshotId: 'endless', signal: unread.signal })
  unread.abort(new DeltamapperError('DM_SHUTTING_DOWN', 'enough', 'go home'))
  t.true(await eventually(() => backend.open === 0))
  await fails(t, readOn(left), 'DM_SHUTTING_DOWN')
})

test('a deadline ends a call', async (t) => {
  const { address, backend } = await testServer(t)
  const agent = client(t, address)
  // (Nothing else ends it.)
  await fails(t, agent.allocated({ snapshotId: 'hanging', deadlineMs: 150 }), 'DM_DEADLINE_EXCEEDED')
  const endless = agent.allocated({ snapshotId: 'endless', deadlineMs: 300 })
  await fails(t, endless.then(readOn), 'DM_DEADLINE_EXCEEDED')
  t.true(await eventually(() => backend.open === 0))
})

test('where nothing answers, a call says so', async (t) => {
  const folder = temporaryFolder(t)
  writeFileSync(join(folder, 'file'), '')
  for (const address of [`unix://${folder}/none.sock`, `unix://${folder}/file`, 'tcp://127.0.0.1:1', 'tcp://[::1]:1']) {
    const error = await fails(
      t,
      client(t, address).allocated({ snapshotId: 'some' }),
      'DM_UNREACHABLE',
      /does not answer/
    )
    t.true(error?.message.includes(address))
    t.regex(
      error?.remedy ?? '',
      address.startsWith('unix:') ? /deltamapper agent --listen unix:/ : /whether an agent runs there/
    )
    t.is(error?.status, 'UNAVAILABLE')
  }
  t.throws(() => connect('csi.sock'), { instanceOf: DeltamapperError, message: /no address/ })
})

test('a server that closes the connection, or speaks something else, is an error', async (t) => {
  const folder = temporaryFolder(t)
  const greetings: [string, (socket: Socket) => void][] = [
    ['closes', (socket) => socket.destroy()],
    ['http1', (socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n')],
    ['noise', (socket) => socket.end(Buffer.alloc(100, 0xaa))]
  ]
  for (const [name, greet] of greetings) {
    const path = join(folder, `${name}.sock`)
    const server = createServer((socket) => greet(socket.on('error', () => undefined)))
    server.listen(path)
    await once(server, 'listening')
    t.teardown(() => server.close())
    await fails(t, client(t, path).allocated({ snapshotId: 'some', deadlineMs: 30_000 }), 'DM_UNREACHABLE')
  }
})

test('an agent that has been restarted is found again', async (t) => {
  const first = await testServer(t)
  const agent = client(t, first.address)
  t.deepEqual(await extentsOf(await agent.allocated({ snapshotId: 'some' })), some)
  await first.server.drain(0)
  await fails(t, agent.allocated({ snapshotId: 'some' }), 'DM_UNREACHABLE')
  await testServer(t, { listen: [first.address] })
  let answer: Extent[] | undefined
  for (const end = Date.now() + 300_000; answer === undefined && Date.now() < end;) {
    answer = await agent.allocated({ snapshotId: 'some' }).then(extentsOf, () => undefined)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  t.deepEqual(answer, some)
})

test('an agent that goes away in the middle is an error', async (t) => {
  const { server, address } = await testServer(t)
  const answer = await client(t, address).allocated({ snapshotId: 'endless' })
  const reading = readOn(answer)
  await server.drain(0)
  await fails(t, reading, 'DM_SHUTTING_DOWN')
})

test('closing the client ends its calls', async (t) => {
  const { address, backend } = await testServer(t)
  const agent = client(t, address)
  const answer = await agent.allocated({ snapshotId: 'endless' })
  const reading = readOn(answer)
  agent.close()
  await fails(t, reading, 'DM_CANCELLED', /client was closed/)
  await fails(t, agent.allocated({ snapshotId: 'some' }), 'DM_CANCELLED', /client was closed/)
  t.true(await eventually(() => backend.open === 0))
})

// A server of another make: grpc-js and proto-loader alone, answering with whatever the test wants.
const proto = loadSync(`${import.meta.dirname}/../../src/grpc/protos/csi/v1/csi.proto`, {
  keepCase: true,
  longs: String
})

interface Message {
  block_metadata_type?: string
  volume_capacity_bytes?: number | string
  block_metadata?: { byte_offset?: number | string; size_bytes?: number | string }[]
}

async function otherServer(t: ExecutionContext, answer: (call: ServerWritableStream<object, Message>) => void) {
  const path = join(temporaryFolder(t), 'other.sock')
  const server = new Server()
  server.addService(proto['csi.v1.SnapshotMetadata'] as ServiceDefinition, {
    GetMetadataAllocated: answer,
    GetMetadataDelta: answer
  })
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(`unix:${path}`, ServerCredentials.createInsecure(), (error) => (error ? reject(error) : resolve()))
  })
  t.teardown(() => server.forceShutdown())
  return path
}

const head = { block_metadata_type: 'VARIABLE_LENGTH', volume_capacity_bytes: 1000 }
const fixed = { block_metadata_type: 'FIXED_LENGTH', volume_capacity_bytes: 1000 }
const extents = (...list: [number | string, number | string][]) => ({
  block_metadata: list.map(([offset, size]) => ({ byte_offset: offset, size_bytes: size }))
})

test('answers of other servers are understood', async (t) => {
  const path = await otherServer(t, (call) => {
    call.write({ ...fixed, ...extents([0, 300], [300, 300]) })
    call.write({ ...fixed })
    call.write({ ...fixed, ...extents([900, 300]) })
    call.end()
  })
  const answer = await client(t, path).delta({ baseSnapshotId: 'a', targetSnapshotId: 'b' })
  t.is(answer.capacityBytes, 1000)
  t.is(answer.blockMetadataType, 'FIXED_LENGTH')
  t.deepEqual(await extentsOf(answer), [
    [0, 300],
    [300, 300],
    [900, 100]
  ])
})

test('OK without a message is an answer that found nothing, of an unknown capacity; any other end is none', async (t) => {
  const path = await otherServer(t, (call) => call.end())
  const asked = { baseSnapshotId: 'a', targetSnapshotId: 'b' }
  const answer = await client(t, path).delta(asked)
  t.is(answer.capacityBytes, undefined)
  t.deepEqual(await extentsOf(answer), [])
  const refusing = await otherServer(t, (call) => call.emit('error', { code: status.INTERNAL, details: 'no backend' }))
  await t.throwsAsync(client(t, refusing).delta(asked), { instanceOf: DeltamapperError })
})

const broken: [string, Message[], RegExp, { startingOffset?: number; maxResults?: number }?][] = [
  ['no type', [{ volume_capacity_bytes: 1000 }], /block_metadata_type is 0/],
  [
    'an overlap across messages',
    [
      { ...head, ...extents([0, 10]) },
      { ...head, ...extents([5, 10]) }
    ],
    /begins before 10/
  ],
  ['a capacity that changes', [head, { ...head, volume_capacity_bytes: 999 }], /capacity_bytes changes/],
  ['an empty extent', [{ ...head, ...extents([0, 0]) }], /is empty/],
  ['a negative offset', [{ ...head, ...extents([-1, 5]) }], /below 0/],
  ['a size beyond 2^53', [{ ...head, ...extents([0, '9007199254740992']) }], /beyond 2\^53/],
  ['more than asked for', [{ ...head, ...extents([0, 1], [2, 1]) }], /max_results/, { maxResults: 1 }],
  ['what lies before the offset', [{ ...head, ...extents([0, 10]) }], /starting offset/, { startingOffset: 10 }]
]

for (const [name, messages, reason, asked] of broken) {
  test(`a server that sends ${name} is not believed`, async (t) => {
    let cancelled = false
    const path = await otherServer(t, (call) => {
      call.on('cancelled', () => (cancelled = true))
      for (const message of messages) call.write(message)
    })
    const agent = client(t, path)
    await fails(t, agent.allocated({ snapshotId: 'a', ...asked }).then(extentsOf), 'DM_ANSWER_INVALID', reason)
    t.true(await eventually(() => cancelled), 'the call is ended')
  })
}

test("other servers' errors keep status and words", async (t) => {
  const path = await otherServer(t, (call) =>
    call.emit('error', { code: status.FAILED_PRECONDITION, details: 'Changed block tracking is not enabled' })
  )
  const error = await fails(
    t,
    client(t, path).allocated({ snapshotId: 'a' }),
    'DM_NOT_TRACKED',
    /tracking is not enabled/
  )
  t.is(error?.status, 'FAILED_PRECONDITION')
})

test('a message larger than the limit is refused', async (t) => {
  const path = await otherServer(t, (call) => {
    call.write({ ...head, ...extents(...Array.from({ length: 1000 }, (_, i) => [i, 1] as [number, number])) })
    call.end()
  })
  const small = client(t, path, { maximumMessageBytes: 1000 })
  await fails(t, small.allocated({ snapshotId: 'a' }), 'DM_SERVER_FAILED', /RESOURCE_EXHAUSTED.*larger than max/)
  t.is((await extentsOf(await client(t, path).allocated({ snapshotId: 'a' }))).length, 1000)
})
