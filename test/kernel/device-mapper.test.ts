/**
 * native/ against a real kernel: every call, what it says when it fails, what a call that hangs does to the others, and that
 * nothing is left behind. Runs inside the kernel lab: node test/lab/run.ts test/kernel/device-mapper.test.ts
 */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  unlinkSync,
  writeFileSync
} from 'node:fs'
import { rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { decodeDeviceNumber } from '../../native/device.ts'
import { DeviceMapper, DeviceMapperError, type DeviceMapperOptions, type TableRow } from '../../native/device-mapper.ts'
import { isKernelSince } from './dmsetup.ts'

const mebibyteSectors = 2048
const notices: string[] = []
const deviceMapper = new DeviceMapper({
  onNotice: ({ call, device, lines }) => notices.push(`${call} of ${device}: ${lines.join('; ')}`)
})
test.after.always(() => deviceMapper.close())
// What a failed test leaves behind is not the next one's trouble.
test.afterEach.always(() =>
  run('bash', [
    '-c',
    'for name in $(dmsetup ls | grep -v ^No | cut -f1); do dmsetup resume "$name"; done; dmsetup remove_all --force'
  ])
)

const row = (targetType: string, lengthSectors: number, params = '', startSector = 0): TableRow => ({
  startSector,
  lengthSectors,
  targetType,
  params
})
/** A part of the lab's disk, in MiB. */
const linear = (offset: number, size: number) =>
  row('linear', size * mebibyteSectors, `/dev/ubda ${offset * mebibyteSectors}`)

function run(program: string, args: readonly string[]): string {
  return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
}

/** The kernel formats a metadata device only when its first block is all zero. */
function zeroStart(device: string): void {
  run('dd', ['if=/dev/zero', `of=${device}`, 'bs=4096', 'count=1', 'oflag=direct', 'status=none'])
}

async function failureOf(promise: Promise<unknown>): Promise<DeviceMapperError> {
  const error: unknown = await promise.then(
    (result) => new Error(`it succeeded: ${JSON.stringify(result)}`),
    (thrown: unknown) => thrown
  )
  if (error instanceof DeviceMapperError) return error
  throw error
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (const deadline = performance.now() + 300_000; !condition(); await sleep(20)) {
    if (performance.now() > deadline) throw new Error(`still not so after 20 s: ${what}`)
  }
}

/** What is under /dev/mapper: `name` for a node, `name@` for a link, as udev makes them. */
function nodes(): string[] {
  const names = readdirSync('/dev/mapper').filter((name) => name !== 'control')
  return names.map((name) => (lstatSync(join('/dev/mapper', name)).isSymbolicLink() ? `${name}@` : name)).sort()
}

test('versions and targets', async (t) => {
  const { library, driver } = await deviceMapper.versions()
  t.regex(library, /^1\.02\.\d+/)
  t.regex(driver, /^4\.\d+\.\d+$/)
  const linearTarget = (await deviceMapper.targets()).find(({ name }) => name === 'linear')
  t.is(linearTarget?.version.length, 3)
  t.is(linearTarget?.version[0], 1)
})

test('a device lives: created, listed, described, renamed, removed', async (t) => {
  t.deepEqual(await deviceMapper.list(), [])
  const created = await deviceMapper.create('life', {
    uuid: 'TEST-life',
    table: [linear(0, 1), { ...linear(4, 1), startSector: mebibyteSectors }]
  })
  const { rdev } = statSync('/dev/mapper/life')
  const number = decodeDeviceNumber(rdev)
  const expected = {
    name: 'life',
    uuid: 'TEST-life',
    ...number,
    suspended: false,
    hasLiveTable: true,
    hasInactiveTable: false,
    openCount: 0,
    eventNumber: 0,
    readOnly: false,
    targetCount: 2,
    removeDeferred: false,
    internallySuspended: false
  }
  t.deepEqual(created, expected)
  for (const reference of ['life', { uuid: 'TEST-life' }, number]) {
    t.deepEqual(await deviceMapper.info(reference), expected)
  }
  t.deepEqual(await deviceMapper.list(), [{ name: 'life', ...number }])
  const disk = decodeDeviceNumber(statSync('/dev/ubda').rdev)
  t.deepEqual(await deviceMapper.deps({ uuid: 'TEST-life' }), [disk])
  t.deepEqual(await deviceMapper.table('life'), [
    row('linear', 2048, `${disk.major}:${disk.minor} 0`),
    row('linear', 2048, `${disk.major}:${disk.minor} 8192`, 2048)
  ])
  t.deepEqual(await deviceMapper.status(number), [row('linear', 2048), row('linear', 2048, '', 2048)])
  await deviceMapper.rename({ uuid: 'TEST-life' }, 'second life')
  t.deepEqual(nodes(), ['second\\x20life'])
  t.is((await deviceMapper.info(number))?.name, 'second life')
  t.deepEqual(await deviceMapper.list(), [{ name: 'second life', ...number }])
  t.is(await deviceMapper.remove(number), 'removed')
  t.deepEqual(nodes(), [])
  t.is(await deviceMapper.info('life'), undefined)
  t.deepEqual(await deviceMapper.list(), [])
})

test('sectors are exact, far beyond 32 bits', async (t) => {
  const rows = [row('zero', 2 ** 40 + 1), row('error', 2 ** 44 - 7, '', 2 ** 40 + 1)]
  await deviceMapper.create('far', { table: rows, readOnly: true })
  t.deepEqual(await deviceMapper.table('far'), rows)
  t.like(await deviceMapper.info('far'), { readOnly: true, targetCount: 2 })
  await deviceMapper.remove('far')
})

test('a table of a thousand rows comes back whole', async (t) => {
  const rows = Array.from({ length: 1000 }, (_, index) => row(index % 2 === 0 ? 'zero' : 'error', 8, '', 8 * index))
  await deviceMapper.create('many', { table: rows })
  t.deepEqual(await deviceMapper.table('many'), rows)
  t.deepEqual(await deviceMapper.status('many'), rows)
  await deviceMapper.remove('many')
})

test('many devices are listed whole', async (t) => {
  const names = Array.from({ length: 300 }, (_, index) => `crowd-${String(index).padStart(100, '0')}`)
  for (const name of names) await deviceMapper.create(name)
  t.deepEqual((await deviceMapper.list()).map(({ name }) => name).sort(), names)
  for (const name of names) await deviceMapper.remove(name)
})

test('what does not exist is not found, by any reference and in every call', async (t) => {
  for (const reference of ['nobody', { uuid: 'TEST-nobody' }, { major: 254, minor: 777 }]) {
    t.is(await deviceMapper.info(reference), undefined)
    for (const call of [
      () => deviceMapper.deps(reference),
      () => deviceMapper.table(reference),
      () => deviceMapper.status(reference),
      () => deviceMapper.message(reference, 'hello'),
      () => deviceMapper.reload(reference, [row('zero', 8)]),
      () => deviceMapper.clear(reference),
      () => deviceMapper.suspend(reference),
      () => deviceMapper.resume(reference),
      () => deviceMapper.rename(reference, 'somebody'),
      () => deviceMapper.remove(reference)
    ]) {
      const error = await failureOf(call())
      t.like(error, { code: 'DM_NO_SUCH_DEVICE', status: 'NOT_FOUND', errno: 'ENXIO' }, error.line)
    }
  }
})

test('a refused creation says why and leaves nothing behind', async (t) => {
  const table = (targetType: string, params: string) => ({ table: [row(targetType, 8, params)] })
  const unknown = await failureOf(deviceMapper.create('refused', table('nosuch', '')))
  t.like(unknown, { code: 'DM_CALL_FAILED', errno: 'EINVAL', device: 'refused' })
  t.is(
    unknown.message,
    'create of refused failed with EINVAL: device-mapper: reload ioctl on refused failed: Invalid argument'
  )
  const nowhere = await failureOf(deviceMapper.create('refused', table('linear', '/dev/nowhere 0')))
  t.is(nowhere.errno, isKernelSince(6, 12) ? 'ENOENT' : 'ENODEV')
  t.is(
    (await failureOf(deviceMapper.create('refused', table('linear', '/dev/ubda 99999999999')))).code,
    'DM_CALL_FAILED'
  )
  const noDevice = await failureOf(deviceMapper.create('refused', table('linear', '99:1 0')))
  t.like(noDevice, { code: 'DM_CALL_FAILED', errno: 'ENXIO' }, 'a missing device below is not the device itself')
  t.is(await deviceMapper.info('refused'), undefined)
  t.deepEqual(nodes(), [])

  await deviceMapper.create('taken', { uuid: 'TEST-taken' })
  t.like(await failureOf(deviceMapper.create('taken')), { code: 'DM_DEVICE_BUSY', errno: 'EBUSY' })
  t.like(await failureOf(deviceMapper.create('other', { uuid: 'TEST-taken' })), {
    code: 'DM_DEVICE_BUSY',
    errno: 'EBUSY'
  })
  await deviceMapper.create('other')
  t.is((await failureOf(deviceMapper.rename('other', 'taken'))).code, 'DM_DEVICE_BUSY')
  await deviceMapper.remove('other')
  await deviceMapper.remove('taken')
})

test('tables are loaded, dropped and swapped', async (t) => {
  const empty = await deviceMapper.create('swap')
  t.like(empty, { hasLiveTable: false, hasInactiveTable: false })
  t.deepEqual(nodes(), [], 'a node leads somewhere only once there is a table')
  t.deepEqual(await deviceMapper.table('swap'), [])
  t.like(await deviceMapper.reload('swap', [row('zero', 8)]), { hasLiveTable: false, hasInactiveTable: true })
  t.deepEqual(await deviceMapper.table('swap'), [])
  t.deepEqual(await deviceMapper.table('swap', { inactive: true }), [row('zero', 8)])
  t.like(await deviceMapper.clear('swap'), { hasLiveTable: false, hasInactiveTable: false })
  await deviceMapper.reload('swap', [row('zero', 8)])
  t.like(await deviceMapper.resume('swap'), { hasLiveTable: true, hasInactiveTable: false, suspended: false })
  t.deepEqual(nodes(), ['swap'])
  await deviceMapper.suspend('swap')
  await deviceMapper.reload('swap', [row('error', 16)], { readOnly: true })
  t.like(await deviceMapper.resume('swap'), { readOnly: true })
  t.deepEqual(await deviceMapper.table('swap'), [row('error', 16)])
  await deviceMapper.remove('swap')
})

test('suspending with lockfs brings a file system to rest, without it does not', async (t) => {
  await deviceMapper.create('frozen', { table: [linear(0, 64)] })
  run('mkfs.ext4', ['-q', '/dev/mapper/frozen'])
  mkdirSync('/run/mnt/frozen', { recursive: true })
  run('mount', ['/dev/mapper/frozen', '/run/mnt/frozen'])
  const onDisk = (word: string) =>
    run('bash', ['-c', `dd if=/dev/ubda bs=1M count=64 iflag=direct status=none | grep -c ${word} || true`]).trim() !==
    '0'
  writeFileSync('/run/mnt/frozen/one', 'needle-one '.repeat(1000))
  t.like(await deviceMapper.suspend('frozen', { lockfs: false }), { suspended: true })
  t.false(onDisk('needle-one'))
  t.like(await deviceMapper.resume('frozen'), { suspended: false })
  t.like(await deviceMapper.suspend('frozen'), { suspended: true })
  t.true(onDisk('needle-one'))
  t.like(await deviceMapper.info('frozen'), { suspended: true, openCount: 1 })
  await deviceMapper.resume('frozen')
  t.is((await failureOf(deviceMapper.remove('frozen'))).code, 'DM_DEVICE_BUSY')
  run('umount', ['/run/mnt/frozen'])
  await deviceMapper.remove('frozen', { retry: true })
})

test('suspending over a suspended device is warned of, where it flushes', async (t) => {
  await deviceMapper.create('below', { table: [linear(0, 1)] })
  await deviceMapper.create('above', { table: [row('linear', mebibyteSectors, '/dev/mapper/below 0')] })
  await deviceMapper.suspend('below')
  notices.length = 0
  t.like(await deviceMapper.suspend('above', { flush: false, lockfs: false }), { suspended: true })
  t.deepEqual(notices, [])
  await deviceMapper.resume('above')
  t.like(await deviceMapper.suspend('above'), { suspended: true })
  t.is(notices.length, 1)
  t.regex(notices[0] ?? '', /^suspend of above: .*already-suspended device/)
  await deviceMapper.resume('below')
  await deviceMapper.resume('above')
  t.is((await failureOf(deviceMapper.remove('below'))).code, 'DM_DEVICE_BUSY')
  await deviceMapper.remove('above')
  await deviceMapper.remove('below')
})

test('a device in use is busy; removal can be left to its last user, or tried for a while', async (t) => {
  await deviceMapper.create('used', { table: [row('zero', 8)] })
  let user = openSync('/dev/mapper/used', 'r')
  t.like(await failureOf(deviceMapper.remove('used')), { code: 'DM_DEVICE_BUSY', errno: 'EBUSY' })
  t.is(await deviceMapper.remove('used', { deferred: true }), 'deferred')
  t.like(await deviceMapper.info('used'), { removeDeferred: true, openCount: 1 })
  t.deepEqual(nodes(), [], 'without udev nobody would take its node away later')
  closeSync(user)
  await until(() => !existsSync('/sys/block/dm-0/dm/name'), 'the device is gone')
  t.is(await deviceMapper.info('used'), undefined)

  await deviceMapper.create('used', { table: [row('zero', 8)] })
  user = openSync('/dev/mapper/used', 'r')
  const removal = deviceMapper.remove('used', { retry: true })
  await sleep(300)
  closeSync(user)
  t.is(await removal, 'removed')
  t.is((await failureOf(deviceMapper.remove('used', { deferred: true }))).code, 'DM_NO_SUCH_DEVICE')
})

test('nodes can be made anew, and stale ones removed', async (t) => {
  await deviceMapper.create('one node', { table: [row('zero', 8)] })
  await deviceMapper.create('two', { table: [row('zero', 8)] })
  unlinkSync('/dev/mapper/one\\x20node')
  unlinkSync('/dev/mapper/two')
  run('mknod', ['/dev/mapper/stale', 'b', '254', '99'])
  await deviceMapper.makeNodes('one node')
  t.deepEqual(nodes(), ['one\\x20node', 'stale'])
  await deviceMapper.makeNodes('stale')
  t.deepEqual(nodes(), ['one\\x20node'])
  await deviceMapper.makeNodes()
  t.deepEqual(nodes(), ['one\\x20node', 'two'])
  await deviceMapper.remove('one node')
  await deviceMapper.remove('two')
})

test('a missing control node is made where the driver is there', async (t) => {
  unlinkSync('/dev/mapper/control')
  const fresh = new DeviceMapper()
  t.deepEqual(await fresh.list(), [])
  await fresh.close()
  t.deepEqual(decodeDeviceNumber(statSync('/dev/mapper/control').rdev), { major: 10, minor: 236 })
})

test('messages are answered', async (t) => {
  await deviceMapper.create('talk', { table: [row('zero', 1024)] })
  t.is(await deviceMapper.message('talk', '@stats_create - /2'), '0')
  t.regex((await deviceMapper.message('talk', '@stats_list')) ?? '', /^0: 0\+1024 512/)
  t.is((await deviceMapper.message('talk', '@stats_delete 0')) ?? '', '')
  t.like(await failureOf(deviceMapper.message('talk', 'nonsense')), { code: 'DM_CALL_FAILED', errno: 'EINVAL' })
  t.like(await failureOf(deviceMapper.message('talk', 'nonsense', { sector: 4096 })), { errno: 'EINVAL' })
  await deviceMapper.remove('talk')
})

test('a thin pool is made and asked, and says no in its own way', async (t) => {
  await deviceMapper.create('meta', { table: [linear(0, 4)] })
  await deviceMapper.create('data', { table: [linear(8, 64)] })
  zeroStart('/dev/mapper/meta')
  const poolTable = row(
    'thin-pool',
    64 * mebibyteSectors,
    '/dev/mapper/meta /dev/mapper/data 128 0 1 error_if_no_space'
  )
  await deviceMapper.create('pool', { table: [poolTable] })
  t.is(await deviceMapper.message('pool', 'create_thin 0'), undefined)
  t.like(await failureOf(deviceMapper.message('pool', 'create_thin 0')), { code: 'DM_CALL_FAILED', errno: 'EEXIST' })
  t.like(await failureOf(deviceMapper.message('pool', 'create_thin 16777216')), { errno: 'EINVAL' })
  t.like(await failureOf(deviceMapper.message('pool', 'set_transaction_id 7 8')), { errno: 'EINVAL' })
  t.like(await failureOf(deviceMapper.message('pool', 'delete 9')), { errno: 'ENODATA' })
  await deviceMapper.message('pool', 'set_transaction_id 0 1')

  await deviceMapper.create('thin', { table: [row('thin', 16 * mebibyteSectors, '/dev/mapper/pool 0')] })
  run('dd', ['if=/dev/urandom', 'of=/dev/mapper/thin', 'bs=64k', 'count=3', 'oflag=direct', 'status=none'])
  t.like(await failureOf(deviceMapper.message('pool', 'delete 0')), { code: 'DM_DEVICE_BUSY', errno: 'EBUSY' })
  await deviceMapper.suspend('thin')
  await deviceMapper.message('pool', 'create_snap 1 0')
  await deviceMapper.resume('thin')

  await deviceMapper.message('pool', 'reserve_metadata_snap')
  const busy = await failureOf(deviceMapper.message('pool', 'reserve_metadata_snap'))
  t.like(busy, { code: 'DM_DEVICE_BUSY', status: 'UNAVAILABLE', errno: 'EBUSY', device: 'pool', call: 'message' })
  t.is(
    busy.message,
    'message "reserve_metadata_snap" to pool failed with EBUSY: device-mapper: message ioctl on pool failed: Device or resource busy'
  )
  t.regex((await deviceMapper.status('pool'))[0]?.params ?? '', /^1 \d+\/1024 3\/1024 \d+ rw /)
  await deviceMapper.message('pool', 'release_metadata_snap')
  t.like(await failureOf(deviceMapper.message('pool', 'release_metadata_snap')), { errno: 'EINVAL' })
  t.is((await deviceMapper.status('thin'))[0]?.params, '384 383')
  const pool = await deviceMapper.info('pool')
  t.deepEqual(await deviceMapper.deps('thin'), [{ major: pool?.major, minor: pool?.minor }] as never)

  // Asking for the status with a flush commits; without, it changes nothing.
  const held = () => run('bash', ['-c', 'dd if=/dev/mapper/meta bs=4k count=1 iflag=direct status=none | md5sum'])
  const write = (block: number) =>
    run('dd', [
      'if=/dev/urandom',
      'of=/dev/mapper/thin',
      'bs=64k',
      'count=1',
      `seek=${block}`,
      'oflag=direct',
      'status=none'
    ])
  write(10)
  await deviceMapper.status('pool', { flush: true })
  const before = held()
  t.is(held(), before)
  write(11)
  await deviceMapper.status('pool', { flush: true })
  t.not(held(), before)

  for (const name of ['thin', 'pool', 'data', 'meta']) await deviceMapper.remove(name, { retry: true })
})

test('a call that hangs delays nobody, is reported, and ends when the device is freed', async (t) => {
  await deviceMapper.create('era-meta', { table: [linear(0, 4)] })
  await deviceMapper.create('era-data', { table: [linear(8, 16)] })
  zeroStart('/dev/mapper/era-meta')
  const table = [row('era', 16 * mebibyteSectors, '/dev/mapper/era-meta /dev/mapper/era-data 128')]
  await deviceMapper.create('era', { table })
  await deviceMapper.create('bystander', { table: [row('zero', 8)] })
  t.regex((await deviceMapper.status('era'))[0]?.params ?? '', /^8 \d+\/\d+ \d+ -$/)
  await deviceMapper.suspend('era')

  // A suspended era device answers no status until it is resumed: its worker is stopped, and the ioctl waits for that.
  const [pid = 0] = deviceMapper.helpers.pids
  let reported = false
  const hanging = failureOf(deviceMapper.status('era', { deadlineMs: 10_000 })).finally(() => (reported = true))
  const behind = [deviceMapper.status('era'), deviceMapper.message('era', 'checkpoint')].map(failureOf)
  for (let round = 0; round < 100; round++) {
    t.deepEqual(await deviceMapper.status('bystander'), [row('zero', 8)])
    t.like(await deviceMapper.info('era'), { suspended: true })
  }
  t.false(reported, 'two hundred calls went past it')
  const error = await hanging
  t.like(error, { code: 'DM_CALL_STUCK', status: 'UNAVAILABLE', call: 'status', device: 'era' })
  t.regex(
    error.message,
    new RegExp(`status of era has not come back from the kernel after 10 s; its process \\(${pid}\\)`)
  )
  for (const { code, message } of await Promise.all(behind)) {
    t.is(code, 'DM_CALL_STUCK')
    t.regex(message, /of era was not tried|to era was not tried/, 'one process hangs there, not three')
  }
  t.deepEqual(deviceMapper.helpers.givenUp, [{ pid, call: 'status of era' }])
  t.regex(readFileSync(`/proc/${pid}/status`, 'utf8'), /^State:\s+D/m, 'killed, and still in the kernel')

  t.regex((await failureOf(deviceMapper.status('era'))).message, /was not tried: status of era is still stuck/)
  t.is((await failureOf(deviceMapper.message('era', 'checkpoint'))).code, 'DM_CALL_STUCK')
  t.deepEqual(await deviceMapper.status('bystander'), [row('zero', 8)])

  await deviceMapper.resume('era')
  await until(() => deviceMapper.helpers.givenUp.length === 0, 'the kernel has let the process go')
  t.false(existsSync(`/proc/${pid}`))
  t.regex((await deviceMapper.status('era'))[0]?.params ?? '', /^8 /)
  t.is(deviceMapper.helpers.pids.length, 1)
  for (const name of ['era', 'era-data', 'era-meta', 'bystander']) await deviceMapper.remove(name, { retry: true })
})

test('many hanging devices do not become many hanging processes', async (t) => {
  const impatient = new DeviceMapper({ deadlineMs: 8000, mostStuck: 3 })
  const count = 5
  for (let index = 0; index < count; index++) {
    await deviceMapper.create(`meta-${index}`, { table: [linear(4 * index, 4)] })
    await deviceMapper.create(`data-${index}`, { table: [linear(100 + 4 * index, 4)] })
    zeroStart(`/dev/mapper/meta-${index}`)
    const table = [row('era', 4 * mebibyteSectors, `/dev/mapper/meta-${index} /dev/mapper/data-${index} 128`)]
    await deviceMapper.create(`era-${index}`, { table })
    await deviceMapper.suspend(`era-${index}`)
  }
  // At once, and once more when those are stuck for certain.
  for (let round = 0; round < 2; round++) {
    const names = Array.from({ length: count }, (_, index) => `era-${index}`)
    const errors = await Promise.all(names.map((name) => failureOf(impatient.status(name))))
    t.deepEqual(new Set(errors.map(({ code }) => code)), new Set(['DM_CALL_STUCK']))
    t.is(errors.filter(({ message }) => message.includes('has not come back')).length, round === 0 ? 3 : 0)
  }
  t.is(impatient.helpers.givenUp.length, 3)
  t.is((await impatient.list()).length, 3 * count)
  for (let index = 0; index < count; index++) await impatient.resume(`era-${index}`)
  await until(() => impatient.helpers.givenUp.length === 0, 'all are let go')
  t.is((await impatient.status('era-4')).length, 1)
  await impatient.close()
  for (let index = 0; index < count; index++) {
    for (const name of ['era', 'data', 'meta']) await deviceMapper.remove(`${name}-${index}`, { retry: true })
  }
})

test('a thousand calls leave no file, no memory and no device behind', async (t) => {
  const own = new DeviceMapper()
  const rows = Array.from({ length: 50 }, (_, index) => row('zero', 8, '', 8 * index))
  const round = async () => {
    await own.create('again', { uuid: 'TEST-again', table: rows })
    await own.info({ uuid: 'TEST-again' })
    await own.table('again')
    await own.status('again')
    await own.list()
    await failureOf(own.message('again', 'nonsense'))
    await failureOf(own.create('again'))
    await own.suspend('again')
    await own.resume('again')
    await own.remove('again')
  }
  const footprint = () => {
    const [pid = 0] = own.helpers.pids
    const memory = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
    return { files: readdirSync(`/proc/${pid}/fd`).length, memory: Number(memory) * 1024 }
  }
  const openHere = () => readdirSync('/proc/self/fd').length
  // Each round hands over some 20 kB of rows. A leak of them, or of anything that a call makes, grows with every hundred rounds;
  // a garbage collector's leisure does not, so one hundred that needs less than half of what it was handed is enough to tell.
  for (let warm = 0; warm < 100; warm++) await round()
  const grown: number[] = []
  do {
    const before = { ...footprint(), here: openHere() }
    for (let counted = 0; counted < 100; counted++) await round()
    const after = { ...footprint(), here: openHere() }
    t.is(after.files, before.files)
    t.is(after.here, before.here)
    grown.push(after.memory - before.memory)
  } while (grown.at(-1)! > 2 ** 20 && grown.length < 8)
  t.true(grown.at(-1)! <= 2 ** 20, `bytes by which the helper grew with each hundred rounds: ${grown.join(', ')}`)
  await own.close()
  t.deepEqual(await deviceMapper.list(), [])
})

/** Runs a program that prints JSON, in another process, as `command` says (a list of words that ends before Node's own). */
function inOtherProcess(command: readonly string[], body: string, options: DeviceMapperOptions = {}): unknown {
  const program = `
    import { DeviceMapper } from ${JSON.stringify(new URL('../../native/device-mapper.ts', import.meta.url).href)}
    import { lstatSync, readdirSync } from 'node:fs'
    const notices = []
    const deviceMapper = new DeviceMapper({ ...${JSON.stringify(options)}, onNotice: ({ lines }) => notices.push(...lines) })
    ${body}`
  const [first = process.execPath, ...rest] = [...command, process.execPath, '--input-type=module', '--eval', program]
  return JSON.parse(run(first, rest))
}

const printFailure = `
  const error = await deviceMapper.list().catch((error) => error)
  console.log(JSON.stringify({ code: error.code, message: error.message, remedy: error.remedy }))`

test('without the right to, it says so', (t) => {
  for (const [command, said] of [
    [['setpriv', '--reuid=65534', '--clear-groups'], /control cannot be opened/],
    [['setpriv', '--bounding-set=-sys_admin', '--inh-caps=-sys_admin'], /Permission denied/]
  ] as const) {
    const error = inOtherProcess(command, printFailure) as { code: string; message: string; remedy: string }
    t.is(error.code, 'DM_PERMISSION')
    t.regex(error.message, said)
    t.regex(error.remedy, /CAP_SYS_ADMIN/)
  }
})

test('an idle helper does not keep its parent from ending', (t) => {
  t.deepEqual(inOtherProcess([], 'console.log(JSON.stringify(await deviceMapper.list()))'), [])
})

/** A device's life, and what is under /dev/mapper after each step: links are udev's, nodes the library's. */
const lifeWithNodes = `
  const seen = []
  const step = async (what, call) => {
    await call
    const names = readdirSync('/dev/mapper').filter((name) => name !== 'control')
    seen.push([what, ...names.map((name) => (lstatSync('/dev/mapper/' + name).isSymbolicLink() ? name + '@' : name))])
  }
  const table = [{ startSector: 0, lengthSectors: 8, targetType: 'zero', params: '' }]
  await step('create', deviceMapper.create('node', { uuid: 'TEST-node', table }))
  await step('rename', deviceMapper.rename('node', 'other node'))
  await step('suspend', deviceMapper.suspend('other node'))
  await step('resume', deviceMapper.resume({ uuid: 'TEST-node' }))
  await step('refused', deviceMapper.create('refused', { table: [{ ...table[0], targetType: 'nosuch' }] }).catch(() => undefined))
  // (udev of sid still looks at the device: whoever removes one in the product tries again, too.)
  await step('remove', deviceMapper.remove('other node', { retry: true }))
  console.log(JSON.stringify({ seen, notices }))`

const lifeOf = (mark: '' | '@') => [
  ['create', `node${mark}`],
  ['rename', `other\\x20node${mark}`],
  ['suspend', `other\\x20node${mark}`],
  ['resume', `other\\x20node${mark}`],
  ['refused', `other\\x20node${mark}`],
  ['remove']
]

test('without udev, the library makes the nodes', (t) => {
  t.deepEqual(inOtherProcess([], lifeWithNodes), { seen: lifeOf(''), notices: [] })
})

// udevd itself is part of the lab where the package could be had.
// (A release's lab is a root of its own.)
const lab = process.env.LAB_RELEASE === undefined ? (process.env.DELTAMAPPER_LAB ?? '') : '/'
const udevadm = ['bin/udevadm', 'usr/bin/udevadm'].map((path) => join(lab, path)).find((path) => existsSync(path))
const testWithUdev = udevadm === undefined ? test.skip : test

/** Starts udevd with device-mapper's own rules, which find dmsetup in the lab. */
async function startUdev(): Promise<ChildProcess> {
  mkdirSync('/run/udev/rules.d', { recursive: true })
  for (const folder of ['lib/udev/rules.d', 'usr/lib/udev/rules.d'].map((path) => join(lab, path))) {
    if (!existsSync(folder)) continue
    for (const name of readdirSync(folder).filter((each) => /-dm|dm-/.test(each) && !each.includes('lvm'))) {
      const rules = readFileSync(join(folder, name), 'utf8').replaceAll(
        /\/(usr\/)?sbin\/dmsetup/g,
        run('bash', ['-c', 'command -v dmsetup']).trim()
      )
      writeFileSync(join('/run/udev/rules.d', name), rules)
    }
  }
  // One program with several names: it is udevd when called so.
  const udevd = spawn(udevadm ?? '', [], { argv0: 'systemd-udevd', stdio: ['ignore', 'ignore', 'ignore'] })
  await until(() => existsSync('/run/udev/control'), 'udevd listens')
  return udevd
}

const semaphores = () => readFileSync('/proc/sysvipc/sem', 'utf8').trim().split('\n').length - 1

testWithUdev('with udev, in its IPC namespace and in another: its links, and nothing left behind', async (t) => {
  const disabled = process.env.DM_DISABLE_UDEV
  delete process.env.DM_DISABLE_UDEV
  const udevd = await startUdev()
  t.teardown(async () => {
    udevd.kill('SIGCONT')
    udevd.kill('SIGKILL')
    if (udevd.exitCode === null && udevd.signalCode === null) await once(udevd, 'exit')
    rmSync('/run/udev', { recursive: true })
    if (disabled !== undefined) process.env.DM_DISABLE_UDEV = disabled
  })
  t.deepEqual(inOtherProcess([], lifeWithNodes), { seen: lifeOf('@'), notices: [] })
  t.is(semaphores(), 0)
  t.deepEqual(inOtherProcess(['unshare', '--ipc'], lifeWithNodes), { seen: lifeOf('@'), notices: [] })

  // A udevd that is there and does nothing: waited for, but not for ever.
  udevd.kill('SIGSTOP')
  for (const command of [[], ['unshare', '--ipc']]) {
    const { seen, notices } = inOtherProcess(command, lifeWithNodes, { udevTimeoutMs: 300 }) as Record<
      string,
      unknown[]
    >
    t.deepEqual(seen, lifeOf(''))
    if (command.length === 0) t.regex(String(notices?.[0]), /udev has not confirmed within 300 ms/)
  }
  t.is(semaphores(), 0)
})
