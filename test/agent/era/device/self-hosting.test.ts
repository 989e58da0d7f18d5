/** Mounts and swap as the kernel lists them, and what stands on what on this machine. */
import { readFileSync, statSync } from 'node:fs'
import test from 'ava'
import { decodeDeviceNumber } from '../../../../native/device.ts'
import { neededPaths, parseMounts, refuseSelfHosting, swaps } from '../../../../src/agent/era/device/self-hosting.ts'

test('mounts, with optional fields and escaped names', (t) => {
  const lines = [
    '22 1 254:3 / / rw,relatime shared:1 master:2 - ext4 /dev/mapper/root rw',
    '30 22 0:25 /sub /srv/two\\040words rw - btrfs /dev/sdb1 rw,subvol=/sub',
    '40 1 0:40 / / rw - overlay overlay rw,lowerdir=/a\\:b:/two\\040words::/c:l/relative,upperdir=/up,workdir=/work',
    '41 1 0:41 / /new rw - overlay none rw,lowerdir+=/d,datadir+=/e,nfs_export=on',
    'nonsense',
    ''
  ]
  t.deepEqual(parseMounts(lines.join('\n')), [
    { device: { major: 254, minor: 3 }, mountPoint: '/', source: '/dev/mapper/root', layers: [] },
    { device: { major: 0, minor: 25 }, mountPoint: '/srv/two words', source: '/dev/sdb1', layers: [] },
    {
      ...{ device: { major: 0, minor: 40 }, mountPoint: '/', source: 'overlay' },
      layers: ['/a:b', '/two words', '/c', '/up']
    },
    { device: { major: 0, minor: 41 }, mountPoint: '/new', source: 'none', layers: ['/d', '/e'] }
  ])
})

test('swap on partitions and in files', (t) => {
  const text = [
    'Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority',
    '/dev/dm-1                               partition\t1048572\t0\t-2',
    '/swap\\040file                           file\t1024\t0\t-3',
    ''
  ]
  t.deepEqual(swaps(text.join('\n')), [
    { path: '/dev/dm-1', what: 'swap' },
    { path: '/swap file', what: 'swap' }
  ])
  t.deepEqual(swaps(''), [])
})

test('what is needed is looked for where it is, and what is not there stands in nobody’s way', async (t) => {
  const places = await neededPaths('/var/lib/deltamapper/catalog.sqlite')
  t.true(places.some(({ path }) => path === '/var/lib/deltamapper'))
  t.true(places.some(({ path }) => path === process.execPath))
  await t.notThrowsAsync(
    refuseSelfHosting({ major: 4000, minor: 1 }, 'srv', [...places, { path: '/nonexistent', what: 'x' }])
  )
})

test('the device that this program is on is refused', async (t) => {
  const [mount] = parseMounts(readFileSync('/proc/self/mountinfo', 'utf8'))
    .filter(({ mountPoint, device }) => mountPoint.length > 1 && device.major !== 0)
    .filter(({ mountPoint, device }) => {
      const on = decodeDeviceNumber(statSync(mountPoint).dev)
      return on.major === device.major && on.minor === device.minor
    })
  if (!mount) {
    t.pass('nothing on this machine is mounted from a block device')
    return
  }
  const refused = refuseSelfHosting(mount.device, 'srv', [{ path: mount.mountPoint, what: 'the catalog' }])
  await t.throwsAsync(refused, { code: 'DM_DEVICE_BUSY', message: /^the catalog \(.*\) is on srv/ })
})
