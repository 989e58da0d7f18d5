/** Processes as /proc tells of them. Who waits for device-mapper is seen in test/kernel/era-devices.test.ts. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import test from 'ava'
import { groupRuns, parseProcess } from '../../../../src/agent/era/device/processes.ts'

test('a line of stat, whatever the name', (t) => {
  t.deepEqual(parseProcess('42 (lvm) D 1 41 41 0 -1 4194560 0'), { pid: 42, name: 'lvm', state: 'D', group: 41 })
  t.deepEqual(parseProcess('42 (a) S 1 (b\n c) Z 7 40 41 0 -1'), {
    ...{ pid: 42, name: 'a) S 1 (b\n c', state: 'Z', group: 40 }
  })
  t.is(parseProcess(''), undefined)
})

test('a group runs until the last of its processes has ended', async (t) => {
  const leader = spawn('sh', ['-c', 'sleep 600 & exec sleep 600'], { detached: true, stdio: 'ignore' })
  const group = leader.pid!
  t.true(groupRuns(group))
  leader.kill('SIGKILL')
  await once(leader, 'exit')
  // (Killed too early, it has not started the other one yet.)
  while (groupRuns(group)) {
    process.kill(-group, 'SIGKILL')
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  t.false(groupRuns(group))
})
