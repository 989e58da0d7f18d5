/**
 * Sessions with an NBD server that go wrong in every place: bytes changed, left out, put in or said twice, lengths that lie, the end at any moment.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Random } from '../support/random.ts'
import { goBytes, optionBytes, queriesBytes, RawClient, requestBytes, u32 } from './raw-client.ts'

export interface AttackReport {
  sessions: number
  /** Options and requests that were sent. */
  messages: number
  /** Sessions after which the server had said something beyond its greeting; in which it said an error; that it ended itself. */
  answered: number
  refused: number
  ended: number
  grownMiB: number
}

const AT_ONCE = 8
/** How long a session that the server does not end is waited for, in milliseconds. */
const LINGER_MS = 5

const names = [
  '',
  'x/tides-grown',
  'x/tides-shrunk..x/tides-grown',
  'x/never',
  'x',
  '\u{1f600}'.repeat(40),
  'a'.repeat(4097)
]
const queries = ['base:allocation', 'base:', 'qemu:dirty-bitmap:x/tides-shrunk', 'qemu:', 'x', '', 'qemu:dirty-bitmap:']

/** @throws Error where a client that behaves is not served as ever in between */
export async function attackNbd(
  path: string,
  sizeBytes: number,
  { seed, messages }: { seed: number; messages: number }
): Promise<AttackReport> {
  const random = new Random(seed)
  const report: AttackReport = { sessions: 0, messages: 0, answered: 0, refused: 0, ended: 0, grownMiB: 0 }
  const before = process.memoryUsage().rss
  while (report.messages < messages) {
    await Promise.all(Array.from({ length: AT_ONCE }, () => session(path, sizeBytes, random, report)))
    if (report.sessions % (AT_ONCE * 16) === 0) await checkServed(path)
  }
  await checkServed(path)
  report.grownMiB = Math.round((process.memoryUsage().rss - before) / 2 ** 20)
  return report
}

function randomOption(random: Random): Buffer {
  const name = random.pick(names)
  const number = random.chance(0.85) ? random.integer(1, 11) : random.uint32()
  const data = [
    () => Buffer.alloc(0),
    () => goBytes(name, ...Array.from({ length: random.integer(0, 4) }, () => random.integer(0, 5))),
    () => queriesBytes(name, ...Array.from({ length: random.integer(0, 5) }, () => random.pick(queries))),
    () => Buffer.from(name),
    () => bytes(random, random.integer(0, 300)),
    () => Buffer.alloc(random.integer(60_000, 70_000))
  ]
  const content = random.pick(data)()
  const length = random.chance(0.9) ? content.length : random.pick([0, content.length + 1, 2 ** 32 - 1, 65_537])
  return optionBytes(number, content, length)
}

function randomRequest(random: Random, sizeBytes: number): Buffer {
  const type = random.chance(0.9) ? random.integer(0, 8) : random.integer(0, 65_535)
  const offset = random.pick([
    0n,
    BigInt(random.integer(0, sizeBytes)),
    2n ** 64n - 1n,
    BigInt(sizeBytes - 1),
    2n ** 63n
  ])
  const length = random.pick([0, 1, 512, random.integer(0, 300_000), sizeBytes, 2 ** 25 + 1, 2 ** 32 - 1])
  const flags = random.chance(0.7) ? 0 : random.chance(0.5) ? 8 : random.integer(0, 65_535)
  const request = requestBytes({ type, offset, length, flags, cookie: BigInt(random.uint32()) })
  // A write's data, or fewer.
  return type === 1 ? Buffer.concat([request, Buffer.alloc(Math.min(length, random.integer(0, 5000)))]) : request
}

function bytes(random: Random, count: number): Buffer {
  return Buffer.from(Array.from({ length: count }, () => random.integer(0, 255)))
}

/** One change somewhere. */
function spoiled(random: Random, message: Buffer): Buffer {
  const at = random.integer(0, Math.max(0, message.length - 1))
  const kinds = [
    () => {
      const changed = Buffer.from(message)
      if (changed.length > 0) changed[at] ^= 1 << random.integer(0, 7)
      return changed
    },
    () => message.subarray(0, at),
    () => Buffer.concat([message.subarray(0, at), bytes(random, random.integer(1, 8)), message.subarray(at)]),
    () =>
      Buffer.concat([message.subarray(0, at), message.subarray(Math.min(message.length, at + random.integer(1, 8)))]),
    () => Buffer.concat([message, message]),
    () => {
      const changed = Buffer.from(message)
      if (changed.length >= 4)
        random.pick([u32(0), u32(2 ** 32 - 1), u32(random.uint32())]).copy(changed, Math.min(at, changed.length - 4))
      return changed
    }
  ]
  return random.pick(kinds)()
}

async function session(path: string, sizeBytes: number, random: Random, report: AttackReport): Promise<void> {
  const client = new RawClient(path)
  const parts: Buffer[] = [u32(random.chance(0.95) ? 3 : random.uint32())]
  const options = random.integer(0, 6)
  for (let i = 0; i < options; i++) parts.push(randomOption(random))
  const requests = random.chance(0.8) ? random.integer(1, 12) : 0
  if (requests > 0) {
    if (random.chance(0.8)) parts.push(optionBytes(8), optionBytes(10, queriesBytes('', 'base:allocation', queries[2])))
    parts.push(optionBytes(7, goBytes('')))
    for (let i = 0; i < requests; i++) parts.push(randomRequest(random, sizeBytes))
  }
  if (random.chance(0.8)) {
    const at = random.integer(0, parts.length - 1)
    parts[at] = spoiled(random, parts[at])
  }
  report.sessions++
  report.messages += options + requests
  let received = 0
  let errors = false
  client.socket.on('data', (content) => {
    received += content.length
    errors ||= content.includes(Buffer.from([0x80, 0, 0])) || content.includes(Buffer.from([0x80, 0x01]))
  })
  let ended = false
  const over = new Promise<void>((resolve) =>
    client.socket.once('end', () => resolve(void (ended = true))).once('close', () => resolve())
  )
  // In one piece, or torn at any place.
  const all = Buffer.concat(parts)
  const torn = random.integer(0, all.length)
  client.socket.write(all.subarray(0, torn))
  if (random.chance(0.1)) await sleep(1)
  client.socket.write(all.subarray(torn))
  if (random.chance(0.3)) client.socket.end()
  await Promise.race([over, sleep(LINGER_MS)])
  if (received > 18) report.answered++
  if (errors) report.refused++
  if (ended) report.ended++
  await client.close()
}

async function checkServed(path: string): Promise<void> {
  const client = new RawClient(path)
  await client.greet()
  await client.option(8)
  await client.option(10, queriesBytes('', 'base:allocation', queries[2]))
  if ((await client.option(7, goBytes(''))).at(-1)?.type !== 1) throw new Error('a client that behaves is refused')
  client.send(requestBytes({ type: 0, length: 65_536 }), requestBytes({ type: 7, length: 65_536, cookie: 8n }))
  const chunks = [...(await client.chunks()), ...(await client.chunks())]
  if (chunks.some(({ type }) => type >= 0x8000)) throw new Error('a client that behaves gets an error')
  await client.close()
}
