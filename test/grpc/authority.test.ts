/**
 * `:authority` of a call: any host, or what clients send for a unix socket. One that no URI can have (RFC 3986: a path) is reset by nghttp2
 * before Node tells anybody of the call, so that no log can have it; docs/errors.md says how it looks to the client.
 */
import { once } from 'node:events'
import { connect, constants } from 'node:http2'
import { createConnection } from 'node:net'
import test from 'ava'
import { testServer } from './extent-backend.ts'

for (const [authority, isServed] of [
  ['localhost', true],
  // What some clients make of a socket's path.
  ['%2Frun%2Fdeltamapper%2Fagent.sock', true],
  ['', true],
  ['/run/deltamapper/agent.sock', false]
] as const) {
  test(`${JSON.stringify(authority)} is ${isServed ? 'served' : 'reset as a protocol error, and the connection goes on'}`, async (t) => {
    const { path } = await testServer(t)
    const session = connect('http://localhost', { createConnection: () => createConnection(path) })
    t.teardown(() => session.destroy())
    const call = (asked: string) => {
      const stream = session.request({
        ':method': 'POST',
        ':path': '/csi.v1.Identity/Probe',
        ...(asked !== '' && { ':authority': asked }),
        'content-type': 'application/grpc',
        te: 'trailers'
      })
      // The empty message.
      stream.on('error', () => undefined).end(Buffer.alloc(5))
      stream.resume()
      return stream
    }
    const stream = call(authority)
    let status: unknown
    stream.on('trailers', (trailers: Record<string, string>) => (status = trailers['grpc-status']))
    await new Promise((resolve) => stream.once('close', resolve))
    t.is(status, isServed ? '0' : undefined)
    t.is(stream.rstCode, isServed ? constants.NGHTTP2_NO_ERROR : constants.NGHTTP2_PROTOCOL_ERROR)
    const next = call('localhost')
    const [trailers] = (await once(next, 'trailers')) as [Record<string, string>]
    t.is(trailers['grpc-status'], '0')
  })
}
