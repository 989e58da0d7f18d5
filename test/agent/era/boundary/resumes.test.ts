import test from 'ava'
import { isResume } from '../../../../src/agent/era/boundary/resumes.ts'

const resume = { ACTION: 'change', SUBSYSTEM: 'block', MAJOR: '254', MINOR: '3', DEVNAME: 'dm-3', SEQNUM: '4711' }
const event = (more: Record<string, string> = {}) => new Map(Object.entries({ ...resume, ...more }))

test('a resume is told from other events of a device', (t) => {
  t.true(isResume(event()))
  t.true(isResume(event({ DM_COOKIE: '6307840' })), 'with a cookie of libdevmapper')
  t.true(isResume(event({ RESIZE: '1' })), 'with a table of another size')
  t.false(isResume(event({ SYNTH_UUID: '0' })), 'udevadm trigger')
  t.false(isResume(event({ DISK_RO: '1' })), 'made read-only')
  t.false(isResume(event({ ACTION: 'add' })))
  t.false(isResume(event({ SUBSYSTEM: 'bdi' })))
})
