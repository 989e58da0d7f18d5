/**
 * A client that means harm, as a process of its own: `node attacker.ts SOCKET ATTACK SNAPSHOT`. Goes on until it is killed.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { allocatedRequest } from '../grpc/plain-client.ts'
import { RawConnection, type RawOptions } from '../support/raw-http2.ts'

const [socket = '', attack = '', snapshot = ''] = process.argv.slice(2)

/** The message, with the largest `max_results` that there is. */
function greedyRequest(): Buffer {
  const plain = allocatedRequest(snapshot)
  const request = Buffer.concat([plain.subarray(5), Buffer.from([0x18, 0xff, 0xff, 0xff, 0xff, 0x07])])
  const header = Buffer.alloc(5)
  header.writeUInt32BE(request.length, 1)
  return Buffer.concat([header, request])
}

async function streams(connections: number, each: number, message: Buffer, options: RawOptions): Promise<void> {
  for (let i = 0; i < connections; i++) {
    const connection = await RawConnection.open(socket, options)
    connection.socket.write(connection.calls(each, message, false))
  }
}

/** Calls that are cancelled a moment after they began, so many a second over so many connections, each opened again when it is closed. */
async function cancelling(connections: number, perSecond: number): Promise<void> {
  const message = allocatedRequest(snapshot)
  const one = async () => {
    for (;;) {
      const connection = await RawConnection.open(socket)
      while (connection.socket.writable && connection.goaways.length === 0) {
        connection.socket.write(connection.calls(Math.ceil(perSecond / 20), message, true))
        await sleep(50)
      }
      connection.socket.destroy()
      await sleep(50)
    }
  }
  await Promise.all(Array.from({ length: connections }, one))
}

const attacks: Record<string, () => Promise<void>> = {
  'unread streams': () => streams(1, 256, allocatedRequest(snapshot), {}),
  'unread streams over many connections, with messages as large as may be': () => streams(4, 256, greedyRequest(), {}),
  'streams with no window': () => streams(2, 256, allocatedRequest(snapshot), { window: 0 }),
  'streams that are read': () => streams(1, 128, allocatedRequest(snapshot), { window: 2 ** 31 - 1 }),
  'cancelled calls over 16 connections': () => cancelling(16, 260),
  'cancelled calls over 100 connections': () => cancelling(100, 30),
  'connections that say nothing': async () => {
    for (let i = 0; i < 300; i++) {
      const connection = await RawConnection.open(socket)
      if (i % 2 === 0) connection.socket.write('PRI')
    }
  }
}

process.on('message', () => process.exit())
export const attackNames = Object.keys(attacks)
if (process.argv[1] === import.meta.filename) {
  setInterval(() => undefined, 1000)
  await attacks[attack]()
}
