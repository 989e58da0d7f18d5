import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { parseAddress, parseConnectAddress, parseHostPort, parseListenAddress } from '../../src/grpc/address.ts'

const accepted: [string, object][] = [
  ['unix:///run/a/csi.sock', { kind: 'unix', path: '/run/a/csi.sock', text: 'unix:///run/a/csi.sock' }],
  ['unix:/run/a/csi.sock', { kind: 'unix', path: '/run/a/csi.sock', text: 'unix:///run/a/csi.sock' }],
  ['/run/a/csi.sock', { kind: 'unix', path: '/run/a/csi.sock', text: 'unix:///run/a/csi.sock' }],
  [
    '/run/with space/a:b.sock',
    { kind: 'unix', path: '/run/with space/a:b.sock', text: 'unix:///run/with space/a:b.sock' }
  ],
  ['tcp://127.0.0.1:50051', { kind: 'tcp', host: '127.0.0.1', port: 50051, text: 'tcp://127.0.0.1:50051' }],
  ['tcp://[::1]:0', { kind: 'tcp', host: '::1', port: 0, text: 'tcp://[::1]:0' }],
  ['tcp://0.0.0.0:50051', { kind: 'tcp', host: '0.0.0.0', port: 50051, text: 'tcp://0.0.0.0:50051' }],
  [
    'tcp://node-1.example.org:1',
    { kind: 'tcp', host: 'node-1.example.org', port: 1, text: 'tcp://node-1.example.org:1' }
  ]
]

for (const [text, address] of accepted) {
  test(`${text} is an address`, (t) => {
    t.deepEqual<object, object>(parseAddress(text), address)
  })
}

const refused: [string, RegExp][] = [
  ['', /no address/],
  ['csi.sock', /no address/],
  ['./csi.sock', /no address/],
  ['unix:csi.sock', /not absolute/],
  ['unix://run/csi.sock', /not absolute/],
  ['unix:///run/a/', /no socket file/],
  ['/', /no socket file/],
  ['/run/a\0b.sock', /no socket file/],
  ['http://127.0.0.1:80', /no address/],
  ['tcp://127.0.0.1', /no address/],
  ['tcp://127.0.0.1:65536', /no TCP port/],
  ['tcp://:50051', /no address/],
  ['tcp://[]:50051', /no address/],
  ['tcp://[10.0.0.1]:50051', /no address/],
  ['tcp://10.0.0.256:50051', /no address/],
  ['tcp://-node:50051', /no address/],
  ['tcp://node/1:50051', /no address/]
]

for (const [text, reason] of refused) {
  test(`${JSON.stringify(text)} is refused`, (t) => {
    const error = t.throws(() => parseAddress(text), { instanceOf: DeltamapperError, message: reason })
    t.is(error.code, 'DM_CONFIG_INVALID')
    t.not(error.remedy, '')
  })
}

test('a server listens on TCP with TLS, or on loopback where that is allowed', (t) => {
  const error = t.throws(() => parseListenAddress('tcp://127.0.0.1:1'), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_CONFIG_INVALID')
  t.regex(error.message, /mutual TLS/)
  t.is(parseListenAddress('tcp://127.0.0.1:1', { allowLoopbackTcp: true }).kind, 'tcp')
  t.throws(() => parseListenAddress('tcp://0.0.0.0:1', { allowLoopbackTcp: true }), { message: /mutual TLS/ })
  t.is(parseListenAddress('tcp://0.0.0.0:1', { tls: true }).kind, 'tcp')
  t.is(parseListenAddress('/run/a.sock').kind, 'unix')
})

test('a client connects over TCP with TLS, or to loopback', (t) => {
  t.is(parseConnectAddress('tcp://127.0.0.1:1').kind, 'tcp')
  t.is(parseConnectAddress('tcp://[::1]:1').kind, 'tcp')
  t.is(parseConnectAddress('tcp://node-1:1', { tls: true }).kind, 'tcp')
  for (const text of ['tcp://node-1:1', 'tcp://localhost:1', 'tcp://10.0.0.7:1', 'tcp://[::]:1']) {
    t.throws(() => parseConnectAddress(text), { instanceOf: DeltamapperError, message: /mutual TLS/ })
  }
})

test('an address of others is HOST:PORT', (t) => {
  const parsed = (text: string) => {
    const { host, port } = parseHostPort(text) ?? {}
    return host === undefined ? undefined : [host, port]
  }
  t.deepEqual(parsed('sidecar.topolvm.svc:6443'), ['sidecar.topolvm.svc', 6443])
  t.deepEqual(parsed('10.0.0.7:443'), ['10.0.0.7', 443])
  t.deepEqual(parsed('[fd00::1]:443'), ['fd00::1', 443])
  for (const text of [
    '',
    'junk',
    ':443',
    'host:',
    'host:0',
    'host:99999',
    'http://host:80',
    'fd00::1:443',
    '/run/a.sock'
  ]) {
    t.is(parsed(text), undefined, text)
  }
})
