/**
 * The lab itself: a kernel that is really there, with a dm-thin that does what the other kernel tests rely on.
 */
import { readFileSync } from 'node:fs'
import { createServer, connect } from 'node:net'
import { once } from 'node:events'
import test from 'ava'
import {
  createDevice,
  createLinear,
  deviceBytes,
  kernelRelease,
  removeDevice,
  run,
  sendMessage,
  thinPoolTable,
  thinTable,
  zeroStart
} from './dmsetup.ts'

const mebibyte = 2 ** 20
const blockBytes = 65536

test('the kernel is new enough, and this is its root', (t) => {
  const [major = 0] = kernelRelease().split('.').map(Number)
  t.true(major >= 6)
  t.is(process.getuid?.(), 0)
  t.is(deviceBytes('/dev/ubda') % mebibyte, 0)
})

test('every target that tests use is there', (t) => {
  const targets = [
    'dm-thin-pool',
    'dm-era',
    'dm-snapshot',
    'dm-flakey',
    'dm-log-writes',
    'dm-dust',
    'dm-delay',
    'dm-zero'
  ]
  for (const each of targets) t.notThrows(() => run('/run/modprobe', [each]), each)
  const known = run('dmsetup', ['targets'])
  for (const each of ['thin-pool', 'thin', 'era', 'flakey', 'log-writes', 'dust', 'delay', 'zero', 'error', 'linear']) {
    t.regex(known, new RegExp(`^${each} `, 'm'))
  }
})

test('tools come from the lab', (t) => {
  const lab = process.env.DELTAMAPPER_LAB ?? ''
  for (const each of ['dmsetup', 'lvm', 'thin_delta', 'thin_dump', 'thin_restore', 'mkfs.ext4']) {
    t.true(run('bash', ['-c', `type -P ${each}`]).startsWith(lab), each)
  }
  for (const each of ['fstrim', 'blkdiscard', 'blockdev', 'losetup']) t.notThrows(() => run(each, ['--version']), each)
})

test('TCP works over loopback', async (t) => {
  const server = createServer((socket) => socket.end('hello')).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('no port')
  const [data] = (await once(connect(address.port, '127.0.0.1'), 'data')) as [Buffer]
  t.is(data.toString(), 'hello')
  server.close()
})

test('a thin pool provisions, snapshots, and tells thin_delta what changed', (t) => {
  const metadataBytes = 4 * mebibyte
  const dataBytes = 64 * mebibyte
  const metadata = createLinear('smoke-metadata', '/dev/ubda', 0, metadataBytes)
  const data = createLinear('smoke-data', '/dev/ubda', metadataBytes, dataBytes)
  zeroStart(metadata)
  createDevice(
    'smoke-pool',
    thinPoolTable({
      metadataDevice: metadata,
      dataDevice: data,
      dataBytes,
      blockBytes,
      features: ['no_discard_passdown']
    })
  )
  sendMessage('smoke-pool', 'create_thin 0')
  const volume = createDevice('smoke-volume', thinTable('smoke-pool', 0, 16 * mebibyte))
  const write = (block: number, count: number, byte: string) =>
    run('bash', [
      '-c',
      `head -c ${count * blockBytes} /dev/zero | tr '\\0' ${byte} | dd of=${volume} bs=64k seek=${block} oflag=direct iflag=fullblock`
    ])
  write(0, 10, 'a')
  run('dmsetup', ['suspend', 'smoke-volume'])
  sendMessage('smoke-pool', 'create_snap 1 0')
  run('dmsetup', ['resume', 'smoke-volume'])
  write(3, 2, 'b')
  write(20, 1, 'c')
  run('dmsetup', ['suspend', 'smoke-volume'])
  sendMessage('smoke-pool', 'create_snap 2 0')
  run('dmsetup', ['resume', 'smoke-volume'])
  sendMessage('smoke-pool', 'reserve_metadata_snap')

  const delta = run('thin_delta', ['-m', '--snap1', '1', '--snap2', '2', metadata])
  const [, ...body] = delta.split('\n').map((line) => line.trim())
  t.deepEqual(
    body.filter((line) => /^<(same|different|left_only|right_only)/.test(line)),
    [
      '<same begin="0" length="3"/>',
      '<different begin="3" length="2"/>',
      '<same begin="5" length="5"/>',
      '<right_only begin="20" length="1"/>'
    ]
  )
  const before = createDevice('smoke-snapshot', thinTable('smoke-pool', 1, 16 * mebibyte), '--readonly')
  t.is(run('dd', [`if=${before}`, 'bs=64k', 'skip=3', 'count=1']), 'a'.repeat(blockBytes))
  t.is(run('dd', [`if=${volume}`, 'bs=64k', 'skip=3', 'count=1', 'iflag=direct']), 'b'.repeat(blockBytes))

  for (const each of ['smoke-snapshot', 'smoke-volume', 'smoke-pool', 'smoke-data', 'smoke-metadata'])
    removeDevice(each)
  t.is(readFileSync('/proc/mounts', 'utf8').includes('/dev/mapper'), false)
})

test('LVM makes thin snapshots', (t) => {
  run('pvcreate', ['/dev/ubda'])
  run('vgcreate', ['vg0', '/dev/ubda'])
  run('lvcreate', ['-L', '128M', '--thinpool', 'pool', '-c', '64k', 'vg0'])
  run('lvcreate', ['-V', '256M', '--thin', '-n', 'volume', 'vg0/pool'])
  run('lvcreate', ['-s', '-k', 'n', '-n', 'monday', 'vg0/volume'])
  const report = JSON.parse(run('lvs', ['--reportformat', 'json', '-o', 'lv_name,origin,thin_id', 'vg0'])) as {
    report: [{ lv: { lv_name: string; origin: string; thin_id: string }[] }]
  }
  const monday = report.report[0].lv.find((each) => each.lv_name === 'monday')
  t.is(monday?.origin, 'volume')
  t.is(monday?.thin_id, '2')
  run('vgremove', ['-f', 'vg0'])
  run('pvremove', ['/dev/ubda'])
})
