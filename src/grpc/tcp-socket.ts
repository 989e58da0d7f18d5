/** Listening on a TCP address, and the errors of that. */
import { once } from 'node:events'
import type { AddressInfo, Server } from 'node:net'
import { DeltamapperError } from '../errors.ts'
import { systemRemedy } from '../system-errors.ts'
import { type Address, formatTcp } from './address.ts'

/**
 * @returns its address, with the real port where 0 was given
 * @throws DM_SOCKET_IN_USE, DM_CONFIG_INVALID
 */
export async function listenOnTcp(
  server: Server,
  { host, port, text }: Extract<Address, { kind: 'tcp' }>
): Promise<string> {
  server.listen(port, host)
  try {
    await once(server, 'listening')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    throw code === 'EADDRINUSE'
      ? new DeltamapperError('DM_SOCKET_IN_USE', `another process is listening on ${text}`, 'choose another port')
      : new DeltamapperError('DM_CONFIG_INVALID', `cannot listen on ${text} (${code})`, remedyFor(error))
  }
  return formatTcp(host, (server.address() as AddressInfo).port)
}

function remedyFor(error: unknown): string {
  switch ((error as NodeJS.ErrnoException).code ?? '') {
    case 'EACCES':
      return 'choose a port from 1024 on: those below take CAP_NET_BIND_SERVICE'
    case 'EADDRNOTAVAIL':
      return 'name an address that this machine has (ip address), or 0.0.0.0 for all'
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return 'name an address in numbers, or a name that is known here (getent hosts)'
    case 'EAFNOSUPPORT':
      return 'name an address of a kind that this machine speaks: IPv6 may be switched off'
    default:
      return systemRemedy(error) ?? 'choose another address'
  }
}
