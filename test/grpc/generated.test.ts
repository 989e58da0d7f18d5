/** What is generated from our .proto files is what they say now, and reflection tells it all. */
import { execFile } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { fromBinary } from '@bufbuild/protobuf'
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt'
import { Client, credentials, type MethodDefinition } from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import test from 'ava'
import { examinationOf } from '../support/examination.ts'
import { recordingBackend } from './admin-backend.ts'
import { temporaryFolder, testServer } from './extent-backend.ts'

const project = join(import.meta.dirname, '../..')
const generated = 'src/grpc/generated'

const filesBelow = (folder: string) =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((each) => each.isFile())
    .map((each) => join(each.parentPath, each.name).slice(folder.length + 1))
    .sort()

test('src/grpc/generated is what `npm run generate` makes of the protos', async (t) => {
  const folder = temporaryFolder(t)
  await promisify(execFile)(join(project, 'node_modules/.bin/buf'), ['generate', '--output', folder], {
    cwd: project,
    env: { ...process.env, PATH: `${join(project, 'node_modules/.bin')}:${process.env['PATH']}`, BUF_CACHE_DIR: folder }
  })
  const [made, kept] = [join(folder, generated), join(project, generated)]
  t.deepEqual(filesBelow(made), filesBelow(kept))
  t.true(filesBelow(kept).length > 0)
  for (const file of filesBelow(kept)) {
    t.true(readFileSync(join(made, file)).equals(readFileSync(join(kept, file))), `${file}: npm run generate`)
  }
})

test('reflection knows both services of ours, and which fields may be left out', async (t) => {
  const inventory = { examine: async () => examinationOf() }
  const { path } = await testServer(t, { admin: recordingBackend().backend, inventory })
  const client = new Client(`unix:${path}`, credentials.createInsecure())
  t.teardown(() => client.close())
  const loaded = loadSync('grpc/reflection/v1/reflection.proto', {
    includeDirs: [join(project, 'node_modules/@grpc/reflection/build/proto')],
    keepCase: true
  })
  const reflection = loaded['grpc.reflection.v1.ServerReflection'] as unknown as {
    ServerReflectionInfo: MethodDefinition<object, Answer>
  }
  interface Answer {
    file_descriptor_response?: { file_descriptor_proto: Uint8Array[] }
  }
  const { path: method, requestSerialize, responseDeserialize } = reflection.ServerReflectionInfo
  const stream = client.makeBidiStreamRequest(method, requestSerialize, responseDeserialize)
  stream.write({ file_containing_symbol: 'deltamapper.v1.Admin' })
  stream.write({ file_containing_symbol: 'deltamapper.v1.Inventory' })
  stream.end()
  const files = (await stream.toArray()).map((answer: Answer) =>
    (answer.file_descriptor_response?.file_descriptor_proto ?? []).map((bytes) =>
      fromBinary(FileDescriptorProtoSchema, bytes)
    )
  )
  t.deepEqual(
    files.map((each) => each.map(({ name }) => name)),
    [['deltamapper/v1/admin.proto'], ['deltamapper/v1/inventory.proto']]
  )
  const usage = files[0][0].messageType.find(({ name }) => name === 'PoolUsage')
  t.deepEqual(
    usage?.field.filter((field) => field.proto3Optional).map(({ name }) => name),
    ['held_metadata_snapshot']
  )
})
