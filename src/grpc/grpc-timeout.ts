/**
 * `grpc-timeout` in every form that the protocol allows: one to eight digits and a unit (gRPC over HTTP/2, "Timeout").
 *
 * grpc-js counts it in milliseconds of 31 bits, so that 1000 hours lie in the past; of nine digits it takes the last
 * eight, and of words that hold a time that. So the header is looked at before grpc-js sees it.
 */
import type { Http2Server, IncomingHttpHeaders } from 'node:http2'
import type { Server } from '@grpc/grpc-js'

const HEADER = 'grpc-timeout'
const MS_OF_UNIT: Record<string, number> = { H: 3_600_000, M: 60_000, S: 1000, m: 1, u: 1e-3, n: 1e-6 }
/** The longest that a timer of Node's can wait, in milliseconds: 24 days. */
const LONGEST_MS = 2 ** 31 - 1

/**
 * What grpc-js is to be told in place of a header; undefined for no deadline at all. One beyond 24 days is left to the
 * client, which ends its call itself; what is no timeout is refused with what it says.
 */
export function understoodTimeout(header: string): string | undefined {
  const [, digits, unit = ''] = /^(\d{1,8})([HMSmun])$/.exec(header) ?? []
  // grpc-js refuses what has no digits.
  if (digits === undefined) return header.replaceAll(/\d/g, '#')
  return Number(digits) * MS_OF_UNIT[unit] > LONGEST_MS ? undefined : header
}

/** Lets a server of grpc-js understand them all. Before it is given its first connection. */
export function understandTimeouts(server: Server): void {
  // grpc-js offers no way to see headers before they have been read. Without this the tests with 1000 hours fail.
  const internals = server as unknown as { createHttp2Server(credentials: unknown): Http2Server }
  const create = internals.createHttp2Server.bind(server)
  internals.createHttp2Server = (credentials) =>
    create(credentials).prependListener('stream', (_stream, headers: IncomingHttpHeaders) => {
      const brought = headers[HEADER]
      if (typeof brought !== 'string') return
      const understood = understoodTimeout(brought)
      if (understood === undefined) delete headers[HEADER]
      else headers[HEADER] = understood
    })
}
