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
    return channels.to(address).makeServerStreamRequest(path, requestSerialize, (bytes: Buffer) => bytes, request)
  }
  const before = channels.to(address)
  t.is(channels.to(address), before)
  const underWay = ask('gated')
  const messages = underWay[Symbol.asyncIterator]()
  t.false((await messages.next()).done)

  const renewed = await authority.issue('router.test')
  await copyFile(renewed.key, router.key)
  await copyFile(renewed.certificate, router.certificate)
  t.true(await eventually(() => channels.to(address) !== before))
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
  const [left, kept] = [channels.to(one.address), channels.to(other.address)]
  const { path, requestSerialize } = getMetadataAllocated
  const request = { snapshotId: 'gated', startingOffset: 0n, maxResults: 100 }
  const stream = left.makeServerStreamRequest(path, requestSerialize, (bytes: Buffer) => bytes, request)
  const messages = stream[Symbol.asyncIterator]()
  t.false((await messages.next()).done)
  channels.retain(new Set([other.address]))
  t.is(channels.to(other.address), kept)
  t.not(channels.to(one.address), left, 'it may come back')
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

test('clients are spread over a few connections to an agent, and each stays on its own', async (t) => {
  const agent = await testServer(t, { listen: ['tcp://127.0.0.1:0'], allowLoopbackTcp: true })
  const [address = ''] = agent.server.addresses
  const channels = new AgentChannels()
  t.teardown(() => channels.close())
  const parties = Array.from({ length: 100 }, (_, i) => `unix:pid ${i}`)
  const first = parties.map((party) => channels.to(address, party))
  t.is(new Set(first).size, 4)
  for (const [i, party] of parties.entries()) t.is(channels.to(address, party), first[i])

  // (grpc-js has channels of the same kind share a connection unless it is told not to.)
  const { path, requestSerialize } = getMetadataAllocated
  const request = { snapshotId: 'some', startingOffset: 0n, maxResults: 100 }
  for (const channel of [...new Set(first), ...new Set(first)]) {
    const stream = channel.makeServerStreamRequest(path, requestSerialize, (bytes: Buffer) => bytes, request)
    for await (const message of stream) t.true((message as Buffer).length > 0)
  }
  t.is(await established(Number(address.slice(address.lastIndexOf(':') + 1))), 4)
  const kept = channels.to(address, parties[1])
  channels.retain(new Set([address]))
  t.is(channels.to(address, parties[1]), kept)
  channels.retain(new Set())
  for (const [i, party] of parties.entries()) t.not(channels.to(address, party), first[i])
})
