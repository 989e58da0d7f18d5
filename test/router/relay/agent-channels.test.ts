import { copyFile, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { pino } from 'pino'
import { AgentChannels } from '../../../src/router/relay/agent-channels.ts'
import { getMetadataAllocated } from '../../../src/grpc/snapshot-metadata-methods.ts'
import { Certificates } from '../../../src/grpc/tls.ts'
import { Authority } from '../../support/certificates.ts'
import { testFolder } from '../../support/test-folder.ts'
import { eventually, testServer } from '../../grpc/extent-backend.ts'

const folder = testFolder(test)
const quiet = pino({ level: 'silent' })

/** For a call that is over at once. */
function clientFor(channels: AgentChannels, address: string, party?: string) {
  using taken = channels.take(address, party)
  return taken.client
}

test('calls share a channel; new certificates make a new one, and calls under way go on over the old', async (t) => {
  const authority = await Authority.create(join(folder, 'authority'))
  const router = await authority.issue('router.test')
  const serverCertificates = await Certificates.load(await authority.issue('agent.test'), quiet)
  t.teardown(() => serverCertificates.close())
  const agent = await testServer(t, {
    listen: ['tcp://127.0.0.1:0'],
    tls: { certificates: serverCertificates, clientName: 'router.test' }
  })
  const [address] = agent.server.addresses

  const certificates = await Certificates.load(router, quiet, 10)
  t.teardown(() => certificates.close())
  const channels = new AgentChannels({ certificates, agentName: 'agent.test' })
  t.teardown(() => channels.close())
  const ask = (snapshotId: string) => {
    const { path, requestSerialize } = getMetadataAllocated
    const request = { snapshotId, startingOffset: 0n, maxResults: 100 }
    return channels
      .take(address)
      .client.makeServerStreamRequest(path, requestSerialize, (bytes: Buffer) => bytes, request)
  }
  const before = clientFor(channels, address)
  t.is(clientFor(channels, address), before)
  const underWay = ask('gated')
  const messages = underWay[Symbol.asyncIterator]()
  t.false((await messages.next()).done)

  const renewed = await authority.issue('router.test')
  await copyFile(renewed.key, router.key)
  await copyFile(renewed.certificate, router.certificate)
  t.true(await eventually(() => clientFor(channels, address) !== before))
  let answered = 0
  for await (const message of ask('some')) answered += (message as Buffer).length
  t.true(answered > 0)
  agent.backend.letGo()
  let more = 0
  while (!(await messages.next()).done) more++
  t.true(more > 0)
})

test('an address that is left is left to the calls under way', async (t) => {
  const [one, other] = [await testServer(t), await testServer(t)]
  const channels = new AgentChannels()
  t.teardown(() => channels.close())
  const [left, kept] = [clientFor(channels, one.address), clientFor(channels, other.address)]
  const { path, requestSerialize } = getMetadataAllocated
  const request = { snapshotId: 'gated', startingOffset: 0n, maxResults: 100 }
  const stream = left.makeServerStreamRequest(path, requestSerialize, (bytes: Buffer) => bytes, request)
  const messages = stream[Symbol.asyncIterator]()
  t.false((await messages.next()).done)
  channels.retain(new Set([other.address]))
  t.is(clientFor(channels, other.address), kept)
  t.not(clientFor(channels, one.address), left, 'it may come back')
  one.backend.letGo()
  let more = 0
  while (!(await messages.next()).done) more++
  t.true(more > 0)
})

/** Connections to a port of 127.0.0.1, as its server sees them: proc_net_tcp(5). */
async function established(port: number): Promise<number> {
  const ours = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')}`
  const rows = (await readFile('/proc/net/tcp', 'utf8')).split('\n').map((line) => line.trim().split(/\s+/))
  return rows.filter(([, local, , state]) => local === ours && state === '01').length
}

test('who comes takes the connection with the fewest calls, and stays there while it has any', async (t) => {
  const agent = await testServer(t, { listen: ['tcp://127.0.0.1:0'], allowLoopbackTcp: true })
  const [address = ''] = agent.server.addresses
  const channels = new AgentChannels()
  t.teardown(() => channels.close())
  const many = Array.from({ length: 100 }, () => channels.take(address, 'greedy'))
  t.is(new Set(many.map(({ client }) => client)).size, 1)
  // However many others there are, and whatever they are called, none comes behind the hundred calls.
  const others = Array.from({ length: 60 }, (_, i) => channels.take(address, `unix:pid ${i}`))
  const clients = new Set(others.map(({ client }) => client))
  t.is(clients.size, 3)
  t.false(clients.has(many[0].client))
  for (const [i, { client }] of others.entries()) {
    using again = channels.take(address, `unix:pid ${i}`)
    t.is(again.client, client)
  }
  // A client whose calls are over is a newcomer; disposing of one twice counts once.
  for (const taken of many) taken[Symbol.dispose]()
  for (const taken of many) taken[Symbol.dispose]()
  using newcomer = channels.take(address, 'newcomer')
  t.is(newcomer.client, many[0].client)
  for (const taken of others) taken[Symbol.dispose]()
  using lone = channels.take(address, 'lone')
  t.true(clients.has(lone.client))

  // (grpc-js has channels of the same kind share a connection unless it is told not to.)
  const { path, requestSerialize } = getMetadataAllocated
  const request = { snapshotId: 'some', startingOffset: 0n, maxResults: 100 }
  for (const channel of [...clients, many[0].client, ...clients]) {
    const stream = channel.makeServerStreamRequest(path, requestSerialize, (bytes: Buffer) => bytes, request)
    for await (const message of stream) t.true((message as Buffer).length > 0)
  }
  // One that failed on a busy machine may be there beside its successor.
  t.true((await established(Number(address.slice(address.lastIndexOf(':') + 1)))) >= 4)
  channels.retain(new Set([address]))
  t.is(clientFor(channels, address, 'newcomer'), newcomer.client)
  channels.retain(new Set())
  t.not(clientFor(channels, address, 'newcomer'), newcomer.client)
})
