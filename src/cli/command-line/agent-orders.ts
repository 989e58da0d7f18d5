/** A connection to an agent, for orders. */
import type { AdminClient } from '../../grpc/admin-client.ts'
import { endpointAddress } from './endpoint.ts'

/**
 * Connects to an agent for `use`.
 *
 * @throws what the agent answers; DM_UNREACHABLE; UsageError
 */
export async function withAdmin<T>(endpoint: string | undefined, use: (agent: AdminClient) => Promise<T>): Promise<T> {
  const address = endpointAddress(endpoint)
  // Loaded only now: help and usage errors need none of it.
  const [{ connectAdmin }, { socketAwaited }] = await Promise.all([
    import('../../grpc/admin-client.ts'),
    import('./awaited-socket.ts')
  ])
  await socketAwaited(address)
  const agent = connectAdmin(address)
  try {
    return await use(agent)
  } finally {
    agent.close()
  }
}
