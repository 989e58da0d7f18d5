/**
 * The protocol, byte by byte, against the recorded pool: what the specification says that a server answers.
 */
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { readPoolDescription, unpackRecordedPool } from '../fixtures/recorded-pool.ts'
import { Random } from '../support/random.ts'
import { serveNbd, serveSource, type TestServer } from '../support/nbd-clients.ts'
import { openSource } from '../../src/cli/answers/nbd-sources.ts'
import {
  goBytes,
  optionBytes,
  queriesBytes,
  RawClient,
  type RawRequest,
  requestBytes,
  text,
  u16,
  u32
} from './raw-client.ts'

const recorded = await unpackRecordedPool()
const pool = await readPoolDescription(recorded)
const [target, base] = ['tides-grown', 'tides-shrunk']
const { size_bytes: size, sha256 } = pool.snapshots.find(({ name }) => name === target)!
const options = { base: [`x/${base}`], recorded: { x: recorded } }
const bitmap = `qemu:dirty-bitmap:x/${base}`
const MAX = 32 * 2 ** 20
const [ACK, SERVER, INFO, CONTEXT] = [1, 2, 3, 4]
const error = (number: number) => 2 ** 31 + number

let server: TestServer
let content: Buffer
test.before(async () => {
  server = await serveNbd(`x/${target}`, options)
  const client = await transmitting()
  client.send(requestBytes({ type: 0, length: size }))
  content = Buffer.alloc(size)
  for (const { type, payload } of await client.chunks()) {
    if (type === 1) payload.copy(content, Number(payload.readBigUInt64BE()), 8)
    else if (type !== 2) throw new Error(`a chunk of type ${type}`)
  }
  await client.close()
})
test.after.always(() => server.close())

/** A client in the transmission phase. */
async function transmitting({ structured = true, contexts = [] as string[], name = '' } = {}): Promise<RawClient> {
  const client = new RawClient(server.path)
  await client.greet()
  if (structured) await client.option(8)
  if (contexts.length > 0) await client.option(10, queriesBytes(name, ...contexts))
  await client.option(7, goBytes(name))
  return client
}

test('the whole of it is what the kernel read', (t) => {
  t.is(createHash('sha256').update(content).digest('hex'), sha256)
})

test('greeting, information and the end of a handshake', async (t) => {
  const client = new RawClient(server.path)
  t.deepEqual(await client.greet(), Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), u16(3)]))
  const list = await client.option(3)
  t.deepEqual(
    list.map(({ type, data }) => [type, data.subarray(4).toString()]),
    [
      [SERVER, `x/${target}`],
      [SERVER, `x/${base}..x/${target}`],
      [ACK, '']
    ]
  )
  const replies = await client.option(6, goBytes('', 1, 2, 3))
  t.deepEqual(
    replies.map(({ type }) => type),
    [INFO, INFO, INFO, INFO, ACK]
  )
  const [exported, name, description, blocks] = replies.map(({ data }) => data)
  t.is(exported.readUInt16BE(), 0)
  t.is(exported.readBigUInt64BE(2), BigInt(size))
  // Flags, read-only, flush, several connections.
  t.is(exported.readUInt16BE(10), 1 + 2 + 4 + 256)
  t.is(name.subarray(2).toString(), `x/${target}`)
  t.true(description.length > 2)
  t.deepEqual([blocks.readUInt32BE(2), blocks.readUInt32BE(6), blocks.readUInt32BE(10)], [1, 65536, MAX])
  t.deepEqual(
    (await client.option(2)).map(({ type }) => type),
    [ACK]
  )
  t.is(await client.take(1), undefined)
})

