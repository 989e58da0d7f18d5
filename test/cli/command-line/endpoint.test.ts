/** Endpoints over a network: `deltamapper allocated` and `delta` against a server with mutual TLS. */
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { pino } from 'pino'
import { Certificates, type TlsFiles } from '../../../src/grpc/tls.ts'
import { some, testServer } from '../../grpc/extent-backend.ts'
import { Authority } from '../../support/certificates.ts'
import { testFolder } from '../../support/test-folder.ts'
import { complaint, runCommand } from '../run-command.ts'

const folder = testFolder(test)
let authority: Authority
let serverFiles: TlsFiles, clientFiles: TlsFiles
test.before(async () => {
  authority = await Authority.create(join(folder, 'authority'))
  serverFiles = await authority.issue('agent.test')
  clientFiles = await authority.issue('router.test')
})

async function endpoint(t: ExecutionContext): Promise<string> {
  const certificates = await Certificates.load(serverFiles, pino({ level: 'silent' }))
  t.teardown(() => certificates.close())
  const { server } = await testServer(t, {
    listen: ['tcp://127.0.0.1:0'],
    tls: { certificates, clientName: 'router.test' }
  })
  return server.addresses[0]
}

function tlsOptions({ ca, certificate, key }: TlsFiles, name = 'agent.test'): string[] {
  return ['--tls-ca', ca, '--tls-cert', certificate, '--tls-key', key, '--tls-server-name', name]
}

test('with the right certificates the answer is that of any endpoint', async (t) => {
  const address = await endpoint(t)
  const tls = tlsOptions(clientFiles)
  for (const words of [
    ['allocated', 'some'],
    ['delta', 'empty', 'some']
  ]) {
    const { status, stdout, stderr } = await runCommand([...words, '--endpoint', address, ...tls, '-o', 'json'])
    t.is(status, 0, stderr)
    t.is((JSON.parse(stdout) as { block_metadata: unknown[] }).block_metadata.length, some.length)
  }
  const fromEnvironment = await runCommand(['allocated', 'some', ...tls], { env: { DELTAMAPPER_ENDPOINT: address } })
  t.is(fromEnvironment.status, 0, fromEnvironment.stderr)
})

test('a server or a client with another name gets nothing', async (t) => {
  const address = await endpoint(t)
  for (const [what, tls] of [
    ['another server was meant', tlsOptions(clientFiles, 'elsewhere.test')],
    ['not a name that is let in', tlsOptions(serverFiles)]
  ] as const) {
    const result = await runCommand(['allocated', 'some', '--endpoint', address, ...tls])
    t.is(result.status, 1, what)
    t.is(result.stdout, '')
    t.regex(complaint(result), /DM_UNREACHABLE/)
  }
})

const all = ['--tls-ca', 'a', '--tls-cert', 'b', '--tls-key', 'c', '--tls-server-name', 'd']
const refused: [string, string[], RegExp][] = [
  [
    'some of the options',
    ['--endpoint', 'tcp://10.0.0.1:1', ...all.slice(0, 4)],
    /needs --tls-key, --tls-server-name;/
  ],
  ['a network without TLS', ['--endpoint', 'tcp://10.0.0.1:1'], /needs mutual TLS/],
  ['files that are not there', ['--endpoint', 'tcp://10.0.0.1:1', ...all], /b cannot be used for TLS/],
  ['TLS without an endpoint', ['--metadata', 'x', ...all], /cannot be used with/]
]
for (const [what, words, reason] of refused) {
  test(`refused: ${what}`, async (t) => {
    const result = await runCommand(['allocated', 'some', ...words])
    t.not(result.status, 0)
    t.regex(complaint(result), reason)
  })
}

test('a unix socket speaks no TLS', async (t) => {
  const result = await runCommand(['allocated', 'some', '--endpoint', 'unix:///x.sock', ...tlsOptions(clientFiles)])
  t.is(result.status, 2)
  t.regex(complaint(result), /nothing speaks TLS/)
})
