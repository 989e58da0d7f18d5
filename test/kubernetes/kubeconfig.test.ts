/**
 * What a kubeconfig may hold, each asked of a server that says who was let in.
 */
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { type AddressInfo, connect, type Socket } from 'node:net'
import { join } from 'node:path'
import type { TLSSocket } from 'node:tls'
import test, { type ExecutionContext } from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { KubernetesApi } from '../../src/kubernetes/api.ts'
import { Authority } from '../support/certificates.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
let folders = 0
const ownFolder = async () => {
  const path = join(folder, String(folders++))
  await mkdir(path)
  return path
}

/** A server that answers everything, and keeps what was brought. */
async function server(t: ExecutionContext) {
  const brought: IncomingHttpHeaders[] = []
  const http = createServer((request, response) => {
    brought.push(request.headers)
    response.setHeader('content-type', 'application/json')
    response.end('{"metadata":{"name":"x","resourceVersion":"1"},"items":[]}')
  })
  http.listen(0, '127.0.0.1')
  await once(http, 'listening')
  t.teardown(() => http.close())
  const { port } = http.address() as AddressInfo
  // The library asks over plain HTTP only where it is told not to care.
  const cluster = { server: `http://127.0.0.1:${port}`, 'insecure-skip-tls-verify': true }
  const asked = async (api: KubernetesApi) => {
    await api.get('/api/v1/x')
    return brought.at(-1)!
  }
  return { cluster, brought, asked }
}

function config(cluster: object, user: object, name = 'here') {
  return {
    clusters: [{ name, cluster }],
    users: [{ name, user }],
    contexts: [{ name, context: { cluster: name, user: name } }],
    'current-context': name
  }
}

async function written(path: string, content: object | string): Promise<string> {
  await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content))
  return path
}