test('options that are not known, too long, or do not add up get errors, and the next is answered', async (t) => {
  const client = new RawClient(server.path)
  await client.greet()
  const last = async (number: number, data?: Buffer) => (await client.option(number, data)).at(-1)?.type
  for (const unknown of [0, 4, 5, 11, 12, 99, 2 ** 32 - 1]) t.is(await last(unknown, Buffer.from('abc')), error(1))
  t.is(await last(3, Buffer.from('x')), error(3))
  t.is(await last(8, Buffer.from('x')), error(3))
  t.is(await last(7, text('x/never').subarray(0, 3)), error(3))
  t.is(await last(7, Buffer.concat([text(''), u16(3), u16(0)])), error(3))
  t.is(await last(7, Buffer.concat([goBytes(''), Buffer.from('x')])), error(3))
  t.is(await last(7, goBytes('x/never')), error(6))
  t.is(await last(7, Buffer.concat([u32(1), Buffer.from([0xff]), u16(0)])), error(3))
  t.is(await last(6, Buffer.alloc(100_000)), error(9))
  t.is(await last(9, queriesBytes('')), error(3))
  t.is(await last(8), ACK)
  t.is(await last(9, Buffer.concat([text(''), u32(2 ** 31)])), error(3))
  t.is(await last(10, queriesBytes('x/never', 'base:allocation')), error(6))
  t.is(await last(6, goBytes('')), ACK)
  await client.close()
})

test('queries of contexts', async (t) => {
  const client = new RawClient(server.path)
  await client.greet()
  await client.option(8)
  const names = async (number: number, ...queries: string[]) => {
    const replies = await client.option(number, queriesBytes('', ...queries))
    t.is(replies.at(-1)?.type, ACK)
    return replies.slice(0, -1).map(({ type, data }) => {
      t.is(type, CONTEXT)
      return `${data.readUInt32BE()} ${data.subarray(4).toString()}`
    })
  }
  const all = ['0 base:allocation', `0 ${bitmap}`]
  t.deepEqual(await names(9), all)
  t.deepEqual(await names(9, 'base:'), all.slice(0, 1))
  t.deepEqual(await names(9, 'qemu:'), all.slice(1))
  t.deepEqual(await names(9, 'qemu:dirty-bitmap:'), all.slice(1))
  t.deepEqual(await names(9, 'other:', 'base:nothing', '', 'x'), [])
  t.deepEqual(await names(10, bitmap, bitmap, 'base:allocation'), ['0 base:allocation', `1 ${bitmap}`])
  for (const none of ['base:', 'qemu:', 'qemu:dirty-bitmap:', '']) t.deepEqual(await names(10, none), [])
  t.deepEqual(await names(10), [])
  await client.close()
})

test('contexts of another export, of before, or of none, do not count', async (t) => {
  const other = `x/${base}..x/${target}`
  for (const setUp of [
    async (client: RawClient) => void (await client.option(10, queriesBytes(other, bitmap))),
    async (client: RawClient) => {
      await client.option(10, queriesBytes('', bitmap))
      await client.option(10, queriesBytes('x/never', bitmap))
    },
    async (client: RawClient) => {
      await client.option(10, queriesBytes('', bitmap))
      await client.option(10, queriesBytes(''))
    }
  ]) {
    const client = new RawClient(server.path)
    await client.greet()
    await client.option(8)
    await setUp(client)
    await client.option(7, goBytes(''))
    client.send(requestBytes({ type: 7, length: 512 }))
    const [chunk] = await client.chunks()
    t.is(chunk.type, 0x8001)
    t.is(chunk.payload.readUInt32BE(), 22)
    await client.close()
  }
})

test('the old way in, with and without padding', async (t) => {
  for (const [flags, length] of [
    [3, 10],
    [1, 134]
  ]) {
    const client = new RawClient(server.path)
    await client.greet(flags)
    client.send(optionBytes(1, Buffer.from(`x/${target}`)))
    const reply = await client.take(length)
    t.is(reply?.readBigUInt64BE(), BigInt(size))
    client.send(requestBytes({ type: 0, offset: 4096n, length: 100, cookie: 9n }))
    t.deepEqual(await client.simpleReply(), { error: 0, cookie: 9n })
    t.deepEqual(await client.take(100), content.subarray(4096, 4196))
    client.send(requestBytes({ type: 2 }))
    t.is(await client.take(1), undefined)
  }
  const client = new RawClient(server.path)
  await client.greet()
  client.send(optionBytes(1, Buffer.from('x/never')))
  t.is(await client.take(1), undefined)
})

