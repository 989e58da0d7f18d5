/** Who makes the device nodes, in each of the places deltamapper runs in. */
import { existsSync, readlinkSync } from 'node:fs'
import test from 'ava'
import { nodeKeeper, surroundings, type Surroundings } from '../../native/udev.ts'

const host: Surroundings = {
  udevControl: true,
  ipcNamespace: 'ipc:[4026531839]',
  udevDisabled: false,
  devDirectory: '/dev'
}

test('a host with udev, or a container that shares its IPC namespace: cookies', (t) => {
  t.is(nodeKeeper(host), 'synchronised')
})

test('a container with /run/udev and an IPC namespace of its own: no cookie would ever come back', (t) => {
  t.is(nodeKeeper({ ...host, ipcNamespace: 'ipc:[4026532201]' }), 'unsynchronised')
  t.is(nodeKeeper({ ...host, ipcNamespace: '' }), 'unsynchronised')
})

test('without udev, with udev switched off, or beside /dev: the library makes the nodes', (t) => {
  t.is(nodeKeeper({ ...host, udevControl: false }), 'library')
  t.is(nodeKeeper({ ...host, udevControl: false, ipcNamespace: 'ipc:[4026532201]' }), 'library')
  t.is(nodeKeeper({ ...host, udevDisabled: true }), 'library')
  t.is(nodeKeeper({ ...host, devDirectory: '/host/dev' }), 'library')
})

test.serial('looking around finds what is here', (t) => {
  const before = process.env.DM_DISABLE_UDEV
  t.teardown(() => {
    if (before === undefined) delete process.env.DM_DISABLE_UDEV
    else process.env.DM_DISABLE_UDEV = before
  })
  delete process.env.DM_DISABLE_UDEV
  t.deepEqual(surroundings('/dev'), {
    udevControl: existsSync('/run/udev/control'),
    ipcNamespace: readlinkSync('/proc/self/ns/ipc'),
    udevDisabled: false,
    devDirectory: '/dev'
  })
  process.env.DM_DISABLE_UDEV = ''
  t.true(surroundings('/dev').udevDisabled)
})
