/** Over real HTTP. */
import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { pino } from 'pino'
import { DeltamapperError } from '../../src/errors.ts'
import { Certificates } from '../../src/grpc/tls.ts'
import { type MonitoringOptions, startMonitoring } from '../../src/monitoring/monitoring.ts'
import { Authority } from '../support/certificates.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
const logger = pino({ level: 'silent' })

async function monitoring(t: ExecutionContext, options: Partial<MonitoringOptions> = {}) {
  const made = await startMonitoring({
    ...{ role: 'agent', listen: 'tcp://127.0.0.1:0', certificates: undefined, logger },
    ...options
  })
  t.teardown(() => made.close())
  const ask = async (path: string, init?: RequestInit) => {
    const response = await fetch(`${made.address?.replace('tcp:', 'http:')}${path}`, init)
    return { status: response.status, type: response.headers.get('content-type'), text: await response.text() }
  }
  return { made, ask }
}

test('alive from the start, ready while it runs', async (t) => {
  const { made, ask } = await monitoring(t)
  t.like(await ask('/healthz'), { status: 200, text: 'ok\n' })
  t.like(await ask('/readyz'), { status: 503, text: 'server: the agent is starting; wait\n' })
  t.regex((await ask('/metrics')).text, /^deltamapper_ready 0$/m)
  made.runs()
  t.like(await ask('/readyz?verbose'), { status: 200, text: 'ready\n' })
  t.regex((await ask('/metrics')).text, /^deltamapper_ready 1$/m)
  made.readiness.add('pools', () => 'they are on fire; fetch water')
  made.stops()
  const { status, text } = await ask('/readyz')
  t.is(status, 503)
  t.regex(text, /^server: the agent is stopping; .*\npools: they are on fire; fetch water\n$/)
  t.like(await ask('/healthz'), { status: 200 })
})

test('whoever opens connections and says nothing keeps no probe out', async (t) => {
  const { made, ask } = await monitoring(t)
  const port = Number(new URL(made.address!).port)
  for (let i = 0; i < 300; i++) {
    const socket = connect(port, '127.0.0.1').on('error', () => undefined)
    t.teardown(() => socket.destroy())
    await once(socket, 'connect')
  }
  t.like(await ask('/healthz'), { status: 200, text: 'ok\n' })
})

test('metrics are what Prometheus reads, with what is told to the observer', async (t) => {
  const { made, ask } = await monitoring(t)
  const { calls, clientRefused } = made.observer
  const ended = { method: 'GetMetadataDelta', status: 'OK', error: undefined, node: undefined } as const
  calls.begun()
  calls.begun()
  calls.begun()
  calls.sent('GetMetadataDelta', 1000)
  calls.sent('GetMetadataDelta', 24)
  calls.ended({ ...ended, durationMs: 250, firstMessageMs: 15 })
  calls.ended({
    ...ended,
    status: 'NOT_FOUND',
    error: 'DM_SNAPSHOT_NOT_FOUND',
    durationMs: 1,
    firstMessageMs: undefined
  })
  clientRefused()
  const { type, text } = await ask('/metrics')
  t.regex(type ?? '', /^text\/plain; version=0\.0\.4/)
  const lines = text.split('\n')
  const delta = '{method="GetMetadataDelta"}'
  for (const line of [
    'deltamapper_build_info{version="0.1.0",role="agent"} 1',
    'deltamapper_calls_total{method="GetMetadataDelta",grpc_code="OK",error=""} 1',
    'deltamapper_calls_total{method="GetMetadataDelta",grpc_code="NOT_FOUND",error="DM_SNAPSHOT_NOT_FOUND"} 1',
    'deltamapper_calls_running 1',
    `deltamapper_messages_total${delta} 2`,
    'deltamapper_messages_total{method="GetMetadataAllocated"} 0',
    `deltamapper_sent_bytes_total${delta} 1024`,
    'deltamapper_call_seconds_bucket{le="0.5",method="GetMetadataDelta"} 2',
    'deltamapper_call_seconds_bucket{le="0.1",method="GetMetadataDelta"} 1',
    `deltamapper_first_message_seconds_count${delta} 1`,
    'deltamapper_refused_clients_total 1'
  ]) {
    t.true(lines.includes(line), line)
  }
  t.true(lines.some((line) => line.startsWith('process_open_fds ')))
  t.false(text.includes('deltamapper_certificate_expiry'))
  // Each metric has its words.
  for (const line of lines) {
    const [name] = /^deltamapper_\w+?(?=(_bucket|_sum|_count)?[{ ])/.exec(line) ?? []
    if (name)
      t.true(
        lines.some((each) => each.startsWith(`# HELP ${name} `)),
        name
      )
  }
})

test('a certificate that has expired is not ready, and a new one is without a restart', async (t) => {
  const authority = await Authority.create(join(folder, 'authority'))
  const files = await authority.issue('agent.test', { days: -1 })
  const certificates = await Certificates.load(files, logger)
  t.teardown(() => certificates.close())
  const { made, ask } = await monitoring(t, { certificates })
  made.runs()
  t.like(await ask('/readyz'), { status: 503 })
  t.regex((await ask('/readyz')).text, /^certificate: .*expired/)
  const expiry = /^deltamapper_certificate_expiry_timestamp_seconds (\S+)$/m.exec((await ask('/metrics')).text)?.[1]
  t.true(Math.abs(Number(expiry) - Date.now() / 1000) < 3 * 86_400)
})

test('nothing else is there, and nothing can be changed', async (t) => {
  const { ask } = await monitoring(t)
  for (const path of ['/', '/metrics/', '/healthzz', '/../etc/passwd', '//']) t.like(await ask(path), { status: 404 })
  for (const method of ['POST', 'PUT', 'DELETE']) t.like(await ask('/metrics', { method }), { status: 405 })
  t.like(await ask('/healthz', { method: 'HEAD' }), { status: 200, text: '' })
})

test('without an address there is no listener, and one that is taken or no TCP address is refused', async (t) => {
  const { made } = await monitoring(t, { listen: undefined })
  t.is(made.address, undefined)
  const { made: first } = await monitoring(t)
  for (const [listen, code] of [
    [first.address, 'DM_SOCKET_IN_USE'],
    ['unix:///run/x.sock', 'DM_CONFIG_INVALID'],
    ['8081', 'DM_CONFIG_INVALID'],
    ['tcp://192.0.2.1:8081', 'DM_CONFIG_INVALID']
  ] as const) {
    const error = await t.throwsAsync(monitoring(t, { listen }), { instanceOf: DeltamapperError })
    t.is(error.code, code, listen)
  }
})
