/**
 * What a kubeconfig may hold, each asked of a server that says who was let in.
 */
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, writeFile } from 'node:fs/promises'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { KubernetesApi } from '../../src/kubernetes/api.ts'
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
printf '{"kind":"ExecCredential","status":{"token":"%s"}}' "$(printf '%s' "$1 $MORE $KUBERNETES_EXEC_INFO" | base64 -w0)"
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