test('any range of either kind of reply is its bytes', async (t) => {
  const random = new Random(5)
  for (const structured of [true, false]) {
    const client = await transmitting({ structured })
    for (let i = 0; i < 200; i++) {
      const offset = random.integer(0, size - 1)
      const length = Math.min(
        size - offset,
        random.chance(0.3) ? random.integer(1, 3_000_000) : random.integer(1, 9000)
      )
      client.send(requestBytes({ type: 0, offset: BigInt(offset), length, cookie: BigInt(i) }))
      const read = Buffer.alloc(length, 'x')
      if (structured) {
        for (const { type, cookie, payload } of await client.chunks()) {
          t.is(cookie, BigInt(i))
          const at = Number(payload.readBigUInt64BE()) - offset
          if (type === 1) payload.copy(read, at, 8)
          else read.fill(0, at, at + payload.readUInt32BE(8))
        }
      } else {
        t.deepEqual(await client.simpleReply(), { error: 0, cookie: BigInt(i) })
        ;(await client.take(length))!.copy(read)
      }
      if (!read.equals(content.subarray(offset, offset + length))) t.fail(`${length} bytes at ${offset}`)
    }
    await client.close()
  }
})

test('many requests at once are all answered, each whole', async (t) => {
  for (const structured of [true, false]) {
    const client = await transmitting({ structured })
    const count = 40
    const part = 200_000
    const requests = Array.from({ length: count }, (_, i) => ({
      offset: (i * 77_777) % (size - part),
      cookie: BigInt(i)
    }))
    client.send(
      ...requests.map(({ offset, cookie }) => requestBytes({ type: 0, offset: BigInt(offset), length: part, cookie }))
    )
    const read = requests.map(() => Buffer.alloc(part))
    for (let done = 0; done < count;) {
      if (structured) {
        const { type, flags, cookie, payload } = (await client.chunk())!
        const at = Number(payload.readBigUInt64BE()) - requests[Number(cookie)].offset
        if (type === 1) payload.copy(read[Number(cookie)], at, 8)
        if ((flags & 1) !== 0) done++
      } else {
        const { cookie } = (await client.simpleReply())!
        ;(await client.take(part))!.copy(read[Number(cookie)])
        done++
      }
    }
    requests.forEach(({ offset }, i) => t.true(read[i].equals(content.subarray(offset, offset + part))))
    await client.close()
  }
})

test('--rate holds reading back', async (t) => {
  const bytesPerSecond = 4 * 2 ** 20
  const slow = await serveNbd(`x/${target}`, { ...options, rate: bytesPerSecond })
  const client = new RawClient(slow.path)
  await client.greet()
  await client.option(8)
  await client.option(7, goBytes(''))
  const part = 65536
  const begin = performance.now()
  let read = 0
  for (let offset = 0; offset + part <= size && read < 2 ** 20; offset += part) {
    client.send(requestBytes({ type: 0, offset: BigInt(offset), length: part }))
    for (const { type, payload } of await client.chunks()) if (type === 1) read += payload.length - 8
  }
  t.true(read >= 2 ** 20)
  // What was read last is paid for by who comes next.
  t.true(performance.now() - begin >= ((read - part) / bytesPerSecond) * 1000 - 5)
  await client.close()
  await slow.close()
})

