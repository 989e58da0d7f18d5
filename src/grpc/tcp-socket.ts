/** Listening on a TCP address, and the errors of that. */
import { once } from 'node:events'
import type { AddressInfo, Server } from 'node:net'
import { DeltamapperError } from '../errors.ts'
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
      : new DeltamapperError('DM_CONFIG_INVALID', `cannot listen on ${text} (${code})`, 'choose another address')
  }
  return formatTcp(host, (server.address() as AddressInfo).port)
}