function refusal(t: ExecutionContext, options: ConstructorParameters<typeof KubernetesApi>[0]): string {
  const error = t.throws(() => new KubernetesApi(options), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_CONFIG_INVALID')
  return error.message
}

test('who somebody is, in every way that a file may say it', async (t) => {
  const { cluster, asked } = await server(t)
  const at = await ownFolder()
  await writeFile(join(at, 'token'), 'from a file\n')
  // The token is what it was told, in base64, so that it is one word.
  const script = `#!/bin/sh
printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}' "$(printf '%s' "$1 $MORE $KUBERNETES_EXEC_INFO" | base64 -w0)"
`
  await written(join(at, 'plugin'), script)
  await chmod(join(at, 'plugin'), 0o755)
  const exec = { apiVersion: 'client.authentication.k8s.io/v1', command: './plugin', args: ['a'] }
  const users: [object, (sent: IncomingHttpHeaders) => void][] = [
    [{ token: 'plain' }, ({ authorization }) => t.is(authorization, 'Bearer plain')],
    // Relative to the file, without its line's end, and before a token.
    [{ tokenFile: 'token', token: 'plain' }, ({ authorization }) => t.is(authorization, 'Bearer from a file')],
    [{ tokenFile: join(at, 'token') }, ({ authorization }) => t.is(authorization, 'Bearer from a file')],
    [{ username: 'me', password: 'p:w' }, ({ authorization }) => t.is(authorization, `Basic ${btoa('me:p:w')}`)],
    [
      { token: 'plain', as: 'another' },
      (sent) => t.like(sent, { authorization: 'Bearer plain', 'impersonate-user': 'another' })
    ],
    [
      { exec: { ...exec, env: [{ name: 'MORE', value: 'b' }], provideClusterInfo: true } },
      ({ authorization = '' }) => {
        const [word, more, ...info] = Buffer.from(authorization.slice(7), 'base64').toString().split(' ')
        t.deepEqual([word, more], ['a', 'b'])
        t.like(JSON.parse(info.join(' ')), {
          ...{ kind: 'ExecCredential', apiVersion: exec.apiVersion },
          spec: { interactive: false, cluster: { server: cluster.server } }
        })
      }
    ],
    [{}, ({ authorization }) => t.is(authorization, undefined)]
  ]
  for (const [user, check] of users) {
    const sent = await asked(
      new KubernetesApi({ kubeconfig: await written(join(at, 'config'), config(cluster, user)) })
    )
    check(sent)
    t.regex(sent['user-agent'] ?? '', /^deltamapper\/\d+\.\d+/)
  }
  const nobody = { ...config(cluster, {}), contexts: [{ name: 'here', context: { cluster: 'here' } }] }
  t.is(
    (await asked(new KubernetesApi({ kubeconfig: await written(join(at, 'config'), nobody) }))).authorization,
    undefined
  )
})

test('watches say who asks, too', async (t) => {
  const { cluster, brought } = await server(t)
  const kubeconfig = await written(join(await ownFolder(), 'config'), config(cluster, { token: 'x' }))
  const { signal } = new AbortController()
  await t.throwsAsync(new KubernetesApi({ kubeconfig }).watch('/api/v1/x', {}, '1', () => undefined, signal))
  t.regex(brought.at(-1)?.['user-agent'] ?? '', /^deltamapper\//)
})

/** A server of the name `api.test` at an address of another, which says whose certificate it was shown. */
async function tlsServer(t: ExecutionContext) {
  const at = await ownFolder()
  const authority = await Authority.create(join(at, 'authority'))
  const own = await authority.issue('api.test')
  const [key, cert, ca] = await Promise.all([own.key, own.certificate, own.ca].map((file) => readFile(file)))
  const shown: string[] = []
  const https = createTlsServer(
    { key, cert, ca, requestCert: true, rejectUnauthorized: false },
    (request, response) => {
      shown.push((request.socket as TLSSocket).getPeerCertificate().subjectaltname ?? 'nothing')
      response.setHeader('content-type', 'application/json')
      response.end('{"metadata":{"name":"x","resourceVersion":"1"},"items":[]}')
    }
  )
  https.listen(0, '127.0.0.1')
  await once(https, 'listening')
  t.teardown(() => {
    https.close()
    https.closeAllConnections()
  })
  const { port } = https.address() as AddressInfo
  return { at, authority, shown, port, server: `https://127.0.0.1:${port}` }
}

const base64 = async (file: string) => (await readFile(file)).toString('base64')

test('how the server is reached and trusted, and certificates, in every way that a file may say it', async (t) => {
  const { at, authority, shown, port, server } = await tlsServer(t)
  const stranger = await Authority.create(join(at, 'stranger'))
  const [ours, theirs] = [await authority.issue('me.test'), await stranger.issue('me.test')]
  const caData = await base64(ours.ca)
  const ask = async (cluster: object, user: object = {}) =>
    new KubernetesApi({ kubeconfig: await written(join(at, 'config'), config({ server, ...cluster }, user)) }).get('/x')
  const trusted = { 'tls-server-name': 'api.test', 'certificate-authority-data': caData }
  const data = { 'client-certificate-data': await base64(ours.certificate), 'client-key-data': await base64(ours.key) }
  const files = { 'client-certificate': ours.certificate, 'client-key': ours.key }
  for (const [cluster, user, whose] of [
    [trusted, {}, 'nothing'],
    [{ 'tls-server-name': 'api.test', 'certificate-authority': ours.ca }, files, 'DNS:me.test'],
    // What is in the file itself counts, whatever else is named, there or not.
    [{ ...trusted, 'certificate-authority': theirs.ca }, data, 'DNS:me.test'],
    [trusted, { ...data, 'client-certificate': '/nowhere', 'client-key': '/nowhere' }, 'DNS:me.test'],
    [{ 'insecure-skip-tls-verify': true }, data, 'DNS:me.test']
  ] as const) {
    t.is((await ask(cluster, user))?.metadata.name, 'x')
    t.is(shown.at(-1), whose)
  }
  for (const [cluster, says] of [
    [{ 'certificate-authority-data': caData }, /IP|altname|does not match/i],
    [{ ...trusted, 'tls-server-name': 'other.test' }, /other\.test|altname/],
    [{ 'tls-server-name': 'api.test' }, /not of an authority that is known here/],
    [{ ...trusted, 'certificate-authority-data': await base64(theirs.ca) }, /not of an authority/]
  ] as const) {
    const error = await t.throwsAsync(ask(cluster), { instanceOf: DeltamapperError, message: says })
    t.is(error.code, 'DM_CLUSTER_UNREACHABLE')
  }

  // Through a proxy, which is asked for a tunnel to the server.
  const asked: string[] = []
  const tunnels: Socket[] = []
  const proxy = createServer().on('connect', (request, socket: Socket) => {
    asked.push(request.url ?? '')
    const to = connect(port, '127.0.0.1', () => {
      socket.write('HTTP/1.1 200 OK\r\n\r\n')
      socket.pipe(to).pipe(socket)
    })
    tunnels.push(socket, to)
  })
  proxy.listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  t.teardown(() => {
    for (const each of tunnels) each.destroy()
    proxy.close()
  })
  const throughProxy = {
    ...trusted,
    server: 'https://kube.invalid:6443',
    'proxy-url': `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`
  }
  t.is((await ask(throughProxy, data))?.metadata.name, 'x')
  t.deepEqual(asked, ['kube.invalid:6443'])
  t.is(shown.at(-1), 'DNS:me.test')
})

test('a program makes credentials: a certificate, until they end, again once the server does not take them', async (t) => {
  const { at, authority, shown, server } = await tlsServer(t)
  const { certificate, key, ca } = await authority.issue('program.test')
  const credential = (status: object) => ({
    apiVersion: 'client.authentication.k8s.io/v1beta1',
    kind: 'ExecCredential',
    status
  })
  const pem = {
    clientCertificateData: `${await readFile(certificate, 'utf8')}`,
    clientKeyData: await readFile(key, 'utf8')
  }
  await written(join(at, 'answer'), credential(pem))
  await written(join(at, 'plugin'), `#!/bin/sh\necho >>${at}/runs\ncat ${at}/answer\n`)
  await chmod(join(at, 'plugin'), 0o755)
  const exec = {
    apiVersion: 'client.authentication.k8s.io/v1beta1',
    command: join(at, 'plugin'),
    args: null,
    env: null
  }
  const cluster = { server, 'tls-server-name': 'api.test', 'certificate-authority': ca }
  const fresh = async () =>
    new KubernetesApi({ kubeconfig: await written(join(at, 'config'), config(cluster, { exec })) })
  const runs = async () => (await readFile(join(at, 'runs'), 'utf8')).length
  const api = await fresh()
  await Promise.all([api.get('/x'), api.get('/x'), api.get('/x')])
  t.is(shown.at(-1), 'DNS:program.test')
  t.is(await runs(), 1)
  await api.get('/x')
  t.is(await runs(), 1)
  await written(join(at, 'answer'), credential({ ...pem, expirationTimestamp: '2001-01-01T00:00:00Z' }))
  const expiring = await fresh()
  await expiring.get('/x')
  await expiring.get('/x')
  t.is(await runs(), 3)

  let isTaken = false
  const http = createServer((_request, response) => {
    response.statusCode = isTaken ? 200 : 401
    response.end('{"metadata":{"name":"x"}}')
  })
  http.listen(0, '127.0.0.1')
  await once(http, 'listening')
  t.teardown(() => http.close())
  const refusing = {
    server: `http://127.0.0.1:${(http.address() as AddressInfo).port}`,
    'insecure-skip-tls-verify': true
  }
  await written(join(at, 'answer'), credential({ token: 'old' }))
  const refused = new KubernetesApi({ kubeconfig: await written(join(at, 'config'), config(refusing, { exec })) })
  t.is((await t.throwsAsync(refused.get('/x'), { instanceOf: DeltamapperError })).code, 'DM_ACCESS_DENIED')
  isTaken = true
  await refused.get('/x')
  t.is(await runs(), 5)
})

test('a program that makes no credentials is told from a server that does not answer', async (t) => {
  const { cluster, brought } = await server(t)
  const at = await ownFolder()
  const apiVersion = 'client.authentication.k8s.io/v1'
  const fails = async (script: string, says: RegExp, more: object = {}) => {
    await written(join(at, 'plugin'), `#!/bin/sh\n${script}\n`)
    await chmod(join(at, 'plugin'), 0o755)
    const exec = { apiVersion, command: './plugin', ...more }
    const api = new KubernetesApi({ kubeconfig: await written(join(at, 'config'), config(cluster, { exec })) })
    const error = await t.throwsAsync(api.get('/x'), { instanceOf: DeltamapperError, message: says })
    t.is(error.code, 'DM_ACCESS_DENIED')
    t.false(error.line.includes('hunter2'), error.line)
    return error
  }
  await fails('echo your session has ended >&2; exit 4', /it ended with status 4: your session has ended/)
  await fails('echo hunter2', /it prints no JSON/)
  await fails('echo \'{"token":"hunter2"}\'', /it prints no ExecCredential/)
  const said = (status: string, version = apiVersion) =>
    `echo '{"apiVersion":"${version}","kind":"ExecCredential","status":${status}}'`
  await fails(
    said('{"token":"hunter2"}', 'client.authentication.k8s.io/v1beta1'),
    /it answers in .*v1beta1, and .* wants/
  )
  await fails(said('{}'), /neither token nor certificate/)
  await fails(said('{"clientCertificateData":"x"}'), /not both/)
  await fails(said('{"token":"hunter2","expirationTimestamp":"soon"}'), /is no time/)
  await fails('', /it wants to ask somebody/, { interactiveMode: 'Always' })
  const { remedy } = await fails('', /no such program in a folder of PATH/, {
    command: 'no-such-plugin',
    installHint: 'get\nit'
  })
  t.is(remedy, 'get it')
  await fails('', /no such program there/, { command: './other' })
  t.deepEqual(brought, [])
})

test('what cannot be kept is refused, not left out', async (t) => {
  const { cluster } = await server(t)
  const at = await ownFolder()
  const file = join(at, 'config')
  const of = async (user: object, more: object = {}) =>
    refusal(t, { kubeconfig: await written(file, { ...config(cluster, user), ...more }) })
  for (const field of ['as-uid', 'as-groups', 'as-user-extra']) {
    t.regex(await of({ token: 'x', as: 'y', [field]: ['z'] }), new RegExp(`${field}, which is not kept`))
  }
  t.regex(await of({ tokenFile: 'nowhere' }), /ENOENT/)
  execFileSync('mkfifo', [join(at, 'fifo')])
  for (const field of ['tokenFile', 'client-key', 'client-certificate']) {
    t.regex(await of({ [field]: 'fifo' }), new RegExp(`its ${field}, .*/fifo, is no file`))
  }
  t.regex(refusal(t, { kubeconfig: join(at, 'fifo') }), /is no file \(but a FIFO\)/)
  t.regex(refusal(t, { kubeconfig: at }), /is no file \(but a folder\)/)
  t.regex(await of({}, { users: [] }), /context here names a user that it has not/)
  t.regex(await of({}, { clusters: [] }), /context here names a cluster that it has not/)
  t.regex(await of({}, { 'current-context': '' }), /has no current context/)
  for (const text of ['', '[]', 'null', '"text"']) {
    t.regex(refusal(t, { kubeconfig: await written(file, text) }), /holds no kubeconfig/)
  }
  const quoted = refusal(t, { kubeconfig: await written(file, 'users:\n- token: *hunter2\n') })
  t.false(quoted.includes('hunter2'))
})

test.serial(
  'of several files the first one that has something counts, and one that is not there does not',
  async (t) => {
    const { cluster, asked } = await server(t)
    const at = await ownFolder()
    await mkdir(join(at, 'b'))
    await writeFile(join(at, 'b', 'token'), 'second')
    const first = await written(join(at, 'first'), { ...config(cluster, { token: 'first' }), 'current-context': '' })
    const second = await written(join(at, 'b', 'config'), {
      ...config({ server: 'https://nowhere.invalid' }, { tokenFile: 'token' }),
      contexts: [{ name: 'there', context: { cluster: 'here', user: 'second' } }],
      users: [
        { name: 'here', user: { token: 'never' } },
        { name: 'second', user: { tokenFile: 'token' } }
      ],
      'current-context': 'there'
    })
    const third = await written(join(at, 'third'), { 'current-context': 'never' })
    const before = process.env['KUBECONFIG']
    t.teardown(() => {
      if (before === undefined) delete process.env['KUBECONFIG']
      else process.env['KUBECONFIG'] = before
    })
    process.env['KUBECONFIG'] = ['', join(at, 'nowhere'), first, second, third].join(':')
    t.is((await asked(new KubernetesApi())).authorization, 'Bearer second')
    t.is((await asked(new KubernetesApi({ context: 'here' }))).authorization, 'Bearer first')
    process.env['KUBECONFIG'] = join(at, 'nowhere')
    t.regex(refusal(t, {}), /ENOENT/)
  }
)
