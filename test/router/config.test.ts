import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { DEFAULT_LISTEN, loadConfig } from '../../src/router/config.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
let files = 0
async function configFile(content: object | string): Promise<string> {
  const path = join(folder, `router-${files++}.yaml`)
  await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content))
  return path
}

const tls = { certificate: 'a.crt', key: 'a.key', ca: 'ca.crt', agentName: 'agent.deltamapper' }
const least = { driverName: 'local.csi.example.org', static: { nodes: { a: 'unix:///run/a.sock' } } }

test('a driver and a node are enough', async (t) => {
  t.deepEqual<object, object>(await loadConfig({ configFile: await configFile(least) }), {
    listen: [DEFAULT_LISTEN],
    socketMode: 0o600,
    driverName: 'local.csi.example.org',
    allowLoopbackTcp: false,
    static: { nodes: { a: 'unix:///run/a.sock' }, handles: [] },
    connectSeconds: 5,
    maxStreams: 256,
    maxStreamsPerClient: 160,
    idleSeconds: 1800,
    logLevel: 'info',
    drainSeconds: 20
  })
})

test('the command line goes before the file', async (t) => {
  const path = await configFile({ ...least, listen: ['unix:///run/theirs.sock'] })
  t.deepEqual((await loadConfig({ configFile: path, listen: ['unix:///run/mine.sock'] })).listen, [
    'unix:///run/mine.sock'
  ])
  t.deepEqual((await loadConfig({ configFile: path, listen: [] })).listen, ['unix:///run/theirs.sock'])
})

test('agents over a network, with TLS; what handles say', async (t) => {
  const config = {
    ...least,
    tls,
    static: { nodes: { a: 'tcp://10.0.0.1:50051' }, handles: [{ pattern: '(?<vg>.*)/(?<lv>.*)', node: 'a' }] }
  }
  const loaded = await loadConfig({ configFile: await configFile(config) })
  t.deepEqual<unknown, unknown>([loaded.tls, loaded.static], [tls, config.static])
})

const cluster = { driverName: 'topolvm.io', tls, kubernetes: { agents: { namespace: 'deltamapper' } } }

test('a cluster: a driver that is known by its name, and where the agents are', async (t) => {
  const loaded = await loadConfig({ configFile: await configFile(cluster) })
  t.is(loaded.static, undefined)
  t.deepEqual<unknown, unknown>(loaded.kubernetes, {
    agents: { namespace: 'deltamapper', service: 'deltamapper-agent', port: 'grpc' },
    handles: []
  })
})

test('a cluster: a driver of another name, with patterns', async (t) => {
  const kubernetes = {
    driver: 'generic',
    agents: { namespace: 'backup', service: 'agents', port: 'dm' },
    handles: [{ pattern: '(?<lv>.*)' }],
    kubeconfig: '/etc/kubeconfig'
  }
  const loaded = await loadConfig({ configFile: await configFile({ driverName: 'a.example.org', tls, kubernetes }) })
  t.deepEqual<unknown, unknown>(loaded.kubernetes, kubernetes)
})

const inCluster = (more: object) => ({ ...cluster, kubernetes: { ...cluster.kubernetes, ...more } })

const wrong: [string, object | string, RegExp][] = [
  ['nothing', '', /driverName/],
  ['a misspelt field', { ...least, maxStream: 3 }, /maxStream/],
  ['no node', { ...least, static: { nodes: {} } }, /no node.*static\.nodes/],
  ['a name no driver has', { ...least, driverName: 'a b' }, /no CSI driver name/],
  ['a TCP listener', { ...least, listen: ['tcp://127.0.0.1:1'] }, /no unix socket/],
  ['an agent at no address', { ...least, static: { nodes: { a: 'node-1' } } }, /no address.*static\.nodes\.a/],
  ['a network without TLS', { ...least, static: { nodes: { a: 'tcp://10.0.0.1:1' } } }, /mutual TLS.*static\.nodes\.a/],
  ['loopback without leave', { ...least, static: { nodes: { a: 'tcp://127.0.0.1:1' } } }, /allowLoopbackTcp/],
  ['a broken pattern', { ...least, static: { ...least.static, handles: [{ pattern: '(' }] } }, /handles\[0\]/],
  [
    'a node that is none',
    { ...least, static: { ...least.static, handles: [{ pattern: '.*', node: 'b' }] } },
    /none of the nodes.*static\.handles\[0\]\.node/
  ],
  ['monitoring on a unix socket', { ...least, monitoring: 'unix:///run/x.sock' }, /TCP address|monitoring/],
  ['neither nodes nor a cluster', { driverName: 'a.example.org' }, /either static or kubernetes/],
  ['nodes and a cluster', { ...cluster, static: least.static }, /either static or kubernetes/],
  ['a cluster without TLS', { ...cluster, tls: undefined }, /mutual TLS.*tls/],
  ['a driver nobody knows', { ...cluster, driverName: 'a.example.org' }, /give it.*kubernetes\.driver/],
  ['a kind that is none', inCluster({ driver: 'zfs' }), /kubernetes\.driver/],
  ['patterns for a driver with handles of its own', inCluster({ handles: [{ pattern: '.*' }] }), /generic/],
  ['a namespace for a driver that needs none', inCluster({ driverNamespace: 'x' }), /driverNamespace/],
  ['agents nowhere', { ...cluster, kubernetes: {} }, /kubernetes\.agents/],
  ['a namespace that is a path', inCluster({ agents: { namespace: '../x' } }), /no name of Kubernetes/],
  ['TLS by halves', { ...least, tls: { certificate: 'a' } }, /agentName/],
  ['no mapping', '[]', /no mapping of fields/]
]
for (const [what, content, reason] of wrong) {
  test(`${what} is refused, by field`, async (t) => {
    const path = await configFile(content)
    const error = await t.throwsAsync(loadConfig({ configFile: path }), { instanceOf: DeltamapperError })
    t.is(error.code, 'DM_CONFIG_INVALID')
    t.regex(error.message, reason)
    t.true(error.message.includes(path))
  })
}
