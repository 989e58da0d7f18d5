import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { connectAdmin } from '../../src/grpc/admin-client.ts'
import { fullPool, inactivePool, recordingBackend, snapshot, volume } from './admin-backend.ts'
import { temporaryFolder, testServer } from './extent-backend.ts'

test('what the backend says arrives as it was said, the largest numbers and what is left out too', async (t) => {
  const { backend, calls } = recordingBackend()
  const { address } = await testServer(t, { admin: backend })
  const client = connectAdmin(address)
  t.teardown(() => client.close())
  t.deepEqual(await client.listPools({}), { pools: [fullPool, inactivePool] })
  t.deepEqual(await client.listVolumes({ pool: '' }), { volumes: [volume] })
  t.deepEqual(await client.listSnapshots({ pool: 'tank' }), { snapshots: [] })
  t.deepEqual(await client.createSnapshot({ pool: 'tank', origin: 'documents', name: 'monday' }), snapshot)
  t.deepEqual(await client.removePool({ pool: 'tank', wipe: true }), {})
  t.deepEqual(await client.reconcile({ pool: '' }), await backend.reconcile({ pool: '' }))
  t.deepEqual(calls.slice(0, 5), [
    ['listPools', {}],
    ['listVolumes', { pool: '' }],
    ['listSnapshots', { pool: 'tank' }],
    ['createSnapshot', { pool: 'tank', origin: 'documents', name: 'monday' }],
    ['removePool', { pool: 'tank', wipe: true }]
  ])
})

test('errors come back as what they were', async (t) => {
  const { address } = await testServer(t, { admin: recordingBackend().backend })
  const client = connectAdmin(address)
  t.teardown(() => client.close())
  const error = await t.throwsAsync(client.getPool({ pool: 'busy' }), { instanceOf: DeltamapperError })
  t.is(error.line, 'DM_DEVICE_BUSY: busy is in use; wait')
})

test('nobody there, somebody else there, and no unix socket', async (t) => {
  const nobody = connectAdmin(`unix://${temporaryFolder(t)}/none.sock`)
  t.teardown(() => nobody.close())
  const unreachable = await t.throwsAsync(nobody.listPools({}), { instanceOf: DeltamapperError })
  t.is(unreachable.code, 'DM_UNREACHABLE')

  const { address } = await testServer(t)
  const other = connectAdmin(address)
  t.teardown(() => other.close())
  const refused = await t.throwsAsync(other.listPools({}), { instanceOf: DeltamapperError })
  t.is(refused.code, 'DM_SERVER_FAILED')
  t.regex(refused.line, /takes no orders/)

  const error = t.throws(() => connectAdmin('tcp://127.0.0.1:1'), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_CONFIG_INVALID')
})
