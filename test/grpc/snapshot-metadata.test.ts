import { status } from '@grpc/grpc-js'
import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import { capacityBytes, eventually, some, testServer, type Extent, type TestServer } from './extent-backend.ts'
import { allocatedRequest, outcome, PlainClient, rawCall, type Outcome, type Response } from './plain-client.ts'
import { getMetadataAllocated } from '../../src/grpc/snapshot-metadata-methods.ts'
import { framed } from '../support/grpc-frame.ts'
import { beginHeld } from '../support/held-call.ts'
import { reachableHere } from '../support/reachable-memory.ts'

function extentsOf(messages: Response[]): Extent[] {
  return messages.flatMap(({ block_metadata: list }) =>
    list.map(({ byte_offset: offset, size_bytes: size }) => [Number(offset), Number(size)] as const)
  )
}

function isComplete(t: ExecutionContext, { messages, code, details }: Outcome, extents: Extent[]) {
  t.is(code, status.OK, details)
  t.deepEqual(extentsOf(messages), extents)
  t.true(messages.length > 0)
  for (const message of messages) {
    t.is(message.block_metadata_type, 'VARIABLE_LENGTH')
    t.is(message.volume_capacity_bytes, String(capacityBytes))
  }
}

/** The statuses of CSI carry a text for people and nothing else. */
function isRefused(
  t: ExecutionContext,
  { messages, code, details, metadata }: Outcome,
  expected: status,
  text: RegExp
) {
  t.is(status[code], status[expected], details)
  t.regex(details, text)
  t.regex(details, /^DM_[A-Z_]+: .+; .+$/)
  t.deepEqual(metadata?.get('grpc-status-details-bin'), [])
  t.deepEqual(messages, [])
}

/** The line that the last call left in the log. */
async function logLine({ log }: TestServer): Promise<Record<string, unknown>> {
  await eventually(() => log.some(({ msg }) => msg === 'call'))
  return log.findLast(({ msg }) => msg === 'call')!
}

test('allocated and delta give everything, and say OK after it', async (t) => {
  const { path, backend } = await testServer(t)
  const client = new PlainClient(t, path)
  isComplete(t, await client.allocated({ snapshot_id: 'some' }), some)
  isComplete(t, await client.delta({ base_snapshot_id: 'empty', target_snapshot_id: 'some' }), some)
  t.deepEqual<object[], object[]>(backend.requests, [
    { snapshotId: 'some', startingOffset: 0n, maxResults: 0 },
    { baseSnapshotId: 'empty', targetSnapshotId: 'some', startingOffset: 0n, maxResults: 0 }
  ])
  t.is(backend.open, 0)
})

test('an empty answer is one message with the capacity', async (t) => {
  const { path } = await testServer(t)
  const client = new PlainClient(t, path)
  for (const id of ['empty', 'silent']) {
    const answer = await client.allocated({ snapshot_id: id })
    isComplete(t, answer, [])
    t.is(answer.messages.length, 1)
  }
})

test('max_results limits each message and never the answer', async (t) => {
  const { path } = await testServer(t)
  const client = new PlainClient(t, path)
  for (const [maxResults, messages] of [
    [1, 500],
    [7, 72],
    [500, 1],
    [2 ** 31 - 1, 1]
  ]) {
    const answer = await client.allocated({ snapshot_id: 'some', max_results: maxResults })
    isComplete(t, answer, some)
    t.is(answer.messages.length, messages)
    t.true(answer.messages.every((message) => message.block_metadata.length <= maxResults))
  }
})

test('a stream resumed from any offset gives what lies beyond it', async (t) => {
  const { path } = await testServer(t)
  const client = new PlainClient(t, path)
  await fc.assert(
    fc.asyncProperty(fc.nat({ max: capacityBytes }), fc.nat({ max: 600 }), async (startingOffset, maxResults) => {
      const answer = await client.allocated({
        snapshot_id: 'some',
        starting_offset: startingOffset,
        max_results: maxResults
      })
      isComplete(
        t,
        answer,
        some.filter(([offset, size]) => offset + size > startingOffset)
      )
    }),
    { numRuns: 30 }
  )
  const atTheEnd = await client.allocated({ snapshot_id: 'some', starting_offset: capacityBytes })
  isComplete(t, atTheEnd, [])
  t.is(atTheEnd.messages.length, 1)
})

