import { status } from '@grpc/grpc-js'
import test from 'ava'
import { DeltamapperError, errorRegistry, type ErrorCode } from '../../src/errors.ts'
import { fromStatus, toStatus } from '../../src/grpc/status.ts'

test('every error of ours survives the wire with code, status, message and remedy', (t) => {
  for (const code of Object.keys(errorRegistry) as ErrorCode[]) {
    const error = new DeltamapperError(code, 'what: is wrong; really', 'do this')
    const wire = toStatus(error)
    t.is(status[wire.code], errorRegistry[code].status, code)
    const back = fromStatus(wire, 'unix:///a.sock')
    t.is(back.code, code)
    t.is(back.message, error.message)
    t.is(back.remedy, error.remedy)
    t.is(back.line, error.line)
  }
})

test('the text is code, what and remedy in one line', (t) => {
  const wire = toStatus(new DeltamapperError('DM_SNAPSHOT_NOT_FOUND', 'no snapshot a/b', 'list them'))
  t.like(wire, { code: 5, details: 'DM_SNAPSHOT_NOT_FOUND: no snapshot a/b; list them' })
})

test('a defect is INTERNAL and does not show its stack', (t) => {
  for (const thrown of [new TypeError('x is not a function'), 'a string', undefined, { odd: true }]) {
    const { code, details } = toStatus(thrown)
    t.is(code, status.INTERNAL)
    t.true(details.startsWith('DM_INTERNAL: '), details)
    t.notRegex(details, /\bat .*:\d+/)
  }
})

test('what others chose cannot break a header, a log line or a terminal', (t) => {
  const nasty = 'a\nb\r\u001b[31mc\0\u2028d\ud800e'
  const { details } = toStatus(new DeltamapperError('DM_INTERNAL', nasty, 'x'))
  t.is(details, 'DM_INTERNAL: a b [31mc d\ufffde; x')
  t.notThrows(() => encodeURI(details))
  t.is(fromStatus({ code: 13, details: nasty }, 'unix:///a.sock').message.includes('\u001b'), false)
})

test('the text is bounded, and stays well-formed where it is cut', (t) => {
  const { details } = toStatus(new DeltamapperError('DM_INTERNAL', '😀'.repeat(5000), 'x'))
  t.true(encodeURI(details).length <= 8000)
  t.true(details.endsWith('…'))
})

const foreign: [keyof typeof status, ErrorCode][] = [
  ['CANCELLED', 'DM_CANCELLED'],
  ['UNKNOWN', 'DM_SERVER_FAILED'],
  ['INVALID_ARGUMENT', 'DM_ARGUMENT_INVALID'],
  ['DEADLINE_EXCEEDED', 'DM_DEADLINE_EXCEEDED'],
  ['NOT_FOUND', 'DM_SNAPSHOT_NOT_FOUND'],
  ['PERMISSION_DENIED', 'DM_ACCESS_DENIED'],
  ['RESOURCE_EXHAUSTED', 'DM_SERVER_FAILED'],
  ['FAILED_PRECONDITION', 'DM_NOT_TRACKED'],
  ['ABORTED', 'DM_SNAPSHOT_CHANGED'],
  ['OUT_OF_RANGE', 'DM_OFFSET_OUT_OF_RANGE'],
  ['UNIMPLEMENTED', 'DM_SERVER_FAILED'],
  ['INTERNAL', 'DM_SERVER_FAILED'],
  ['UNAVAILABLE', 'DM_UNREACHABLE'],
  ['DATA_LOSS', 'DM_METADATA_DAMAGED']
]

for (const [name, code] of foreign) {
  test(`${name} of another server is ${code} and keeps its words`, (t) => {
    const error = fromStatus({ code: status[name], details: 'their words' }, 'unix:///a.sock')
    t.is(error.code, code)
    t.true(error.message.includes('their words'))
    t.true(error.message.includes('unix:///a.sock'))
    if (code !== 'DM_SERVER_FAILED') t.is(error.status, name as typeof error.status)
    else t.true(error.message.includes(name))
  })
}

test('a text that only looks like ours is not believed', (t) => {
  for (const details of ['DM_NO_SUCH_CODE: a; b', 'DM_SNAPSHOT_NOT_FOUND: a; b', 'DM_CANCELLED without a colon']) {
    t.is(fromStatus({ code: status.INTERNAL, details }, 'unix:///a.sock').code, 'DM_SERVER_FAILED')
  }
})

test('a status number unknown to gRPC is still an error', (t) => {
  const error = fromStatus({ code: 77, details: '' }, 'unix:///a.sock')
  t.is(error.code, 'DM_SERVER_FAILED')
  t.regex(error.message, /status 77/)
})

test('the code is trailing metadata as well', (t) => {
  t.deepEqual(toStatus(new DeltamapperError('DM_BASE_LOST', 'x', 'y')).metadata?.get('deltamapper-error-code'), [
    'DM_BASE_LOST'
  ])
})

test('clients on other machines are told neither folders nor what they did not ask about', (t) => {
  const forOthers = { remedy: 'look into the log' }
  const told = (message: string, remedy: string, details = {}) =>
    toStatus(new DeltamapperError('DM_READ_FAILED', message, remedy, details), 'others').details
  t.is(
    told(
      "blocks 1 to 2 of /dev/mapper/vg-pool_tmeta could not be read: ENOENT, open '/var/lib/x/y.img'",
      'see docs/reference.md'
    ),
    "DM_READ_FAILED: blocks 1 to 2 of vg-pool_tmeta could not be read: ENOENT, open 'y.img'; see docs/reference.md"
  )
  t.is(told('no source a', 'b, c and d are served', { forOthers }), 'DM_READ_FAILED: no source a; look into the log')
  // What is no path stays: handles, ratios, addresses.
  const plain = 'vg/lv, 3/4 of tcp://10.0.0.1:9000, unix:x/y and / itself'
  t.is(told(plain, 'z'), `DM_READ_FAILED: ${plain}; z`)
})
