/**
 * What is said of a server that cannot be reached, over real sockets: what is wrong there, in words that are not those of grpc-js, Node or
 * OpenSSL, and what to do about it.
 */
import { chmod, mkdir } from 'node:fs/promises'
import { once } from 'node:events'
import { createServer as createHttpServer } from 'node:http'
import { type AddressInfo, createServer, type Server } from 'node:net'
import { join } from 'node:path'
import { createServer as createTlsServer } from 'node:tls'
import { readFileSync } from 'node:fs'
import test, { type ExecutionContext } from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { connect } from '../../src/grpc/client.ts'
import { connectionFailure } from '../../src/grpc/connection-failure.ts'
import { readTlsMaterial, type TlsFiles } from '../../src/grpc/tls.ts'
import { Authority } from '../support/certificates.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
const NOBODY = 65_534
let ours: Authority
let theirs: Authority
test.before(async () => {
  ours = await Authority.create(join(folder, 'ours'))
  theirs = await Authority.create(join(folder, 'theirs'))
})

/** How a call to an address ends that reaches nobody who speaks with us. */
async function said(t: ExecutionContext, address: string, files?: TlsFiles): Promise<DeltamapperError> {
  const tls = files && { material: await readTlsMaterial(files), serverName: 'agent.test' }
  const client = connect(address, tls && { tls })
  t.teardown(() => client.close())
  const error = await t.throwsAsync(client.allocated({ snapshotId: 'a/b' }), { instanceOf: DeltamapperError })
  t.is(error?.code, 'DM_UNREACHABLE', error?.line)
  t.notRegex(
    error?.line ?? '',
    /Resolution note|Last error|No connection established|NGHTTP2|error:[0-9A-F]{8}|\d{4}-\d\d-\d\dT/
  )
  return error
}

async function listening(t: ExecutionContext, server: Server): Promise<string> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  return `tcp://127.0.0.1:${(server.address() as AddressInfo).port}`
}

test('nothing listens, or there is no socket', async (t) => {
  const server = createServer()
  const address = await listening(t, server)
  server.close()
  const refused = await said(t, address)
  t.regex(refused.message, /does not answer \(nothing listens there \(ECONNREFUSED\)\)$/)
  const missing = await said(t, `unix://${join(folder, 'none.sock')}`)
  t.regex(
    missing.line,
    /\(there is no such socket \(ENOENT\)\); start the agent there \(deltamapper agent --listen unix:/
  )
})

test.serial('the socket may not be opened by this user', async (t) => {
  const shut = join(folder, 'shut')
  await mkdir(shut)
  const server = createServer()
  server.listen(join(shut, 'a.sock'))
  await once(server, 'listening')
  t.teardown(() => server.close())
  await Promise.all([chmod(folder, 0o755), chmod(join(shut, 'a.sock'), 0o600)])
  const isRoot = process.geteuid?.() === 0
  if (isRoot) process.seteuid?.(NOBODY)
  try {
    const error = await said(t, `unix://${join(shut, 'a.sock')}`)
    t.regex(
      error.line,
      /this user may not open the socket \(EACCES\)\); run as root, or as a member of the group of the socket/
    )
  } finally {
    if (isRoot) process.seteuid?.(0)
  }
})

test('what answers is another service', async (t) => {
  const http = await listening(
    t,
    createHttpServer((_, response) => response.end('hello'))
  )
  t.regex((await said(t, http)).line, /what answers there does not speak gRPC\); correct the address/)
  const closing = await listening(
    t,
    createServer((socket) => socket.destroy())
  )
  t.regex((await said(t, closing)).line, /\((?:the connection was broken off|it closed the connection at once)/)
})

test('certificates do not go together, and each side says of which', async (t) => {
  const [agent, stranger, router] = [
    await ours.issue('agent.test'),
    await theirs.issue('agent.test'),
    await ours.issue('router.test')
  ]
  const late = await ours.issue('agent.test', { days: -1 })
  const serve = ({ certificate, key, ca }: TlsFiles) =>
    listening(
      t,
      createTlsServer(
        {
          cert: readFileSync(certificate),
          key: readFileSync(key),
          ca: readFileSync(ca),
          ALPNProtocols: ['h2'],
          requestCert: true,
          rejectUnauthorized: true
        },
        (socket) => socket.end()
      ).on('tlsClientError', () => undefined)
    )
  const unknown = await said(t, await serve(stranger), router)
  t.regex(
    unknown.line,
    /its certificate is not of an authority that is known here\); give both sides certificates of one authority/
  )
  const expired = await said(t, await serve(late), router)
  t.regex(expired.line, /its certificate has expired\); renew it/)
  const refuses = await said(t, await serve({ ...agent, ca: theirs.certificate }), router)
  t.regex(
    refuses.line,
    /\((?:it refuses our certificate|it closed the connection at once|the connection was broken off)/
  )
  const plain = await said(
    t,
    await listening(
      t,
      createServer((socket) => socket.end('hello, world\r\n'))
    ),
    router
  )
  t.regex(plain.line, /it does not speak TLS there\); correct the port, or configure tls on both sides/)
})

test('what nobody knows stays as it was said, without what only grpc-js understands', (t) => {
  const text =
    'No connection established. Last error: Error: the moon is down (2026-11-30T01:02:03.456Z). Resolution note: '
  t.deepEqual(connectionFailure(text), { why: 'the moon is down' })
  t.deepEqual(connectionFailure(''), { why: 'no reason given' })
})
