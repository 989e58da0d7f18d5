/**
 * A client of deltamapper.v1.Admin: what an agent's backend can do, from another process.
 */
import { type AdminBackend, adminMethods } from './admin.ts'
import { UnaryClient } from './unary.ts'

/** Calls throw the server's error, or DM_UNREACHABLE when nothing answers. */
export type AdminClient = AdminBackend & {
  /** Ends every call and closes the connection. What was begun is carried on by the server. */
  close(): void
}

/**
 * A client for the agent at a unix socket. Connects with the first call.
 *
 * @throws DM_CONFIG_INVALID for an address that is none, or not of a unix socket: there is no such service elsewhere
 */
export function connectAdmin(address: string): AdminClient {
  const client = new UnaryClient(address, 'an agent takes orders on those only', {
    what: 'takes no orders',
    remedy: 'name the socket of an agent that serves this node, and was not told to leave administration out'
  })
  const calls = adminMethods.map(([name, method]) => [name, (request: never) => client.ask(method, request)])
  return { ...(Object.fromEntries(calls) as AdminBackend), close: () => client.close() }
}
