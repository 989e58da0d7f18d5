import test from 'ava'
import { KernelEvents } from '../../native/kernel-events.ts'

test("the kernel's events can be listened to, by anybody, and reading them does not wait", (t) => {
  const events = new KernelEvents()
  const came = events.read()
  t.true(came === undefined || came.every((each) => each.has('ACTION')))
  events.close()
})