test('starting_offset reaches the backend exactly, up to the last bit', async (t) => {
  const { path, backend } = await testServer(t)
  const client = new PlainClient(t, path)
  for (const offset of ['9007199254740993', '9223372036854775807']) {
    const answer = await client.allocated({ snapshot_id: 'some', starting_offset: offset })
    isRefused(t, answer, status.OUT_OF_RANGE, /beyond the volume/)
    t.is(backend.requests.at(-1)!.startingOffset, BigInt(offset))
  }
})

const long = 'x'.repeat(129)
const badRequests: [string, 'allocated' | 'delta', object, status, RegExp][] = [
  ['no snapshot id', 'allocated', {}, status.INVALID_ARGUMENT, /^DM_ARGUMENT_MISSING: snapshot_id/],
  ['a snapshot id too long', 'allocated', { snapshot_id: long }, status.INVALID_ARGUMENT, /snapshot_id is 129 bytes/],
  [
    'a snapshot id too long in bytes',
    'allocated',
    { snapshot_id: 'é'.repeat(65) },
    status.INVALID_ARGUMENT,
    /snapshot_id is 130 bytes/
  ],
  ['an unknown snapshot', 'allocated', { snapshot_id: 'nobody' }, status.NOT_FOUND, /nobody/],
  ['negative max_results', 'allocated', { snapshot_id: 'some', max_results: -1 }, status.INVALID_ARGUMENT, /is -1/],
  [
    'the lowest max_results',
    'allocated',
    { snapshot_id: 'some', max_results: -(2 ** 31) },
    status.INVALID_ARGUMENT,
    /max_results is -2147483648/
  ],
  ['a negative offset', 'allocated', { snapshot_id: 'some', starting_offset: -1 }, status.OUT_OF_RANGE, /is -1/],
  [
    'the lowest offset',
    'allocated',
    { snapshot_id: 'some', starting_offset: '-9223372036854775808' },
    status.OUT_OF_RANGE,
    /is -9223372036854775808/
  ],
  [
    'an offset beyond the capacity',
    'allocated',
    { snapshot_id: 'some', starting_offset: capacityBytes + 1 },
    status.OUT_OF_RANGE,
    /beyond/
  ],
  ['no base', 'delta', { target_snapshot_id: 'some' }, status.INVALID_ARGUMENT, /base_snapshot_id is empty/],
  ['no target', 'delta', { base_snapshot_id: 'some' }, status.INVALID_ARGUMENT, /target_snapshot_id is empty/],
  [
    'a base too long',
    'delta',
    { base_snapshot_id: long, target_snapshot_id: 'some' },
    status.INVALID_ARGUMENT,
    /base_snapshot_id is 129 bytes/
  ],
  [
    'a target too long',
    'delta',
    { base_snapshot_id: 'some', target_snapshot_id: long },
    status.INVALID_ARGUMENT,
    /target_snapshot_id is 129 bytes/
  ],
  [
    'negative max_results of a delta',
    'delta',
    { base_snapshot_id: 'some', target_snapshot_id: 'some', max_results: -5 },
    status.INVALID_ARGUMENT,
    /is -5/
  ],
  [
    'a negative offset of a delta',
    'delta',
    { base_snapshot_id: 'some', target_snapshot_id: 'some', starting_offset: -5 },
    status.OUT_OF_RANGE,
    /is -5/
  ]
]

for (const [name, method, request, expected, text] of badRequests) {
  test(`refused: ${name}; the next call works`, async (t) => {
    const server = await testServer(t)
    const client = new PlainClient(t, server.path)
    isRefused(t, await client[method](request), expected, text)
    const line = await logLine(server)
    t.is(line.status, status[expected])
    t.is(line.level, 30)
    isComplete(t, await client.allocated({ snapshot_id: 'some' }), some)
  })
}

test('an id of exactly 128 bytes is asked for', async (t) => {
  const { path, backend } = await testServer(t)
  const id = 'é'.repeat(64)
  isRefused(t, await new PlainClient(t, path).allocated({ snapshot_id: id }), status.NOT_FOUND, /é/)
  t.is(backend.requests.length, 1)
})

