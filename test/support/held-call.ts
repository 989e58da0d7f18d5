/**
 * A gRPC call whose answer is not read until somebody says so: the server is really held, with at most a few messages
 * sent. Node's HTTP/2 tells the other side that it may send more only once something was read (RFC 9113, 6.9); the gRPC
 * client reads on by itself, 64 KiB and more, so that a quick server is done before anybody has asked for a message.
 */
import { once } from 'node:events'
import { connect, type IncomingHttpHeaders } from 'node:http2'
import { createConnection } from 'node:net'
import type { MethodDefinition } from '@grpc/grpc-js'
import { fromStatus } from '../../src/grpc/status.ts'
import { framed } from './grpc-frame.ts'

/** What the server may send before it is read, in bytes. */
const WINDOW = 256

/**
 * Begins a call, and waits until its answer has begun. @param socket path of a unix socket
 *
 * @returns reads the rest; @throws what the answer ends with, where that is not OK
 */
export async function beginHeld<Request>(
  socket: string,
  { path, requestSerialize }: MethodDefinition<Request, Uint8Array>,
  request: Request
): Promise<() => Promise<void>> {
  const session = connect('http://localhost', {
    createConnection: () => createConnection(socket),
    settings: { initialWindowSize: WINDOW }
  })
  const fields = { ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' }
  const call = session.request(fields)
  const trailers = once(call, 'trailers')
  // Nobody waits for them before the rest is read.
  trailers.catch(() => undefined)
  call.end(framed(requestSerialize(request)))
  const [headers] = (await once(call, 'response')) as [IncomingHttpHeaders]
  return async () => {
    call.resume()
    // An answer that has no message has its status in its headers.
    const [ended] = 'grpc-status' in headers ? [headers] : ((await trailers) as [IncomingHttpHeaders])
    session.close()
    const code = Number(ended['grpc-status'])
    if (code !== 0) throw fromStatus({ code, details: decodeURIComponent(String(ended['grpc-message'])) }, socket)
  }
}
