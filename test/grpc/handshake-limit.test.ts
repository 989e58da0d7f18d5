/** With real connections. */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import test from 'ava'
import { HandshakeLimit } from '../../src/grpc/handshake-limit.ts'

test('of too many that wait the oldest goes; who was let in stays', async (t) => {
  const door = new HandshakeLimit(3)
  const arrived: Socket[] = []
  const server = createServer((socket) => {
    arrived.push(socket)
    door.came(socket)
    if (arrived.length === 2) door.letIn(socket)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const clients: Socket[] = []
  t.teardown(() => {
    for (const each of clients) each.destroy()
    server.close()
  })
  const gone: number[] = []
  for (let i = 0; i < 6; i++) {
    const client = connect(port, '127.0.0.1')
    clients.push(client.on('error', () => undefined).on('close', () => gone.push(i)))
    await once(server, 'connection')
  }
  // Six came, one was let in: two of the other five had to go.
  while (gone.length < 2) await new Promise((resolve) => setTimeout(resolve, 5))
  t.deepEqual(gone, [0, 2])
  t.is(door.waiting, 3)
  t.false(arrived[1].destroyed)
  clients[5].destroy()
  await once(arrived[5], 'close')
  t.is(door.waiting, 2)
})
