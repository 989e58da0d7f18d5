/**
 * Where a server listens and a client connects: `unix:///absolute/path.sock` (also `unix:/absolute/path.sock`, or the
 * bare path), or `tcp://HOST:PORT`. HOST is a name, an IPv4 address, or an IPv6 address in brackets.
 *
 * Its mode protects a unix socket. Mutual TLS (tls.ts) protects TCP, which is refused without it. Exception: this
 * machine's loopback, 127.0.0.1 and ::1. Listening there must be permitted explicitly, because every user of the
 * machine can connect.
 */
import { isIPv4, isIPv6 } from 'node:net'
import { DeltamapperError } from '../errors.ts'

export type Address =
  | { readonly kind: 'unix'; readonly path: string; readonly text: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number; readonly text: string }

/**
 * Takes an address apart; the two functions below decide whether it may be used. `port` 0 stands for any free port.
 *
 * @throws DM_CONFIG_INVALID for anything that is not one of the forms above
 */
export function parseAddress(text: string): Address {
  const path = /^(?:unix:\/\/(?=\/)|unix:(?!\/\/))?(\/.*)$/s.exec(text)?.[1]
  if (path !== undefined) {
    if (path.includes('\0') || path.endsWith('/')) {
      throw invalid(
        `${JSON.stringify(text)} names no socket file`,
        'end it with a file name, as in unix:///run/deltamapper/csi.sock'
      )
    }
    return { kind: 'unix', path, text: `unix://${path}` }
  }
  if (text.startsWith('unix:')) {
    throw invalid(
      `the socket path in ${JSON.stringify(text)} is not absolute`,
      'write it as in unix:///run/deltamapper/csi.sock'
    )
  }
  const tcp = /^tcp:\/\/(?:\[([^\]]*)\]|([^:]*)):(\d{1,5})$/.exec(text)
  const host = tcp?.[1] ?? tcp?.[2]
  if (tcp === null || host === undefined || !(tcp[1] === undefined ? isIPv4(host) || isHostName(host) : isIPv6(host))) {
    throw invalid(
      `${JSON.stringify(text)} is no address`,
      'write it as in unix:///run/deltamapper/csi.sock or tcp://10.0.0.7:50051'
    )
  }
  const port = Number(tcp[3])
  if (port > 65535) throw invalid(`${port} is no TCP port`, 'give one of 1 to 65535')
  return { kind: 'tcp', host, port, text: formatTcp(host, port) }
}

/** A server's HOST:PORT as others write it, with HOST as above; undefined for any other text. */
export function parseHostPort(text: string): { readonly host: string; readonly port: number } | undefined {
  try {
    const address = parseAddress(`tcp://${text}`)
    return address.kind === 'tcp' && address.port > 0 ? address : undefined
  } catch {
    return undefined
  }
}

/**
 * As `parseAddress`, for a server. With `tls`, every TCP listener is a TLS listener; `allowLoopbackTcp` concerns those
 * without.
 *
 * @throws DM_CONFIG_INVALID also for TCP that would be too open
 */
export function parseListenAddress(text: string, { tls = false, allowLoopbackTcp = false } = {}): Address {
  const address = parseConnectAddress(text, { tls })
  if (address.kind === 'tcp' && !tls && !allowLoopbackTcp) {
    throw invalid(
      `${address.text} would be open to every user of this machine: TCP needs mutual TLS`,
      'configure tls, listen on a unix socket, or allow loopback TCP explicitly for a test'
    )
  }
  return address
}

/**
 * As `parseAddress`, for a client.
 *
 * @throws DM_CONFIG_INVALID also for TCP to another machine without TLS
 */
export function parseConnectAddress(text: string, { tls = false } = {}): Address {
  const address = parseAddress(text)
  if (address.kind === 'tcp' && !tls && address.host !== '127.0.0.1' && address.host !== '::1') {
    throw invalid(
      `${address.text} is not this machine's loopback: over a network TCP needs mutual TLS`,
      'configure tls, or use a unix socket'
    )
  }
  return address
}

export function formatTcp(host: string, port: number): string {
  return host.includes(':') ? `tcp://[${host}]:${port}` : `tcp://${host}:${port}`
}

/** RFC 1123: labels of letters, digits and dashes. A malformed IPv4 address is no name either. */
function isHostName(host: string): boolean {
  return (
    host.length <= 253 &&
    /^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/i.test(host) &&
    !/(?:^|\.)\d+$/.test(host)
  )
}

function invalid(what: string, remedy: string): DeltamapperError {
  return new DeltamapperError('DM_CONFIG_INVALID', what, remedy)
}
