/**
 * Certificates without cert-manager: what deploy/certificates/issue.sh makes is what agents, routers and backup software want to see.
 */
import { execFile } from 'node:child_process'
import { createPrivateKey, createPublicKey, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect } from 'node:tls'
import { promisify } from 'node:util'
import test from 'ava'
import { pino } from 'pino'
import { Certificates, createTlsServer, type TlsFiles } from '../../src/grpc/tls.ts'
import { type Manifest, objectsOf } from './objects.ts'
import { project } from './tools.ts'

const scripts = join(project, 'deploy/certificates')
const silent = pino({ level: 'silent' })
const folder = await mkdtemp(join(tmpdir(), 'issued-'))

async function run(script: string, ...args: string[]): Promise<string> {
  return (await promisify(execFile)(join(scripts, script), args, { cwd: folder })).stdout
}

const issue = async (...args: string[]) => objectsOf(await run('issue.sh', ...args))

/** A secret as it is mounted. */
async function mounted(secrets: readonly Manifest[], name: string): Promise<TlsFiles> {
  const secret = secrets.find(({ metadata }) => metadata.name === name)
  const place = await mkdtemp(join(folder, `${name}-`))
  for (const [file, content] of Object.entries(secret?.data ?? {})) {
    await writeFile(join(place, file), Buffer.from(content, 'base64'))
  }
  return { certificate: join(place, 'tls.crt'), key: join(place, 'tls.key'), ca: join(place, 'ca.crt') }
}

const certificateIn = async ({ certificate }: TlsFiles) => new X509Certificate(await readFile(certificate))

const secrets = await issue('--authority', 'authority', '--namespace', 'backup', 'topolvm', 'openebs')

test.after.always(() => rm(folder, { recursive: true }))

test('it makes the secrets that pods mount', (t) => {
  t.deepEqual(
    secrets.map(({ kind, metadata }) => `${kind} ${metadata.namespace}/${metadata.name}`),
    ['agent-tls', 'router-tls', 'router-topolvm-tls', 'router-openebs-tls'].map(
      (each) => `Secret backup/deltamapper-${each}`
    )
  )
  for (const { data } of secrets) t.deepEqual(Object.keys(data ?? {}).sort(), ['ca.crt', 'tls.crt', 'tls.key'])
})

test('names, uses and times are those that are wanted', async (t) => {
  const [agent, router, sidecar] = await Promise.all(
    ['agent-tls', 'router-tls', 'router-topolvm-tls'].map(async (each) =>
      certificateIn(await mounted(secrets, `deltamapper-${each}`))
    )
  )
  const host = 'deltamapper-router-topolvm.backup.svc'
  t.is(agent?.subjectAltName, 'DNS:agent.deltamapper')
  t.is(router?.subjectAltName, 'DNS:router.deltamapper')
  t.is(sidecar?.checkHost(host), host)
  const [serverAuth, clientAuth] = ['1.3.6.1.5.5.7.3.1', '1.3.6.1.5.5.7.3.2']
  t.deepEqual(
    [agent, router, sidecar].map((each) => each?.keyUsage),
    [[serverAuth], [clientAuth], [serverAuth]]
  )
  const authority = new X509Certificate(await readFile(join(folder, 'authority/ca.crt')))
  t.true(authority.ca)
  for (const each of [agent, router, sidecar]) {
    t.true(each?.verify(authority.publicKey))
    t.false(each?.ca)
    const days = (Date.parse(each?.validTo ?? '') - Date.now()) / 86_400_000
    t.true(days > 363 && days < 366)
  }
  t.is((await stat(join(folder, 'authority/ca.key'))).mode & 0o077, 0)
})

test('an agent lets in the router with them, and nobody else', async (t) => {
  const own = await mounted(secrets, 'deltamapper-agent-tls')
  const certificates = await Certificates.load(own, silent)
  t.teardown(() => certificates.close())
  const server = createTlsServer(certificates, 'router.deltamapper', (socket) => socket.end('welcome'), silent)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const { port } = server.address() as AddressInfo
  const ask = async ({ certificate, key, ca }: TlsFiles) => {
    const [cert, keyPem, caPem] = await Promise.all([certificate, key, ca].map((file) => readFile(file)))
    const options = { cert, key: keyPem, ca: caPem, servername: 'agent.deltamapper', ALPNProtocols: ['h2'] }
    const socket = connect({ host: '127.0.0.1', port, ...options })
    return Array.fromAsync(socket as AsyncIterable<Buffer>).then(
      (chunks) => Buffer.concat(chunks).toString(),
      (error: NodeJS.ErrnoException) => error.code ?? error.message
    )
  }
  t.is(await ask(await mounted(secrets, 'deltamapper-router-tls')), 'welcome')
  t.not(await ask(await mounted(secrets, 'deltamapper-router-topolvm-tls')), 'welcome')
  t.not(await ask(own), 'welcome')
  const others = await issue('--authority', 'another', 'topolvm')
  t.not(await ask(await mounted(others, 'deltamapper-router-tls')), 'welcome')
})

