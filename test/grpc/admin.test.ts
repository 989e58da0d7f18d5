import {
  Client,
  credentials,
  loadPackageDefinition,
  type ServiceClientConstructor,
  type ServiceError,
  status
} from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import test, { type ExecutionContext } from 'ava'
import { adminMethods } from '../../src/grpc/admin.ts'
import { connectAdmin } from '../../src/grpc/admin-client.ts'
import { connect } from '../../src/grpc/client.ts'
import { fullPool, recordingBackend } from './admin-backend.ts'
import { temporaryFolder, testServer } from './extent-backend.ts'
import { PlainClient } from './plain-client.ts'

/** How the rest of the world sees it: made from the .proto file by grpc-js and proto-loader alone. */
const loaded = loadPackageDefinition(
  loadSync(`${import.meta.dirname}/../../src/grpc/protos/deltamapper/v1/admin.proto`, {
    ...{ keepCase: true, longs: String, enums: String, defaults: true }
  })
) as unknown as { deltamapper: { v1: { Admin: ServiceClientConstructor } } }

type Unary = (request: object, callback: (error: ServiceError | null, response: unknown) => void) => void

function plainCall(t: ExecutionContext, target: string) {
  const client = new loaded.deltamapper.v1.Admin(target, credentials.createInsecure())
  t.teardown(() => client.close())
  return (method: string, request: object) =>
    new Promise<Record<string, unknown>>((resolve, reject) => {
      const call = (client as unknown as Record<string, Unary>)[method]
      call.call(client, request, (error, response) => {
        if (error) reject(error)
        else resolve(response as Record<string, unknown>)
      })
    })
}

test('every method of the service is answered by the backend method of its name', async (t) => {
  const { backend, calls } = recordingBackend()
  const { path } = await testServer(t, { admin: backend })
  const call = plainCall(t, `unix:${path}`)
  t.is(adminMethods.length, 35)
  for (const [, { name }] of adminMethods) await call(name, {})
  t.deepEqual(
    calls.map(([method]) => method),
    adminMethods.map(([method]) => method)
  )
})

test('on the wire it is what the .proto file says', async (t) => {
  const { backend, calls } = recordingBackend()
  const { path } = await testServer(t, { admin: backend })
  const call = plainCall(t, `unix:${path}`)
  const pool = await call('GetPool', { pool: 'tank' })
  t.like(pool, {
    ...{ name: 'tank', state: 'POOL_STATE_OUT_OF_DATA_SPACE', when_full: 'WHEN_FULL_QUEUE' },
    ...{ block_bytes: '65536', transaction_id: '18446744073709551615', snapshots: 16777214 }
  })
  t.like(pool['usage'], { data_used_bytes: '9007199254740991', held_metadata_snapshot: '4161599', needs_check: true })
  await call('CreatePool', {
    ...{ name: 'a', data_device: '/d', metadata_device: '/m', block_bytes: '65536', low_water_bytes: '0' },
    when_full: 'WHEN_FULL_ERROR'
  })
  t.deepEqual(calls.at(-1), [
    'createPool',
    {
      ...{ name: 'a', dataDevice: '/d', metadataDevice: '/m', blockBytes: 65536, lowWaterBytes: 0 },
      whenFull: 'error'
    }
  ])
})

test('a count that no number holds is refused with words, and the backend not called', async (t) => {
  const { backend, calls } = recordingBackend()
  const { path } = await testServer(t, { admin: backend })
  const call = plainCall(t, `unix:${path}`)
  const beyond = { pool: 'tank', name: 'kind', size_bytes: '9007199254740992' }
  const error = await t.throwsAsync<ServiceError>(call('CreateVolume', beyond))
  t.is(error.code, status.INVALID_ARGUMENT)
  t.is(error.details, 'DM_ARGUMENT_INVALID: size_bytes is 9007199254740992; give a whole number below 2^53')
  t.deepEqual(calls, [])
  await call('CreateVolume', { ...beyond, size_bytes: '9007199254740991' })
  t.deepEqual(calls, [
    ['createVolume', { pool: 'tank', name: 'kind', sizeBytes: Number.MAX_SAFE_INTEGER, inactive: false }]
  ])
})

