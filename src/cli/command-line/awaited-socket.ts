/**
 * A client that is started right after its agent (`deltamapper agent … & deltamapper allocated …`) comes before the
 * socket exists. So it waits a moment for a socket in an existing folder.
 */
import { stat } from 'node:fs/promises'
import { connect } from 'node:net'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseAddress } from '../../grpc/address.ts'

/** How long an agent may take until it listens, and how often to look, in milliseconds. */
const [MOMENT_MS, LOOK_MS] = [5000, 100]

/**
 * Resolves when something listens at a unix socket, or nothing has for a moment: then the call reports it. At once for
 * other addresses.
 */
export async function socketAwaited(address: string, momentMs = MOMENT_MS): Promise<void> {
  const parsed = parseAddress(address)
  if (parsed.kind !== 'unix') return
  const folder = await stat(dirname(parsed.path)).catch(() => undefined)
  if (!folder?.isDirectory()) return
  for (const deadline = performance.now() + momentMs; performance.now() < deadline; await sleep(LOOK_MS)) {
    if (!(await isBeingMade(parsed.path))) return
  }
}

/** Nothing listens yet: there is no socket, or one that an earlier agent has left. */
function isBeingMade(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path)
    socket.once('connect', () => resolve(false))
    socket.once('error', ({ code }: NodeJS.ErrnoException) => resolve(code === 'ENOENT' || code === 'ECONNREFUSED'))
    socket.once('connect', () => socket.destroy())
  })
}