const hostile: [string, { headers?: Record<string, string>; body?: Buffer }, RegExp][] = [
  ['bytes that are no protobuf', { body: framed(Buffer.from('0aff', 'hex')) }, /^13$/],
  ['varints without end', { body: framed(Buffer.alloc(100, 0xff)) }, /^13$/],
  ['nested groups without end', { body: framed(Buffer.alloc(60_000, 0x53)) }, /^13$/],
  ['a message that is too large', { body: framed(Buffer.alloc(100_000, 0x7a)) }, /^8$/],
  ['a message that says it has 4 GiB', { body: Buffer.from('00ffffffff0a', 'hex') }, /^8$/],
  ['a message cut off', { body: framed(Buffer.from('0a0178', 'hex')).subarray(0, 6) }, /^12$/],
  ['no message', {}, /^12$/],
  ['two messages', { body: Buffer.concat([allocatedRequest('some'), allocatedRequest('some')]) }, /^12$/],
  ['bytes that are no gzip', { headers: { 'grpc-encoding': 'gzip' }, body: framed(Buffer.from('no'), 1) }, /^13$/],
  ['a deadline that is none', { headers: { 'grpc-timeout': 'soon' }, body: allocatedRequest('some') }, /^13$/],
  ['a deadline of nine digits', { headers: { 'grpc-timeout': '100000000n' }, body: allocatedRequest('some') }, /^13$/],
  ['a deadline within words', { headers: { 'grpc-timeout': 'in 9S' }, body: allocatedRequest('some') }, /^13$/],
  ['another content type', { headers: { 'content-type': 'text/html' }, body: allocatedRequest('some') }, /^undefined$/],
  [
    'an unknown method',
    { headers: { ':path': '/csi.v1.SnapshotMetadata/Nope' }, body: allocatedRequest('some') },
    /^12$/
  ]
]

for (const [name, request, code] of hostile) {
  test(`hostile: ${name}; the next call works`, async (t) => {
    const { path, backend } = await testServer(t)
    const { received, closed, stream } = rawCall(t, path, request)
    stream.resume()
    await closed
    t.regex(String(received['grpc-status']), code)
    t.is(backend.requests.length, 0)
    isComplete(t, await new PlainClient(t, path).allocated({ snapshot_id: 'some' }), some)
  })
}

test('an error in the middle comes after the messages before it, and never OK', async (t) => {
  const server = await testServer(t)
  const answer = await new PlainClient(t, server.path).allocated({ snapshot_id: 'damaged' })
  t.deepEqual(extentsOf(answer.messages), some.slice(0, 300))
  t.is(answer.code, status.DATA_LOSS)
  t.is(answer.details, 'DM_METADATA_DAMAGED: block 7 is damaged; repair it')
  t.deepEqual(answer.metadata?.get('grpc-status-details-bin'), [])
  t.is(server.backend.open, 0)
  const line = await logLine(server)
  t.like(line, { level: 50, status: 'DATA_LOSS', code: 'DM_METADATA_DAMAGED', messages: 3 })
})

test('a defect is INTERNAL, its cause is in the log and its stack nowhere else', async (t) => {
  const server = await testServer(t)
  const answer = await new PlainClient(t, server.path).allocated({ snapshot_id: 'defective' })
  t.is(extentsOf(answer.messages).length, 100)
  t.is(answer.code, status.INTERNAL)
  t.regex(answer.details, /^DM_INTERNAL: undefined is not a block; report it/)
  t.false(answer.details.includes('.ts'))
  const line = await logLine(server)
  t.like(line, { level: 50, status: 'INTERNAL', code: 'DM_INTERNAL' })
  t.regex((line.err as { stack: string }).stack, /TypeError[^]*extent-backend\.ts/)
})

test('a backend that throws instead of answering, with anything at all, ends the call as INTERNAL', async (t) => {
  for (const thrown of [new Error('broken'), 'a string', undefined]) {
    const fail = () => {
      throw thrown as Error
    }
    const server = await testServer(t, { backend: { allocated: fail, delta: fail } })
    const answer = await new PlainClient(t, server.path).allocated({ snapshot_id: 'some' })
    isRefused(t, answer, status.INTERNAL, /^DM_INTERNAL/)
  }
})

test('a message larger than clients accept is a defect and does not leave', async (t) => {
  const messages = (async function* () {
    yield Buffer.alloc(3 * 2 ** 20)
  })()
  const backend = { allocated: async () => ({ capacityBytes, messages }), delta: () => Promise.reject(new Error()) }
  const { path } = await testServer(t, { backend })
  isRefused(
    t,
    await new PlainClient(t, path).allocated({ snapshot_id: 'some' }),
    status.INTERNAL,
    /message of 3145728 bytes/
  )
})

