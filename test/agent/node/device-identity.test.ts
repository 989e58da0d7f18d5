/** What disks, partitions and loop devices are known by, in a sysfs of their own. */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import test from 'ava'
import { deviceIdentity, isKnownBy, isPathOnly } from '../../../src/agent/node/device-identity.ts'

const sysfs = mkdtempSync(join(tmpdir(), 'identity-'))
test.after.always(() => rmSync(sysfs, { recursive: true }))
let disks = 0

/** @returns what a device of no device-mapper is known by @param place below /sys/devices @param files by their path in its folder */
async function identify(place: string, files: Record<string, string> = {}): Promise<string> {
  const minor = disks++
  const folder = join(sysfs, 'devices', place)
  mkdirSync(folder, { recursive: true })
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, name)), { recursive: true })
    writeFileSync(join(folder, name), `${content}\n`)
  }
  mkdirSync(join(sysfs, 'dev/block'), { recursive: true })
  symlinkSync(folder, join(sysfs, `dev/block/4000:${minor}`))
  return deviceIdentity({ info: () => Promise.resolve(undefined) }, '/dev/vdb', { major: 4000, minor }, sysfs)
}

test('a serial number or WWID, wherever the disk is plugged in', async (t) => {
  t.is(await identify('pci0000:00/0000:00:01.0/virtio0/block/vda', { serial: 'data-1' }), 'serial:data-1')
  t.is(await identify('pci0000:00/ata1/block/sda', { 'device/wwid': 'naa.5000' }), 'wwid:naa.5000')
  t.is(
    await identify('virtual/block/loop9', { 'loop/backing_file': '/srv/disk', 'loop/offset': '512' }),
    'loop:/srv/disk:512'
  )
})

test('without either the slot, in whatever order disks were found; and the path only where there is none', async (t) => {
  const before = await identify('pci0000:00/0000:00:05.0/virtio2/block/vdb', { serial: '' })
  t.is(before, 'place:pci0000:00/0000:00:05.0')
  t.is(await identify('pci0000:00/0000:00:05.0/virtio3/block/vdc'), before)
  t.not(await identify('pci0000:00/0000:00:06.0/virtio3/block/vdb'), before)
  const partition = 'pci0000:00/0000:00:05.0/virtio2/block/vdb/vdb1'
  t.is(await identify(partition, { partition: '1', start: '2048' }), `${before}:part1:2048`)
  t.is(await identify('virtual/block/nbd0'), 'path:/dev/vdb')
  t.is(await identify('pci0000:00/0000:00:07.0/host2/target2:0:0/2:0:0:0/block/sda'), 'path:/dev/vdb')
  // Two disks of one device are not told apart by it.
  await identify('platform/two/block/x')
  t.is(await identify('platform/two/block/y'), 'path:/dev/vdb')
})

test('who was known by a path is known by it still; nobody else is', (t) => {
  t.true(isPathOnly('path:/dev/vdb'))
  t.false(isPathOnly('place:pci0000:00/0000:00:05.0'))
  t.true(isKnownBy('path:/dev/vdb', 'place:pci0000:00/0000:00:05.0', '/dev/vdb'))
  t.false(isKnownBy('path:/dev/vdc', 'place:pci0000:00/0000:00:05.0', '/dev/vdb'))
  t.false(isKnownBy('place:pci0000:00/0000:00:05.0', 'path:/dev/vdb', '/dev/vdb'))
})
