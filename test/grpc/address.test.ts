import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { parseAddress, parseListenAddress } from '../../src/grpc/address.ts'

const accepted: [string, object][] = [
  ['unix:///run/a/csi.sock', { kind: 'unix', path: '/run/a/csi.sock', text: 'unix:///run/a/csi.sock' }],
  ['unix:/run/a/csi.sock', { kind: 'unix', path: '/run/a/csi.sock', text: 'unix:///run/a/csi.sock' }],
  ['/run/a/csi.sock', { kind: 'unix', path: '/run/a/csi.sock', text: 'unix:///run/a/csi.sock' }],
  [
    '/run/with space/a:b.sock',
    { kind: 'unix', path: '/run/with space/a:b.sock', text: 'unix:///run/with space/a:b.sock' }
  ],
  ['tcp://127.0.0.1:50051', { kind: 'tcp', host: '127.0.0.1', port: 50051, text: 'tcp://127.0.0.1:50051' }],
  ['tcp://[::1]:0', { kind: 'tcp', host: '::1', port: 0, text: 'tcp://[::1]:0' }]
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
  ['tcp://0.0.0.0:50051', /mutual TLS/],
  ['tcp://:50051', /mutual TLS/],
  ['tcp://[::]:50051', /mutual TLS/],
  ['tcp://node-1:50051', /mutual TLS/],
  ['tcp://localhost:50051', /mutual TLS/]
]

for (const [text, reason] of refused) {
  test(`${JSON.stringify(text)} is refused`, (t) => {
    const error = t.throws(() => parseAddress(text), { instanceOf: DeltamapperError, message: reason })
    t.is(error.code, 'DM_CONFIG_INVALID')
    t.not(error.remedy, '')
  })
}

test('a server listens on loopback TCP only where that is allowed', (t) => {
  const error = t.throws(() => parseListenAddress('tcp://127.0.0.1:1'), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_CONFIG_INVALID')
  t.regex(error.message, /mutual TLS/)
  t.is(parseListenAddress('tcp://127.0.0.1:1', { allowLoopbackTcp: true }).kind, 'tcp')
  t.throws(() => parseListenAddress('tcp://0.0.0.0:1', { allowLoopbackTcp: true }), { message: /mutual TLS/ })
  t.is(parseListenAddress('/run/a.sock').kind, 'unix')
})
