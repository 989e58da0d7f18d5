/** Mutual TLS over real sockets: our server and our client, with certificates made for this. */
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { copyFile, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { connect as connectPlain } from 'node:net'
import { join } from 'node:path'
import { connect as connectTls } from 'node:tls'
import { promisify } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import { pino } from 'pino'
import { DeltamapperError } from '../../src/errors.ts'
import { connect } from '../../src/grpc/client.ts'
import { Certificates, type TlsFiles, type TlsMaterial } from '../../src/grpc/tls.ts'
import { Authority } from '../support/certificates.ts'
import { testFolder } from '../support/test-folder.ts'
import { capacityBytes, eventually, type TestServer, testServer } from './extent-backend.ts'

const folder = testFolder(test)
let authority: Authority, stranger: Authority
let agentFiles: TlsFiles, routerFiles: TlsFiles
test.before(async () => {
  authority = await Authority.create(join(folder, 'authority'))
  stranger = await Authority.create(join(folder, 'stranger'))
  agentFiles = await authority.issue('agent.test')
  routerFiles = await authority.issue('router.test')
})
const lookEveryMs = 20
const quiet = pino({ level: 'silent' })

async function material({ certificate, key, ca }: TlsFiles): Promise<TlsMaterial> {
  return { cert: await readFile(certificate), key: await readFile(key), ca: await readFile(ca) }
}

async function tlsServer(t: ExecutionContext, files = agentFiles, host = '127.0.0.1'): Promise<TestServer> {
  const certificates = await Certificates.load(files, quiet, lookEveryMs)
  t.teardown(() => certificates.close())
  return testServer(t, { listen: [`tcp://${host}:0`], tls: { certificates, clientName: 'router.test' } })
}

/** How a call ends: with a capacity, or with an error's code and words. */
async function ask(
  { server }: TestServer,
  files: TlsFiles = routerFiles,
  serverName = 'agent.test',
  address = server.addresses[0]
): Promise<number | string> {
  const client = connect(address, { tls: { material: await material(files), serverName } })
  try {
    const { capacityBytes, batches } = await client.allocated({ snapshotId: 'some' })
    for await (const { count } of batches) if (count === 0) return 'an empty batch'
    return capacityBytes ?? 'no capacity'
  } catch (error) {
    return (error as DeltamapperError).line
  } finally {
    client.close()
  }
}

test('with the right certificates, over IPv4, IPv6 and by name', async (t) => {
  const server = await tlsServer(t)
  t.is(await ask(server), capacityBytes)
  const byName = server.server.addresses[0].replace('127.0.0.1', 'localhost')
  t.is(await ask(server, routerFiles, 'agent.test', byName), capacityBytes)
  const everywhere = await tlsServer(t, agentFiles, '0.0.0.0')
  const [, port] = /^tcp:\/\/0\.0\.0\.0:(\d+)$/.exec(everywhere.server.addresses[0])!
  t.is(await ask(everywhere, routerFiles, 'agent.test', `tcp://127.0.0.1:${port}`), capacityBytes)
})

const refusedClients: [string, () => Promise<TlsFiles>, RegExp][] = [
  ['of another name', () => authority.issue('another.test'), /does not carry the name router\.test/],
  ['of a wildcard name', () => authority.issue('*.test'), /does not carry the name/],
  ['that has expired', () => authority.issue('router.test', { days: -1 }), /CERT_HAS_EXPIRED/],
  [
    'of another authority',
    async () => ({ ...(await stranger.issue('router.test')), ca: authority.certificate }),
    /UNABLE_TO_VERIFY|UNABLE_TO_GET|SELF_SIGNED/
  ]
]
for (const [what, issue, reason] of refusedClients) {
  test(`a client's certificate ${what} is refused, and the log says why`, async (t) => {
    const server = await tlsServer(t)
    t.regex(String(await ask(server, await issue())), /^DM_UNREACHABLE/)
    const refusal = () => server.log.find(({ msg }) => msg === 'a client was refused')
    t.true(await eventually(() => refusal() !== undefined))
    t.regex(String(refusal()?.['reason']), reason)
    t.is(refusal()?.['remoteAddress'], '127.0.0.1')
    t.is(server.backend.requests.length, 0)
    t.is(await ask(server), capacityBytes, 'others are not concerned')
  })
}

test('whoever opens connections and says nothing, or nonsense, keeps nobody out and fills no log', async (t) => {
  const server = await tlsServer(t)
  const port = Number(new URL(server.server.addresses[0]).port)
  const come = () => {
    const socket = connectPlain(port, '127.0.0.1').on('error', () => undefined)
    t.teardown(() => socket.destroy())
    return socket
  }
  for (let i = 0; i < 400; i++) await once(come(), 'connect')
  t.is(await ask(server), capacityBytes)
  for (let i = 0; i < 60; i++) await once(come().resume().end('GET / HTTP/1.1\r\n\r\n'), 'close')
  t.is(await ask(server), capacityBytes)
  const refusals = server.log.filter(({ msg }) => msg === 'a client was refused')
  t.is(refusals.length, 20)
  // Also where the handshake itself has failed.
  for (const { remoteAddress } of refusals) t.is(remoteAddress, '127.0.0.1')
})

const refusedServers: [string, () => Promise<TlsFiles>, RegExp][] = [
  ['of another name', () => authority.issue('another.test'), /^DM_UNREACHABLE.*does not carry the name agent\.test/],
  ['that has expired', () => authority.issue('agent.test', { days: -1 }), /^DM_UNREACHABLE.*expired/],
  [
    'of another authority',
    async () => ({ ...(await stranger.issue('agent.test')), ca: authority.certificate }),
    /^DM_UNREACHABLE.*certificate/
  ]
]
for (const [what, issue, reason] of refusedServers) {
  test(`a server's certificate ${what} is refused`, async (t) => {
    const server = await tlsServer(t, await issue())
    t.regex(String(await ask(server)), reason)
    t.is(server.backend.requests.length, 0)
  })
}

test('who shows no certificate, or speaks no TLS 1.3, HTTP/2 or TLS at all, gets nothing', async (t) => {
  const server = await tlsServer(t)
  const port = Number(/:(\d+)$/.exec(server.server.addresses[0])![1])
  const mine = await material(routerFiles)
  const { ca } = mine
  const checks = { port, servername: 'agent.test', ca, checkServerIdentity: () => undefined }
  for (const options of [
    { ...checks, ALPNProtocols: ['h2'] },
    { ...checks, ...mine, maxVersion: 'TLSv1.2' as const, ALPNProtocols: ['h2'] },
    { ...checks, ...mine }
  ]) {
    const socket = connectTls(options)
    socket.on('error', () => undefined)
    // The settings frame of HTTP/2 would be the first word of a server that talks to us.
    socket.on('data', () => t.fail('it was talked to'))
    await new Promise((resolve) => socket.on('close', resolve))
  }
  const plain = connectPlain(port)
  plain.on('error', () => undefined)
  plain.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')
  const heard: Buffer[] = []
  plain.on('data', (bytes) => heard.push(bytes))
  await new Promise((resolve) => plain.on('close', resolve))
  // A TLS alert at most.
  t.true(Buffer.concat(heard).length <= 7)
  const unencrypted = connect(server.server.addresses[0])
  await t.throwsAsync(unencrypted.allocated({ snapshotId: 'some' }), { instanceOf: DeltamapperError })
  unencrypted.close()
  t.is(server.backend.requests.length, 0)
  t.is(await ask(server), capacityBytes)
})

/** Files of its own, which may change. */
async function copied(name: string, files: TlsFiles): Promise<TlsFiles> {
  const to = join(folder, name)
  await mkdir(to)
  const copy = { certificate: join(to, 'tls.crt'), key: join(to, 'tls.key'), ca: join(to, 'ca.crt') }
  for (const file of ['certificate', 'key', 'ca'] as const) await copyFile(files[file], copy[file])
  return copy
}

test('certificates and authorities that change count without a restart; open connections stay', async (t) => {
  const files = await copied('reload', agentFiles)
  const server = await tlsServer(t, files)
  const open = connect(server.server.addresses[0], {
    tls: { material: await material(routerFiles), serverName: 'agent.test' }
  })
  t.teardown(() => open.close())
  t.is((await open.allocated({ snapshotId: 'empty' })).capacityBytes, capacityBytes)

  const successor = await Authority.create(join(folder, 'successor'))
  const newAgent = await successor.issue('agent.test')
  const newRouter = await successor.issue('router.test')
  t.regex(String(await ask(server, newRouter)), /^DM_UNREACHABLE/)
  for (const file of ['certificate', 'key', 'ca'] as const) await copyFile(newAgent[file], files[file])
  const deadline = Date.now() + 300_000
  while ((await ask(server, newRouter)) !== capacityBytes && Date.now() < deadline);
  t.is(await ask(server, newRouter), capacityBytes)
  t.regex(String(await ask(server)), /^DM_UNREACHABLE/, 'the authority before is gone')
  t.is((await open.allocated({ snapshotId: 'empty' })).capacityBytes, capacityBytes)
})

test('files that do not go together, or go away, leave the old ones in use, which is said once', async (t) => {
  const files = await copied('torn', agentFiles)
  const log: { msg?: string; reason?: string }[] = []
  const logger = pino({}, { write: (line: string) => log.push(JSON.parse(line) as object) })
  const certificates = await Certificates.load(files, logger, 5)
  t.teardown(() => certificates.close())
  const before = certificates.material
  let changes = 0
  certificates.onChange(() => changes++)
  const other = await authority.issue('agent.test')
  await copyFile(other.certificate, files.certificate)
  t.true(await eventually(() => log.length > 0))
  t.regex(String(log[0].reason), /key of another certificate/)
  await new Promise((resolve) => setTimeout(resolve, 50))
  t.is(log.length, 1)
  t.is(certificates.material, before)
  await copyFile(other.key, files.key)
  t.true(await eventually(() => changes === 1))
  t.deepEqual(certificates.material.cert, await readFile(other.certificate))
  t.is(log.at(-1)?.msg, 'certificates were read again')
})

const unusable: [string, (files: TlsFiles) => Promise<unknown>, RegExp][] = [
  [
    'a certificate that is missing',
    async (files) => ({ ...files, certificate: '/nowhere/tls.crt' }),
    /ENOENT.*tls\.crt/
  ],
  ['a key of another certificate', async (files) => ({ ...files, key: routerFiles.key }), /key of another certificate/],
  ['an authority that is none', async (files) => ({ ...files, ca: files.key }), /issued-\d+\.key cannot be used/],
  [
    'an empty file',
    async (files) => {
      const empty = join(folder, 'empty.crt')
      await writeFile(empty, '')
      return { ...files, ca: empty }
    },
    /empty\.crt cannot be used/
  ]
]
for (const [what, spoil, reason] of unusable) {
  test(`${what} is said at start`, async (t) => {
    const files = (await spoil(agentFiles)) as TlsFiles
    const error = await t.throwsAsync(Certificates.load(files, quiet), { instanceOf: DeltamapperError })
    t.is(error.code, 'DM_CONFIG_INVALID')
    t.regex(error.message, reason)
    t.notRegex(error.message, /PRIVATE KEY/)
  })
}

test('a certificate of ours that has expired is said, but no reason not to start', async (t) => {
  const log: { msg?: string }[] = []
  const logger = pino({}, { write: (line: string) => log.push(JSON.parse(line) as object) })
  const certificates = await Certificates.load(await authority.issue('agent.test', { days: -1 }), logger)
  certificates.close()
  t.regex(String(log[0].msg), /has expired/)
})

test('a drain ends connections over TLS, and what has not finished its handshake', async (t) => {
  const server = await tlsServer(t)
  t.is(await ask(server), capacityBytes)
  const port = Number(/:(\d+)$/.exec(server.server.addresses[0])![1])
  const silent = connectPlain(port)
  await once(silent, 'connect')
  const open = connect(server.server.addresses[0], {
    tls: { material: await material(routerFiles), serverName: 'agent.test' }
  })
  t.teardown(() => open.close())
  await open.allocated({ snapshotId: 'empty' })
  const closed = once(silent, 'close')
  await server.server.drain(0)
  await closed
  await t.throwsAsync(open.allocated({ snapshotId: 'some' }), { instanceOf: DeltamapperError })
})

test('a key that is a FIFO is no key: neither a start nor a reload waits for it', async (t) => {
  const files = await copied('fifo', agentFiles)
  const log: { reason?: string }[] = []
  const logger = pino({}, { write: (line: string) => log.push(JSON.parse(line) as object) })
  const certificates = await Certificates.load(files, logger, 5)
  t.teardown(() => certificates.close())
  await rm(files.key)
  await promisify(execFile)('mkfifo', [files.key])
  t.true(await eventually(() => log.length > 0))
  t.regex(String(log[0].reason), /is no file \(but a FIFO\)/)
  const error = await t.throwsAsync<DeltamapperError>(Certificates.load(files, logger), {
    instanceOf: DeltamapperError
  })
  t.is(error?.code, 'DM_CONFIG_INVALID')
  // And goes on looking.
  await rm(files.key)
  const other = await authority.issue('agent.test')
  await copyFile(other.key, files.key)
  await copyFile(other.certificate, files.certificate)
  t.true(await eventually(() => certificates.material.cert.equals(readFileSync(other.certificate))))
})