test('what cannot be asked gets its error, and the next request is answered', async (t) => {
  const [EPERM, EINVAL] = [1, 22]
  const wrong: [RawRequest, number][] = [
    [{ type: 0, offset: BigInt(size), length: 1 }, EINVAL],
    [{ type: 0, offset: BigInt(size - 1), length: 2 }, EINVAL],
    [{ type: 0, offset: 2n ** 64n - 1n, length: 1 }, EINVAL],
    [{ type: 0, length: 0 }, EINVAL],
    [{ type: 0, length: MAX + 1 }, EINVAL],
    [{ type: 0, length: 2 ** 32 - 1 }, EINVAL],
    [{ type: 0, length: 1, flags: 4 }, EINVAL],
    [{ type: 4, length: 1 }, EPERM],
    [{ type: 6, length: 1 }, EPERM],
    [{ type: 5, length: 1 }, EINVAL],
    [{ type: 8, length: 1 }, EINVAL],
    [{ type: 65535, length: 1 }, EINVAL],
    [{ type: 7, length: 0 }, EINVAL],
    [{ type: 7, offset: BigInt(size), length: 1 }, EINVAL],
    [{ type: 7, length: 1, flags: 16 }, EINVAL]
  ]
  for (const structured of [true, false]) {
    const client = await transmitting({ structured, contexts: structured ? ['base:allocation'] : [] })
    for (const [request, number] of wrong) {
      client.send(requestBytes(request))
      if (structured && (request.type === 0 || request.type === 7)) {
        const [chunk, ...more] = await client.chunks()
        t.deepEqual([chunk.type, chunk.payload.readUInt32BE(), more.length], [0x8001, number, 0])
      } else t.is((await client.simpleReply())?.error, number)
    }
    client.send(requestBytes({ type: 1, length: 5000 }), Buffer.alloc(5000))
    t.is((await client.simpleReply())?.error, EPERM)
    client.send(requestBytes({ type: 3 }))
    t.is((await client.simpleReply())?.error, 0)
    await client.close()
  }
})

test('states of both contexts come together, and one run where one is asked for', async (t) => {
  const client = await transmitting({ contexts: ['base:allocation', bitmap] })
  client.send(requestBytes({ type: 7, length: size }))
  const chunks = await client.chunks()
  t.deepEqual(
    chunks.map(({ type }) => type),
    [5, 5, 0]
  )
  for (const { payload } of chunks.slice(0, 2)) {
    let sum = 0
    for (let at = 4; at < payload.length; at += 8) sum += payload.readUInt32BE(at)
    t.is(sum, size)
  }
  client.send(requestBytes({ type: 7, flags: 8, offset: 1000n, length: size - 1000 }))
  for (const { type, payload } of await client.chunks()) if (type === 5) t.is(payload.length, 12)
  await client.close()
})

test('no more than 32 clients at once; who comes then is turned away, and served once one has gone', async (t) => {
  const own = await serveNbd(`x/${target}`, options)
  const greeted = async () => {
    const client = new RawClient(own.path)
    return { client, isIn: (await client.greet()) !== undefined }
  }
  const clients = []
  for (let i = 0; i < 32; i++) clients.push(await greeted())
  t.true(clients.every(({ isIn }) => isIn))
  t.false((await greeted()).isIn)
  await clients[0].client.close()
  let last = await greeted()
  // (The server hears of the end in a turn of its own.)
  for (; !last.isIn; last = await greeted()) await sleep(10)
  for (const { client } of [...clients, last]) await client.close()
  await own.close()
})

test('a client that takes nothing is ended with its handshake, and its answers take no more than their share', async (t) => {
  const source = await openSource(`x/${target}`, options, () => undefined)
  const short = await serveSource(source, 300)
  const mute = new RawClient(short.path)
  t.truthy(await mute.take(18))
  t.is(await mute.take(1), undefined)
  await short.close()
  // On a busy machine, a handshake takes longer than that.
  const patient = await serveSource(source, 600_000)
  const deaf = new RawClient(patient.path)
  await deaf.greet()
  await deaf.option(8)
  await deaf.option(7, goBytes(''))
  deaf.socket.pause()
  const before = process.memoryUsage().rss
  for (let i = 0; i < 200; i++) deaf.send(requestBytes({ type: 0, length: size }))
  await sleep(500)
  t.true(process.memoryUsage().rss - before < 100 * 2 ** 20)
  // Others are served meanwhile.
  const other = new RawClient(patient.path)
  await other.greet()
  t.is((await other.option(6, goBytes(''))).at(-1)?.type, ACK)
  await other.close()
  await deaf.close()
  await patient.close()
})