test('errors are statuses with a code of ours, and defects are INTERNAL', async (t) => {
  const { backend } = recordingBackend()
  const { path, log } = await testServer(t, { admin: backend })
  const call = plainCall(t, `unix:${path}`)
  const busy = await t.throwsAsync<ServiceError>(call('GrowPool', { pool: 'busy' }))
  t.is(busy.code, status.UNAVAILABLE)
  t.is(busy.details, 'DM_DEVICE_BUSY: busy is in use; wait')
  const defect = await t.throwsAsync<ServiceError>(call('GrowPool', { pool: 'defect' }))
  t.is(defect.code, status.INTERNAL)
  t.regex(defect.details, /^DM_INTERNAL: undefined is no pool; /)
  const lines = log.filter(({ msg }) => msg === 'admin call')
  t.like(lines[0], { method: 'growPool', request: { pool: 'busy' }, status: 'UNAVAILABLE', code: 'DM_DEVICE_BUSY' })
  t.like(lines[1], { method: 'growPool', status: 'INTERNAL', level: 50 })
})

test('health knows the service, where there is one', async (t) => {
  const { path } = await testServer(t, { admin: recordingBackend().backend })
  const service = 'deltamapper.v1.Admin'
  const with_ = new PlainClient(t, path)
  t.deepEqual<object, object>(await with_.unary('Health', 'check', { service }), { status: 'SERVING' })
  const other = await testServer(t)
  const without = new PlainClient(t, other.path)
  const error = await t.throwsAsync<ServiceError>(without.unary('Health', 'check', { service }))
  t.is(error.code, status.NOT_FOUND)
  const unimplemented = await t.throwsAsync<ServiceError>(plainCall(t, `unix:${other.path}`)('ListPools', {}))
  t.is(unimplemented.code, status.UNIMPLEMENTED)
})

test('reflection describes it', async (t) => {
  const { path } = await testServer(t, { admin: recordingBackend().backend })
  const directory = `${import.meta.dirname}/../../node_modules/@grpc/reflection/build/proto`
  const { grpc } = loadPackageDefinition(
    loadSync('grpc/reflection/v1/reflection.proto', { includeDirs: [directory], keepCase: true })
  ) as unknown as { grpc: { reflection: { v1: { ServerReflection: ServiceClientConstructor } } } }
  const client = new grpc.reflection.v1.ServerReflection(`unix:${path}`, credentials.createInsecure())
  t.teardown(() => (client as unknown as Client).close())
  const stream = (client as unknown as Record<string, () => NodeJS.ReadWriteStream & { write(request: object): void }>)[
    'ServerReflectionInfo'
  ]()
  const answers: Record<string, unknown>[] = []
  stream.on('data', (answer: Record<string, unknown>) => answers.push(answer))
  stream.write({ list_services: '*' })
  stream.write({ file_containing_symbol: 'deltamapper.v1.Admin' })
  stream.end()
  await new Promise((resolve) => stream.on('end', resolve))
  const listed = answers[0]?.['list_services_response'] as { service: { name: string }[] }
  t.true(listed.service.some(({ name }) => name === 'deltamapper.v1.Admin'))
  const described = answers[1]?.['file_descriptor_response'] as { file_descriptor_proto: Buffer[] }
  t.true(described.file_descriptor_proto.some((each) => each.includes('CreateSnapshotRequest')))
})

test('over TCP there is no such service, and everything else', async (t) => {
  const { backend, calls } = recordingBackend()
  const unix = `unix://${temporaryFolder(t)}/a.sock`
  const { server } = await testServer(t, {
    admin: backend,
    listen: ['tcp://127.0.0.1:0', unix],
    allowLoopbackTcp: true
  })
  const target = server.addresses[0].replace('tcp://', 'ipv4:')
  const error = await t.throwsAsync<ServiceError>(plainCall(t, target)('ListPools', {}))
  t.is(error.code, status.UNIMPLEMENTED)
  t.deepEqual(calls, [])
  const client = connect(server.addresses[0])
  t.teardown(() => client.close())
  t.is((await client.allocated({ snapshotId: 'some' })).capacityBytes, 65_536_000)
  const admin = connectAdmin(unix)
  t.teardown(() => admin.close())
  t.deepEqual(await admin.getPool({ pool: 'tank' }), fullPool)
})

test('a drain waits for what is under way, and refuses what comes then', async (t) => {
  const { backend, calls, hold } = recordingBackend()
  const { promise, resolve } = Promise.withResolvers<void>()
  hold.until = promise
  const { server, address } = await testServer(t, { admin: backend })
  const client = connectAdmin(address)
  t.teardown(() => client.close())
  const under = client.growPool({ pool: 'tank' })
  while (calls.length === 0) await new Promise((next) => setTimeout(next, 5))
  const drained = server.drain(5000)
  const late = await t.throwsAsync(client.growPool({ pool: 'tank' }))
  t.is((late as { code?: string }).code, 'DM_SHUTTING_DOWN')
  resolve()
  t.deepEqual(await under, fullPool)
  await drained
  t.is(calls.length, 1)
})