test('once it is sent, the memory of a large message is given back; a small one’s may be shared, and stays', async (t) => {
  const large = await testServer(t)
  const { stream } = rawCall(t, large.path, { body: allocatedRequest('endless') })
  stream.resume()
  t.true(await eventually(() => large.backend.asked > 3))
  t.is(large.backend.first?.length, 0)
  t.is(large.backend.open, 1, 'it goes on')
  const small = await testServer(t)
  isComplete(t, await new PlainClient(t, small.path).allocated({ snapshot_id: 'some' }), some)
  t.true((small.backend.first?.length ?? 0) > 0)
})

// These measure time or memory, and so run alone.
test.serial('a client that does not read is waited for: no message is made beyond those on their way', async (t) => {
  const { path, backend } = await testServer(t)
  const calls = Array.from({ length: 20 }, () => rawCall(t, path, { body: allocatedRequest('endless') }))
  t.true(await eventually(() => backend.open === 20 && backend.asked >= 20))
  await new Promise((resolve) => setTimeout(resolve, 200))
  // Of each stream one message waits in the connection.
  t.true(backend.asked <= 20 * 2, `${backend.asked} messages were asked for`)
  const before = process.memoryUsage()
  await new Promise((resolve) => setTimeout(resolve, 300))
  const after = process.memoryUsage()
  t.true(after.arrayBuffers - before.arrayBuffers < 2 ** 20)
  // Whoever begins to read gets on.
  const asked = backend.asked
  let bytes = 0
  calls[0].stream.on('data', (chunk: Buffer) => (bytes += chunk.length))
  t.true(await eventually(() => bytes > 2 ** 20))
  t.true(backend.asked > asked + 5)
  for (const { stream } of calls) stream.close()
  t.true(await eventually(() => backend.open === 0))
})

test('a held call gets few messages of a stream until the rest is read', async (t) => {
  const { path, backend } = await testServer(t)
  const request = { snapshotId: 'some', startingOffset: 0n, maxResults: 1 }
  const rest = await beginHeld(path, getMetadataAllocated, request)
  await new Promise((resolve) => setTimeout(resolve, 300))
  t.true(backend.asked < 50, `${backend.asked} messages were asked for`)
  await rest()
  t.true(backend.asked >= some.length)
  const damaged = await beginHeld(path, getMetadataAllocated, { ...request, snapshotId: 'damaged' })
  await t.throwsAsync(damaged(), { message: /block 7 is damaged/ })
})

test('more streams than are allowed, of one client or of all, are refused until others have ended', async (t) => {
  const { path, backend } = await testServer(t, {
    limits: { maxStreams: 3, maxStreamsPerClient: 2 },
    nameUnixClient: () => undefined
  })
  const [one, other] = [1, 2].map(() => new PlainClient(t, path, { 'grpc.use_local_subchannel_pool': 1 }))
  const begin = (client: PlainClient) => {
    const stream = client.stream('SnapshotMetadata', 'GetMetadataAllocated', { snapshot_id: 'hanging' })
    return { stream, ended: outcome(stream) }
  }
  const running = [begin(one), begin(one)]
  t.true(await eventually(() => backend.open === 2))
  const refused = async (client: PlainClient, words: RegExp) => {
    const { code, details } = await client.allocated({ snapshot_id: 'some' })
    t.is(code, status.UNAVAILABLE)
    t.regex(details, /^DM_TOO_MANY_STREAMS: /)
    t.regex(details, words)
  }
  await refused(one, /this client has 2 .*\(maxStreamsPerClient\)$/)
  running.push(begin(other))
  t.true(await eventually(() => backend.open === 3))
  await refused(other, /3 answers .*\(maxStreams\)$/)
  for (const { stream } of running) stream.cancel()
  await Promise.all(running.map(({ ended }) => ended))
  t.true(await eventually(() => backend.open === 0))
  for (const client of [one, one, one, other]) t.is((await client.allocated({ snapshot_id: 'some' })).code, status.OK)
})

test.serial('memory does not grow with the length of a stream', async (t) => {
  const { path, backend } = await testServer(t)
  const { stream } = rawCall(t, path, { body: allocatedRequest('endless') })
  let bytes = 0
  stream.on('data', (chunk: Buffer) => (bytes += chunk.length))
  await eventually(() => bytes > 20 * 2 ** 20)
  const before = reachableHere()
  t.true(await eventually(() => bytes > 100 * 2 ** 20))
  const grown = reachableHere() - before
  t.true(grown < 2 ** 25, `${grown} bytes more`)
  stream.close()
  t.true(await eventually(() => backend.open === 0))
})

