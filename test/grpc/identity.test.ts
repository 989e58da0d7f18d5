import { readFileSync } from 'node:fs'
import { status, type ServiceError } from '@grpc/grpc-js'
import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { checkDriverName, isPortableDriverName, packageVersion } from '../../src/grpc/identity.ts'
import { testServer } from './extent-backend.ts'
import { PlainClient } from './plain-client.ts'

test('driver names', (t) => {
  for (const name of ['topolvm.io', 'local.csi.openebs.io', 'a', 'A-1.b', '9p.io', 'x'.repeat(63)]) {
    t.notThrows(() => checkDriverName(name), name)
  }
  for (const name of ['', '.io', 'io.', '-a', 'a-', 'a_b', 'a b', 'a/b', 'é.io', 'a\n', 'x'.repeat(64)]) {
    const error = t.throws(() => checkDriverName(name), { instanceOf: DeltamapperError }, JSON.stringify(name))
    t.is(error.code, 'DM_CONFIG_INVALID')
  }
})

test('names that conformance tests accept begin and end with a letter', (t) => {
  t.true(isPortableDriverName('topolvm.io'))
  t.true(isPortableDriverName('a'))
  t.false(isPortableDriverName('9p.io'))
  t.false(isPortableDriverName('driver.v1'))
})

test('the version is that of the package', (t) => {
  const file = readFileSync(`${import.meta.dirname}/../../package.json`, 'utf8')
  t.is(packageVersion(), (JSON.parse(file) as { version: string }).version)
})

test('the start-up of the CSI sidecar: name, readiness, capabilities', async (t) => {
  let ready = false
  const { path } = await testServer(t, { identity: { driverName: 'topolvm.io' }, isReady: () => ready })
  // The authority it sends is the one of grpc-go for unix sockets.
  const client = new PlainClient(t, path, { 'grpc.default_authority': 'localhost' })
  t.deepEqual<object, object>(await client.unary('Identity', 'GetPluginInfo'), {
    name: 'topolvm.io',
    vendor_version: packageVersion(),
    manifest: {}
  })
  t.deepEqual<object, object>(await client.unary('Identity', 'Probe'), { ready: { value: false } })
  ready = true
  t.deepEqual<object, object>(await client.unary('Identity', 'Probe'), { ready: { value: true } })
  t.deepEqual<object, object>(await client.unary('Identity', 'GetPluginCapabilities'), {
    capabilities: [{ type: 'service', service: { type: 'SNAPSHOT_METADATA_SERVICE' } }]
  })
})

test('what waiting does not help is FAILED_PRECONDITION', async (t) => {
  for (const reason of [new DeltamapperError('DM_READ_FAILED', 'no pool', 'plug it in'), new Error('no pool')]) {
    const { path } = await testServer(t, { isReady: () => Promise.reject(reason) })
    const error = await t.throwsAsync<ServiceError>(new PlainClient(t, path).unary('Identity', 'Probe'))
    t.is(error.code, status.FAILED_PRECONDITION)
    t.regex(error.details, /no pool/)
    t.deepEqual(error.metadata.get('grpc-status-details-bin'), [])
  }
})

test('a name that needs care is said at the start, a wrong one stops it', async (t) => {
  const { log } = await testServer(t, { identity: { driverName: 'driver.v1' } })
  t.like(log[0], { level: 40, driverName: 'driver.v1' })
  await t.throwsAsync(testServer(t, { identity: { driverName: 'a b' } }), { message: /no CSI driver name/ })
})
