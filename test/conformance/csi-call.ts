/**
 * One call of the Controller service, for hooks in tests: `node csi-call.ts SOCKET METHOD REQUEST`, the request
 * with single quotes for double ones.
 */
import { Client, credentials } from '@grpc/grpc-js'
import { controllerMethods } from '../../src/grpc/loaded-protos.ts'

const [socket, method = '', request = ''] = process.argv.slice(2)
const { path, requestSerialize, responseDeserialize } = controllerMethods[method]
const client = new Client(`unix:${socket}`, credentials.createInsecure())
client.makeUnaryRequest(
  path,
  requestSerialize,
  responseDeserialize,
  JSON.parse(request.replaceAll("'", '"')) as object,
  (error) => {
    client.close()
    if (error) throw error
  }
)