test.serial('a client that cancels ends the walk at once', async (t) => {
  for (const id of ['endless', 'hanging']) {
    const server = await testServer(t)
    const { backend } = server
    const client = new PlainClient(t, server.path)
    // The best of some: a busy machine may delay one.
    const delays: number[] = []
    while (!(Math.min(...delays) < 2000) && delays.length < 10) {
      const call = client.stream('SnapshotMetadata', 'GetMetadataAllocated', { snapshot_id: id })
      const ended = outcome(call)
      await eventually(() => backend.open === 1)
      await new Promise((resolve) => setTimeout(resolve, 20))
      const begin = performance.now()
      call.cancel()
      t.true(await eventually(() => backend.open === 0))
      delays.push(performance.now() - begin)
      t.is((await ended).code, status.CANCELLED)
    }
    t.true(Math.min(...delays) < 2000, `${delays.join(' ')} ms`)
    t.deepEqual(
      backend.reasons.map(({ code }) => code),
      delays.map(() => 'DM_CANCELLED')
    )
    t.like(await logLine(server), { level: 30, status: 'CANCELLED', code: 'DM_CANCELLED' })
  }
})

test('a client that vanishes ends the walk', async (t) => {
  const { path, backend } = await testServer(t)
  const { session } = rawCall(t, path, { body: allocatedRequest('endless') })
  await eventually(() => backend.open === 1)
  session.destroy()
  t.true(await eventually(() => backend.open === 0))
  t.deepEqual(
    backend.reasons.map(({ code }) => code),
    ['DM_CANCELLED']
  )
})

test.serial('a deadline ends the walk, also of a client that only waits, or does not read', async (t) => {
  for (const id of ['endless', 'hanging']) {
    const server = await testServer(t)
    const { backend, path } = server
    const answer = await new PlainClient(t, path).allocated({ snapshot_id: id }, { deadline: Date.now() + 150 })
    t.is(answer.code, status.DEADLINE_EXCEEDED)
    t.true(await eventually(() => backend.open === 0))

    const begin = performance.now()
    const headers = { 'grpc-timeout': '150m' }
    const { stream, received } = rawCall(t, path, { headers, body: allocatedRequest(id) })
    t.true(await eventually(() => backend.open === 1))
    t.true(await eventually(() => backend.open === 0))
    const elapsed = performance.now() - begin
    t.true(elapsed >= 100, `${elapsed} ms`)
    t.is(backend.reasons.at(-1)!.code, 'DM_DEADLINE_EXCEEDED')
    // And whoever reads on gets to the status.
    stream.resume()
    t.true(await eventually(() => received['grpc-status'] !== undefined))
    t.is(received['grpc-status'], '4')
    t.like(await logLine(server), { status: 'DEADLINE_EXCEEDED', code: 'DM_DEADLINE_EXCEEDED' })
  }
})

for (const timeout of ['1000H', '99999999H', '99999999M', '99999999S', '99999999m']) {
  test(`a deadline that is far away has not passed: ${timeout}`, async (t) => {
    const { path } = await testServer(t)
    const { received, stream } = rawCall(t, path, {
      headers: { 'grpc-timeout': timeout },
      body: allocatedRequest('endless')
    })
    // One that has passed ends the call within a few messages.
    let bytes = 0
    for await (const chunk of stream) {
      bytes += (chunk as Buffer).length
      if (bytes > 2 ** 22) break
    }
    t.true(bytes > 2 ** 22)
    t.is(received['grpc-status'], undefined)
  })
}

test('a backend that does not listen cannot keep a call from ending', async (t) => {
  const { path } = await testServer(t)
  const { received, closed, stream } = rawCall(t, path, {
    headers: { 'grpc-timeout': '100m' },
    body: allocatedRequest('stubborn')
  })
  stream.resume()
  await closed
  t.is(received['grpc-status'], '4')
})

test('an answer that comes after the call has ended is closed', async (t) => {
  let answer: (() => void) | undefined
  let closed = false
  const messages = {
    [Symbol.asyncIterator]: () => ({
      next: () => Promise.reject(new Error('nobody should ask')),
      return: async () => {
        closed = true
        return { done: true as const, value: undefined }
      }
    })
  }
  const backend = {
    allocated: () =>
      new Promise<{ capacityBytes: number; messages: AsyncIterable<Uint8Array> }>((resolve) => {
        answer = () => resolve({ capacityBytes, messages })
      }),
    delta: () => Promise.reject(new Error())
  }
  const { path } = await testServer(t, { backend })
  const call = new PlainClient(t, path).stream('SnapshotMetadata', 'GetMetadataAllocated', { snapshot_id: 'some' })
  const ended = outcome(call)
  await eventually(() => answer !== undefined)
  call.cancel()
  await ended
  await new Promise((resolve) => setTimeout(resolve, 50))
  answer!()
  t.true(await eventually(() => closed))
})

