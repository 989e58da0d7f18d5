/**
 * A client of deltamapper.v1.Admin: what an agent's backend can do, from another process.
 */
import { Client, credentials, type ServiceError, status } from '@grpc/grpc-js'
import { DeltamapperError } from '../errors.ts'
import { parseAddress } from './address.ts'
import { type AdminBackend, type AdminCalls, type AdminMethod, adminMethod, adminService } from './admin.ts'
import { fromStatus } from './status.ts'

/** Calls throw the server's error, or DM_UNREACHABLE when nothing answers. */
export type AdminClient = AdminBackend & {
  /** Ends every call and closes the connection. What was begun is carried on by the server. */
  close(): void
}

/** Lists of many thousand volumes come in one message. */
const maximumMessageBytes = 64 * 1024 * 1024

/**
 * A client for the agent at a unix socket. Connects with the first call.
 *
 * @throws DM_CONFIG_INVALID for an address that is none, or not of a unix socket: there is no such service elsewhere
 */
export function connectAdmin(address: string): AdminClient {
  const parsed = parseAddress(address)
  if (parsed.kind !== 'unix') {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `${parsed.text} is no unix socket, and an agent takes orders on those only`,
      'name its socket, as in unix:///run/deltamapper/agent.sock'
    )
  }
  const client = new Client(`unix:${parsed.path}`, credentials.createInsecure(), {
    'grpc.max_receive_message_length': maximumMessageBytes,
    // What changes something is not to be done twice.
    'grpc.enable_retries': 0,
    'grpc.use_local_subchannel_pool': 1,
    'grpc.enable_http_proxy': 0,
    'grpc.enable_channelz': 0
  })
  const call = <M extends AdminMethod>(name: M, request: AdminCalls[M][0]): Promise<AdminCalls[M][1]> => {
    const { path, requestSerialize, responseDeserialize } = adminMethod(name)
    return new Promise((resolve, reject) => {
      client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, (error, response) => {
        if (error) reject(toError(error, parsed.text))
        else resolve(response!)
      })
    })
  }
  const names = Object.values(adminService).map(({ originalName }) => originalName as AdminMethod)
  const calls = Object.fromEntries(names.map((name) => [name, (request: never) => call(name, request)]))
  return { ...(calls as unknown as AdminBackend), close: () => client.close() }
}

function toError(error: ServiceError, address: string): DeltamapperError {
  // A server that has no such service. No error of ours has this status.
  if (error.code === status.UNIMPLEMENTED) {
    return new DeltamapperError(
      'DM_SERVER_FAILED',
      `${address} takes no orders`,
      'name the socket of an agent that serves this node, and was not told to leave administration out'
    )
  }
  return fromStatus(error, address)
}