test('run again, it keeps the authority and makes new certificates', async (t) => {
  const before = await readFile(join(folder, 'authority/ca.crt'), 'utf8')
  const again = await issue('--authority', 'authority', '--days', '3', '--agent-name', 'agent.example', 'topolvm')
  t.is(await readFile(join(folder, 'authority/ca.crt'), 'utf8'), before)
  const agent = await certificateIn(await mounted(again, 'deltamapper-agent-tls'))
  t.is(agent.subjectAltName, 'DNS:agent.example')
  t.true(Date.parse(agent.validTo) - Date.now() < 4 * 86_400_000)
  t.not(agent.serialNumber, (await certificateIn(await mounted(secrets, 'deltamapper-agent-tls'))).serialNumber)
})

test('run several times at once, all have one authority', async (t) => {
  const times = Array.from({ length: 6 }, () => issue('--authority', 'raced', 'topolvm'))
  const authorities = (await Promise.all(times)).flatMap((all) => all.map(({ data }) => data?.['ca.crt']))
  t.is(authorities.length, 18)
  t.deepEqual([...new Set(authorities)], [await readFile(join(folder, 'raced/ca.crt'), 'base64')])
  const left = (await readdir(folder)).filter((each) => each.startsWith('raced'))
  t.deepEqual(left, ['raced'])
  const { publicKey } = new X509Certificate(await readFile(join(folder, 'raced/ca.crt')))
  const key = createPrivateKey(await readFile(join(folder, 'raced/ca.key')))
  t.true(createPublicKey(key).equals(publicKey), 'its key is the one of its certificate')
})

test('an authority is not put between files of somebody else', async (t) => {
  await mkdir(join(folder, 'taken'))
  await writeFile(join(folder, 'taken/file'), '')
  const { stderr } = await t.throwsAsync<Error & { stderr: string }>(issue('--authority', 'taken', 'topolvm'))
  t.regex(stderr, /taken.*folder of its own/)
  t.deepEqual(await readdir(join(folder, 'taken')), ['file'])
})

test('the SnapshotMetadataService object has the authority, and the address that is in the certificate', async (t) => {
  const options = ['--authority', 'authority/ca.crt', '--namespace', 'backup']
  const [object] = objectsOf(await run('snapshot-metadata-service.sh', ...options, 'topolvm', 'topolvm.io'))
  t.like(object, { kind: 'SnapshotMetadataService', metadata: { name: 'topolvm.io' } })
  t.is(
    Buffer.from(object?.spec.caCert ?? '', 'base64').toString(),
    await readFile(join(folder, 'authority/ca.crt'), 'utf8')
  )
  const [host = ''] = object?.spec.address.split(':') ?? []
  t.is((await certificateIn(await mounted(secrets, 'deltamapper-router-topolvm-tls'))).checkHost(host), host)
})

test('what is wrong is said, and nothing printed that could be applied', async (t) => {
  await mkdir(join(folder, 'halved'))
  await writeFile(join(folder, 'halved/ca.crt'), '')
  for (const [script, args, said] of [
    ['issue.sh', [], /which driver/],
    ['issue.sh', ['TopoLVM'], /no driver's name/],
    ['issue.sh', ['--days', 'many', 'topolvm'], /--days/],
    ['issue.sh', ['--dayz', '3', 'topolvm'], /no option/],
    ['issue.sh', ['--days'], /wants a value/],
    ['issue.sh', ['--authority', 'halved', 'topolvm'], /no ca\.key/],
    ['snapshot-metadata-service.sh', ['topolvm'], /name that it has in CSI/],
    ['snapshot-metadata-service.sh', ['--authority', 'nowhere', 'topolvm', 'topolvm.io'], /nowhere/]
  ] as const) {
    const error = await t.throwsAsync<Error & { stdout: string; stderr: string }>(() => run(script, ...args))
    t.regex(error?.stderr ?? '', said)
    t.is(error?.stdout, '')
  }
})