test('each call leaves one line in the log', async (t) => {
  const server = await testServer(t)
  const client = new PlainClient(t, server.path)
  await client.delta({ base_snapshot_id: 'empty', target_snapshot_id: 'some', starting_offset: 5, max_results: 100 })
  await eventually(() => server.log.length > 0)
  t.is(server.log.length, 1)
  const [line] = server.log
  t.like(line, {
    level: 30,
    msg: 'call',
    method: 'GetMetadataDelta',
    baseSnapshotId: 'empty',
    targetSnapshotId: 'some',
    startingOffset: '5',
    maxResults: 100,
    status: 'OK',
    messages: 5,
    statistics: { nodesRead: 42 }
  })
  t.true((line.bytes as number) > 500 * 8)
  t.true((line.durationMs as number) >= (line.firstMessageMs as number))
})

test('an absurd id does not flood the log', async (t) => {
  const server = await testServer(t)
  await new PlainClient(t, server.path).allocated({ snapshot_id: 'y'.repeat(50_000) })
  const line = await logLine(server)
  t.true(JSON.stringify(line).length < 1000)
})

test('secrets reach neither the backend nor the log', async (t) => {
  const server = await testServer(t)
  const client = new PlainClient(t, server.path)
  const secrets = { password: 'correct-horse', 'correct-key': 'x' }
  for (const id of ['some', 'nobody', 'defective', '']) {
    await client.allocated({ snapshot_id: id, secrets })
    await client.delta({ base_snapshot_id: id, target_snapshot_id: id, secrets })
  }
  await eventually(() => server.log.length >= 8)
  t.is(server.log.length, 8)
  t.false(JSON.stringify(server.log).includes('correct'))
  for (const request of server.backend.requests) t.false('secrets' in request)
})

test('calls at the same time do not disturb each other', async (t) => {
  const { path, backend } = await testServer(t)
  const client = new PlainClient(t, path)
  const answers = await Promise.all(
    Array.from({ length: 40 }, (_, i) => client.allocated({ snapshot_id: 'some', max_results: i }))
  )
  for (const answer of answers) isComplete(t, answer, some)
  t.is(backend.open, 0)
})

test('a client that reads nothing for too long loses its answer, and its place once its connection is gone', async (t) => {
  const limits = { idleMs: 200, maxStreams: 1 }
  const { path, backend, log } = await testServer(t, { limits })
  const { session, stream } = rawCall(t, path, { body: allocatedRequest('endless') })
  t.true(await eventually(() => log.some(({ code }) => code === 'DM_CLIENT_IDLE')))
  t.true(await eventually(() => backend.open === 0))
  // Its last message is still in memory, and counts.
  const client = new PlainClient(t, path)
  t.regex((await client.allocated({ snapshot_id: 'some' })).details, /^DM_TOO_MANY_STREAMS/)
  stream.close()
  session.destroy()
  await eventually(() => stream.destroyed)
  const isAnswered = async () => (await client.allocated({ snapshot_id: 'some' })).code === 0
  let answered = await isAnswered()
  for (let tries = 0; !answered && tries < 500; tries++) answered = await isAnswered()
  t.true(answered)
})

test('of a flood of cancelled calls a few lines are logged, and how many were left out', async (t) => {
  const { path, backend, log } = await testServer(t)
  const client = new PlainClient(t, path)
  for (let i = 0; i < 60; i++) {
    const stream = client.stream('SnapshotMetadata', 'GetMetadataAllocated', { snapshot_id: 'hanging' })
    const ended = outcome(stream)
    t.true(await eventually(() => backend.open === 1))
    stream.cancel()
    await ended
    t.true(await eventually(() => backend.open === 0))
  }
  t.is(log.filter(({ code }) => code === 'DM_CANCELLED').length, 20)
  t.is((await client.allocated({ snapshot_id: 'some' })).code, status.OK)
  t.true(await eventually(() => log.some((line) => line['status'] === 'OK')))
})
