/**
 * A driver that means harm, as a process of its own: HTTP/2 by hand, since no gRPC library would send such things.
 * Its argument says what it does, and where it listens.
 *
 *     node hostile-driver.ts endless /tmp/x.sock
 */
import { createServer, type ServerHttp2Stream } from 'node:http2'

const [, , what = '', path = ''] = process.argv

/** A message with its prefix. */
function framed(body: Uint8Array): Buffer {
  const prefix = Buffer.alloc(5)
  prefix.writeUInt32BE(body.length, 1)
  return Buffer.concat([prefix, body])
}

const MIB = 1024 * 1024
const header = [0x08, 2, 0x10, ...varint(2 ** 52)]

function varint(value: number): number[] {
  const bytes: number[] = []
  for (; value > 0x7f; value = Math.floor(value / 128)) bytes.push((value % 128) | 0x80)
  return [...bytes, value]
}

/** A message of tuples that ascend, from a block on. */
function tuples(first: number, count: number): Buffer {
  const bytes = [...header]
  for (let i = 0; i < count; i++) {
    const tuple = [0x08, ...varint((first + i) * 8192 + 4096), 0x10, ...varint(4096)]
    bytes.push(0x1a, tuple.length, ...tuple)
  }
  return framed(Buffer.from(bytes))
}

/** What is sent again and again, for as long as it is taken. */
function* sendings(): Generator<Buffer> {
  switch (what) {
    case 'one-byte-messages':
      for (const many = Buffer.concat(Array<Buffer>(4096).fill(framed(Buffer.from([0x08])))); ;) yield many
    case 'empty-messages':
      for (const many = Buffer.alloc(5 * 4096); ;) yield many
    case 'tuples':
      for (let first = 0; ; first += 4096) yield tuples(first, 4096)
    case 'same-tuples':
      for (const same = tuples(0, 8192); ;) yield same
    case 'one-huge-message': {
      // Ten gigabytes do not fit into a length of 32 bits: the largest there is, of a field that nobody knows.
      const prefix = Buffer.alloc(5)
      prefix.writeUInt32BE(2 ** 32 - 1, 1)
      yield Buffer.concat([prefix, Buffer.from([...header, 0x7a, ...varint(2 ** 32 - 64)])])
      for (const zeroes = Buffer.alloc(MIB); ;) yield zeroes
    }
    case 'ten-gigabytes': {
      const large = framed(Buffer.concat([Buffer.from([...header, 0x7a, ...varint(MIB)]), Buffer.alloc(MIB)]))
      for (let sent = 0; sent < 10 * 1024; sent++) yield large
      return
    }
    case 'garbage':
      for (const garbage = Buffer.alloc(MIB, 0xff); ;) yield garbage
  }
}

function room(stream: ServerHttp2Stream): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      stream.off('drain', done).off('close', done)
      resolve()
    }
    stream.once('drain', done).once('close', done)
  })
}

async function flood(stream: ServerHttp2Stream): Promise<void> {
  stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true })
  stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }))
  for (const sending of sendings()) {
    if (stream.destroyed) return
    if (!stream.write(sending)) await room(stream)
  }
  stream.end()
}

createServer()
  .on('stream', (stream: ServerHttp2Stream, headers) => {
    stream.on('error', () => undefined)
    if (String(headers[':path']).includes('SnapshotMetadata/')) return void flood(stream)
    if (what === 'silent') return
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true })
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }))
    // Identity: an empty answer to everything.
    stream.end(framed(new Uint8Array()))
  })
  .on('sessionError', () => undefined)
  .listen(path, () => process.stdout.write('listening\n'))
