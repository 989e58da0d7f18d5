/**
 * Where a server listens and a client connects: `unix:///absolute/path.sock` (also `unix:/absolute/path.sock`, or the bare path), or
 * `tcp://127.0.0.1:PORT` and `tcp://[::1]:PORT`.
 *
 * Nothing here encrypts or authenticates: a unix socket is guarded by its mode, loopback by nothing at all. So TCP to anywhere else is
 * refused, and to listen even on loopback must be asked for.
 */
import { DeltamapperError } from '../errors.ts'

export type Address =
  | { readonly kind: 'unix'; readonly path: string; readonly text: string }
  | { readonly kind: 'tcp'; readonly host: '127.0.0.1' | '::1'; readonly port: number; readonly text: string }

/** Throws DM_CONFIG_INVALID for anything that is not one of the forms above. `port` 0 stands for any free port. */
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
  if (tcp === null) {
    throw invalid(
      `${JSON.stringify(text)} is no address`,
      'write it as in unix:///run/deltamapper/csi.sock; tcp://127.0.0.1:PORT and tcp://[::1]:PORT serve for tests'
    )
  }
  const host = tcp[1] ?? tcp[2]
  const port = Number(tcp[3])
  if (host !== '127.0.0.1' && host !== '::1') {
    throw invalid(
      `${JSON.stringify(text)} is not this machine's loopback: over a network TCP needs mutual TLS, which deltamapper does not offer yet`,
      'use a unix socket'
    )
  }
  if (port > 65535) throw invalid(`${port} is no TCP port`, 'give one of 1 to 65535')
  return { kind: 'tcp', host, port, text: formatTcp(host, port) }
}

/** As `parseAddress`, for a server: loopback TCP only where it is allowed, since every user of the machine can connect to it. */
export function parseListenAddress(text: string, { allowLoopbackTcp = false } = {}): Address {
  const address = parseAddress(text)
  if (address.kind === 'tcp' && !allowLoopbackTcp) {
    throw invalid(
      `${address.text} would be open to every user of this machine: TCP needs mutual TLS, which deltamapper does not offer yet`,
      'listen on a unix socket, or allow loopback TCP explicitly for a test'
    )
  }
  return address
}

export function formatTcp(host: string, port: number): string {
  return host.includes(':') ? `tcp://[${host}]:${port}` : `tcp://${host}:${port}`
}

function invalid(what: string, remedy: string): DeltamapperError {
  return new DeltamapperError('DM_CONFIG_INVALID', what, remedy)
}
