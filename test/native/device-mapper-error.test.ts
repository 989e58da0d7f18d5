/** What a failed call says, and which code it says it with. */
import { constants } from 'node:os'
import test from 'ava'
import type { Call } from '../../native/call.ts'
import { describeCall, diedError, failedError, stuckError } from '../../native/device-mapper-error.ts'

const { errno } = constants
const reserve: Call = { call: 'message', device: 'vg-pool-tpool', sector: 0, text: 'reserve_metadata_snap' }
const status: Call = { call: 'status', device: { major: 254, minor: 3 }, flush: false }

test('busy is told apart, with the device, the call, the errno and what the library said', (t) => {
  const said = ['device-mapper: message ioctl on vg-pool-tpool failed: Device or resource busy']
  const error = failedError(reserve, { reason: 'refused', errno: errno.EBUSY, said })
  t.like(error, {
    code: 'DM_DEVICE_BUSY',
    status: 'UNAVAILABLE',
    errno: 'EBUSY',
    call: 'message',
    device: 'vg-pool-tpool'
  })
  t.is(error.message, `message "reserve_metadata_snap" to vg-pool-tpool failed with EBUSY: ${said[0]}`)
})

test('every reason has its code', (t) => {
  const code = (reason: 'library' | 'control' | 'permission' | 'missing' | 'refused', number = 0) =>
    failedError(status, { reason, errno: number, said: [] }).code
  t.is(code('library'), 'DM_LIBDEVMAPPER_MISSING')
  t.is(code('control', errno.ENOENT), 'DM_CONTROL_MISSING')
  t.is(code('permission', errno.EACCES), 'DM_PERMISSION')
  t.is(code('missing', errno.ENXIO), 'DM_NO_SUCH_DEVICE')
  t.is(code('refused', errno.EINVAL), 'DM_CALL_FAILED')
  t.is(code('refused', errno.EEXIST), 'DM_CALL_FAILED')
  t.is(code('refused'), 'DM_CALL_FAILED')
})

test('without an errno and without words it still says what failed', (t) => {
  const error = failedError(status, { reason: 'refused', errno: 0, said: [] })
  t.is(error.message, 'status of 254:3 failed')
  t.is(error.errno, undefined)
})

test('a stuck and a dead helper name call and device', (t) => {
  t.regex(stuckError(status, 1500, 4711).message, /status of 254:3 .* 1\.5 s; its process \(4711\)/)
  t.regex(
    diedError(reserve, 'SIGSEGV').message,
    /ended during message "reserve_metadata_snap" to vg-pool-tpool: SIGSEGV/
  )
})

test('a long message is cut, one without a device does without', (t) => {
  t.true(describeCall({ ...reserve, text: 'x'.repeat(5000) }).length < 200)
  t.is(describeCall({ call: 'list' }), 'list')
})
