/**
 * Pools of the agent's own, from the command line down to the kernel: their whole life, what is refused, and what is said when somebody
 * else has had their hands in it. Runs inside the kernel lab: node test/lab/run.ts test/kernel/owned-pools.test.ts
 */
import { once } from 'node:events'
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { parsePoolStatus } from '../../src/devicemapper/thin/status.ts'
import type { ErrorCode } from '../../src/errors.ts'
import { runCommand } from '../cli/run-command.ts'
import {
  createDevice,
  deviceBytes,
  reloadDevice,
  removeDevice,
  run,
  sendMessage,
  thinTable,
  zeroStart
} from './dmsetup.ts'
import {
  blankDisk,
  blankDisks,
  blockBytes,
  blocksOf,
  devicesBesideDisks,
  failure,
  growDisk,
  mebibyte,
  nameOf,
  OwnedAgent,
  readWritten,
  startOrderedWriter,
  until
} from './owned-agent.ts'

const folder = mkdtempSync(join(tmpdir(), 'owned-'))
const deviceMapper = new DeviceMapper()
// device-mapper's helper keeps no process alive on its own.
const alive = setInterval(() => undefined, 1000)
let agent: OwnedAgent
test.before(async () => {
  agent = await OwnedAgent.start()
})
test.after.always(async () => {
  clearInterval(alive)
  await agent.kill()
  await deviceMapper.close()
})

function write(device: string, firstBlock: number, count: number): void {
  const blocks = ['bs=64k', `seek=${firstBlock}`, `count=${count}`]
  run('dd', ['if=/dev/urandom', `of=${device}`, ...blocks, 'oflag=direct', 'conv=notrunc', 'status=none'])
}

async function isListed(pool: string): Promise<boolean> {
  return (await agent.client.listPools({})).pools.some(({ name }) => name === pool)
}

/** The blocks in which two devices differ. */
function differingBlocks(one: string, other: string): number[] {
  const files = [one, other].map((path) => openSync(path, 'r'))
  const buffers = [Buffer.alloc(blockBytes), Buffer.alloc(blockBytes)]
  const differing: number[] = []
  const sizeBytes = deviceBytes(one)
  for (let at = 0; at < sizeBytes; at += blockBytes) {
    files.forEach((file, i) => readSync(file, buffers[i], 0, blockBytes, at))
    if (!buffers[0].equals(buffers[1])) differing.push(at / blockBytes)
  }
  files.forEach((file) => closeSync(file))
  return differing
}

test('the life of a pool, from the command line', async (t) => {
  const { data, metadata } = blankDisks(64, 128)
  const make = ['pool', 'create', 'tank', '--data', data, '--metadata', metadata]
  const pool = (await agent.command(...make)) as Record<string, unknown>
  t.like(pool, {
    name: 'tank',
    state: 'read-write',
    block_bytes: blockBytes,
    when_full: 'error',
    volumes: 0,
    transaction_id: '0'
  })
  t.like(pool['usage'], { data_used_bytes: 0, data_total_bytes: 64 * mebibyte, metadata_total_bytes: 4 * mebibyte })
  const [table] = await deviceMapper.table('tank')
  t.regex(table?.params ?? '', / 128 52 1 error_if_no_space$/)
  t.regex((await deviceMapper.info('tank'))?.uuid ?? '', /^DELTAMAPPER-pool-tank$/)

  const create = ['volume', 'create', 'tank/my-docs', '--size', '32MiB']
  const created = (await agent.command(...create)) as Record<string, unknown>
  t.like(created, { pool: 'tank', name: 'my-docs', kind: 'volume', thin_id: 0, size_bytes: 32 * mebibyte })
  t.deepEqual(created['device'], { path: '/dev/mapper/tank-my--docs', read_only: false, open_count: 0 })
  const device = '/dev/mapper/tank-my--docs'
  const docs = { pool: 'tank', name: 'my-docs' }
  // What the other commands ask for is in test/cli; from here on the agent is asked directly, which takes less time.
  const { client } = agent

  // A file system in use, snapshots of it, and what is in them.
  run('mkfs.ext4', ['-q', device])
  const mount = join(folder, 'mount')
  mkdirSync(mount)
  run('mount', ['-t', 'ext4', device, mount])
  writeFileSync(join(mount, 'first'), Buffer.alloc(3 * mebibyte, 'first'))
  const monday = (await agent.command('snapshot', 'create', 'tank/my-docs', 'monday')) as Record<string, unknown>
  t.like(monday, { kind: 'snapshot', origin: 'my-docs', volume: 'my-docs', thin_id: 1, size_bytes: 32 * mebibyte })
  t.is(monday['device'], undefined)
  t.false((await deviceMapper.info('tank-my--docs'))?.suspended)
  writeFileSync(join(mount, 'second'), Buffer.alloc(2 * mebibyte, 'second'))
  await client.createSnapshot({ pool: 'tank', origin: 'my-docs', name: 'tuesday' })
  writeFileSync(join(mount, 'third'), Buffer.alloc(mebibyte, 'third'))

  const changed = blocksOf(await agent.delta('tank/monday', 'tank/tuesday'))
  t.true(changed.length >= 32)
  t.true(blocksOf(await agent.allocated('tank/tuesday')).length >= changed.length)

  // Read-only, clean, each of its own moment; and what differs between them is in the answer.
  for (const name of ['monday', 'tuesday']) {
    const path = `/dev/mapper/tank-${name}`
    const activated = await client.activateVolume({ pool: 'tank', name, writable: false })
    t.like(activated, { device: { path, readOnly: true } })
    const mounted = join(folder, name)
    mkdirSync(mounted)
    run('mount', ['-t', 'ext4', '-o', 'ro', path, mounted])
    t.is(readFileSync(join(mounted, 'first')).length, 3 * mebibyte)
    t.throws(() => readFileSync(join(mounted, name === 'monday' ? 'second' : 'third')), { code: 'ENOENT' })
    t.regex((await failure(client.deactivateVolume({ pool: 'tank', name }))).line, /^DM_DEVICE_BUSY: .*is in use/)
    run('umount', [mounted])
    run('e2fsck', ['-fn', path])
  }
  const differing = differingBlocks('/dev/mapper/tank-monday', '/dev/mapper/tank-tuesday')
  t.true(differing.length > 0)
  t.deepEqual(
    differing.filter((each) => !changed.includes(each)),
    []
  )
  t.deepEqual(blocksOf(await agent.delta('tank/monday', 'tank/tuesday')), changed, 'active or not')

  // Larger: the volume, with its file system in use, and the pool below it.
  t.is((await client.growVolume({ ...docs, sizeBytes: 48 * mebibyte })).sizeBytes, 48 * mebibyte)
  t.is(deviceBytes(device), 48 * mebibyte)
  run('resize2fs', [device])
  await client.createSnapshot({ pool: 'tank', origin: 'my-docs', name: 'wednesday' })
  const { snapshots } = await client.listSnapshots({ pool: 'tank' })
  t.deepEqual(
    snapshots.map(({ sizeBytes }) => sizeBytes),
    [32, 32, 48].map((each) => each * mebibyte)
  )
  t.true((await agent.delta('tank/tuesday', 'tank/wednesday')).length > 0)
  await growDisk(deviceMapper, data, 128)
  t.is((await client.growPool({ pool: 'tank' })).usage?.dataTotalBytes, 128 * mebibyte)
  t.is(readFileSync(join(mount, 'third')).length, mebibyte)

  // Out of use, with nothing lost, and into use again by another agent.
  t.regex(await agent.complaint('pool', 'deactivate', 'tank'), /3 active volumes and snapshots .*--with-volumes/)
  const all = { pool: 'tank', withVolumes: true }
  t.regex((await failure(client.deactivatePool(all))).line, /tank-my--docs is in use/)
  t.regex((await failure(client.deleteVolume(docs))).line, /is in use/)
  run('umount', [mount])
  t.is((await client.deactivatePool(all)).state, 'inactive')
  t.deepEqual(await devicesBesideDisks(deviceMapper), [])
  t.is(await agent.live.stop(), 0)
  await agent.startAgain()
  t.deepEqual(await devicesBesideDisks(deviceMapper), [], 'nothing is activated at start')
  const again = agent.client
  const inactive = /^DM_POOL_INACTIVE: .*pool activate tank/
  t.regex((await failure(again.activateVolume({ ...docs, writable: false }))).line, inactive)
  t.regex((await failure(agent.delta('tank/monday', 'tank/tuesday'))).line, inactive)
  t.like(await again.activatePool(all), { state: 'read-write', volumes: 1, snapshots: 3 })
  t.deepEqual(await devicesBesideDisks(deviceMapper), ['tank', 'tank-my--docs'])
  t.deepEqual(blocksOf(await agent.delta('tank/monday', 'tank/tuesday')), changed)
  run('mount', ['-t', 'ext4', device, mount])
  t.is(readFileSync(join(mount, 'third')).length, mebibyte)
  run('umount', [mount])
  const listing = await runCommand(['pool', 'list', '--endpoint', agent.live.address])
  t.regex(listing.stdout, /^tank +read-write +[\d.]+ % +128 MiB .*\n1 pool; complete\n$/m)

  // And to its end.
  t.deepEqual(await again.reconcile({ pool: '' }), { settled: [], findings: [] })
  t.regex((await failure(again.removePool({ pool: 'tank', wipe: false }))).line, /4 volumes and snapshots/)
  t.deepEqual(await agent.command('volume', 'delete', 'tank/my-docs', '--yes'), { deleted: 'tank/my-docs' })
  t.deepEqual(blocksOf(await agent.delta('tank/monday', 'tank/tuesday')), changed, 'snapshots outlive their volume')
  t.regex((await failure(agent.allocated('tank/my-docs'))).line, /^DM_SNAPSHOT_NOT_FOUND/)
  for (const name of ['monday', 'tuesday', 'wednesday']) await again.deleteSnapshot({ pool: 'tank', name })
  t.is(parsePoolStatus((await deviceMapper.status('tank'))[0]?.params ?? '').state, 'working')
  t.deepEqual(await agent.command('pool', 'remove', 'tank'), { removed: 'tank' })
  t.deepEqual(await devicesBesideDisks(deviceMapper), [])
  t.regex(
    await agent.complaint(...make),
    /holds a thin pool's metadata.*DM_DEVICE_NOT_BLANK/,
    'what is removed stays on the disks'
  )
  zeroStart(metadata)
  zeroStart(data)
  // Wiped, they are as good as new.
  const plan = { name: 'tank', metadataDevice: metadata, dataDevice: data, blockBytes, whenFull: 'error' as const }
  for (let round = 0; round < 2; round++) {
    await again.createPool(plan)
    await again.removePool({ pool: 'tank', wipe: true })
  }
})

test('what cannot become a pool is refused, and left alone', async (t) => {
  const { client } = agent
  const { data, metadata } = blankDisks(64)
  const plan = {
    name: 'no',
    metadataDevice: metadata,
    dataDevice: data,
    blockBytes: blockBytes,
    whenFull: 'error' as const
  }
  const refused = async (changes: Partial<typeof plan>, code: ErrorCode, words: RegExp) => {
    const error = await failure(client.createPool({ ...plan, ...changes }))
    t.is(error.code, code, error.line)
    t.regex(error.line, words)
  }

  const fileSystem = blankDisk('data', 16)
  run('mkfs.ext4', ['-q', fileSystem])
  await refused({ metadataDevice: fileSystem }, 'DM_DEVICE_NOT_BLANK', /holds an ext2, ext3 or ext4 file system/)
  await refused({ dataDevice: fileSystem }, 'DM_DEVICE_NOT_BLANK', /holds an ext2, ext3 or ext4 file system/)
  const mount = join(folder, 'in-use')
  mkdirSync(mount)
  run('mount', ['-t', 'ext4', fileSystem, mount])
  await refused({ dataDevice: fileSystem }, 'DM_DEVICE_BUSY', /is in use: mounted/)
  run('umount', [mount])
  const further = blankDisk('data', 16)
  run('bash', ['-c', `printf _BHRfS_M | dd of=${further} bs=1 seek=65600 conv=notrunc,fsync status=none`])
  await refused({ dataDevice: further }, 'DM_DEVICE_NOT_BLANK', /btrfs/)
  await refused({ dataDevice: '/dev/ubda' }, 'DM_DEVICE_BUSY', /is in use/)
  await refused({ dataDevice: metadata }, 'DM_DEVICE_BUSY', /cannot be the metadata device as well/)
  await refused({ dataDevice: '/dev/nothing' }, 'DM_NO_SUCH_DEVICE', /no \/dev\/nothing/)
  await refused({ dataDevice: '/etc/passwd' }, 'DM_ARGUMENT_INVALID', /is no block device/)
  await refused({ dataDevice: '/dev/null' }, 'DM_ARGUMENT_INVALID', /is no block device/)
  await refused({ dataDevice: '../dev/ubda' }, 'DM_ARGUMENT_INVALID', /no absolute path/)
  await refused({ dataDevice: '' }, 'DM_ARGUMENT_INVALID', /no absolute path/)
  await refused({ metadataDevice: blankDisk('metadata', 1) }, 'DM_ARGUMENT_INVALID', /1048576 bytes/)
  for (const blockBytes of [512, 65536 + 512, 3 * 512 * 100, 2 ** 31, 65537, 0, -65536, 2 ** 60]) {
    await refused({ blockBytes }, 'DM_ARGUMENT_INVALID', /sectors|block_bytes/)
  }
  await refused({ blockBytes: 128 * mebibyte }, 'DM_ARGUMENT_INVALID', /less than one block/)
  for (const name of ['a/b', '..', 'a b', 'x'.repeat(64), 'ü', 'a\n', 'control', '-\0']) {
    await refused({ name }, 'DM_ARGUMENT_INVALID', /cannot be the name/)
  }
  await refused({ name: '' }, 'DM_ARGUMENT_MISSING', /no name/)
  createDevice('somebody', '0 8 zero')
  await refused({ name: 'somebody' }, 'DM_NAME_TAKEN', /already is a device-mapper device somebody/)
  removeDevice('somebody')

  // LVM's, as far as device-mapper knows.
  const uuid = `LVM-${'A'.repeat(32)}${'b'.repeat(32)}`
  createDevice('group-volume', `0 ${(16 * mebibyte) / 512} linear ${blankDisk('data', 16)} 0`, '--uuid', uuid)
  await refused({ dataDevice: '/dev/mapper/group-volume' }, 'DM_DEVICE_BUSY', /is a volume of LVM's/)
  removeDevice('group-volume')

  t.false(await isListed('no'))
  t.deepEqual(await devicesBesideDisks(deviceMapper), [])

  // A pool that was only just formatted is as good as nothing; one that was used is not.
  await client.createPool({ ...plan, name: 'yes' })
  await refused({}, 'DM_DEVICE_BUSY', /is in use/)
  await refused({ name: 'yes' }, 'DM_NAME_TAKEN', /the name yes is taken/)
  await client.removePool({ pool: 'yes', wipe: false })
  await client.createPool({ ...plan, name: 'yes' })

  const volume = (changes: object) =>
    failure(client.createVolume({ pool: 'yes', name: 'v', sizeBytes: mebibyte, inactive: false, ...changes }))
  for (const sizeBytes of [0, -512, 1000, 2 ** 60, 2 ** 53])
    t.is((await volume({ sizeBytes })).code, 'DM_ARGUMENT_INVALID')
  for (const name of ['a/b', '.', 'x'.repeat(65), 'v w']) t.is((await volume({ name })).code, 'DM_ARGUMENT_INVALID')
  t.is((await volume({ pool: 'nowhere' })).code, 'DM_NO_SUCH_DEVICE')
  t.is((await volume({ pool: '' })).code, 'DM_NO_SUCH_DEVICE')
  await client.createVolume({ pool: 'yes', name: 'v', sizeBytes: mebibyte, inactive: false })
  // Active or not, what has the name is in use: nobody is told to remove it.
  t.regex((await volume({})).line, /DM_NAME_TAKEN: pool yes already has a volume v; choose another name/)
  await client.deactivateVolume({ pool: 'yes', name: 'v' })
  t.regex((await volume({})).line, /DM_NAME_TAKEN: pool yes already has a volume v; choose another name/)
  await client.createSnapshot({ pool: 'yes', origin: 'v', name: 's' })
  const snapshot = (origin: string, name: string) => failure(client.createSnapshot({ pool: 'yes', origin, name }))
  t.is((await snapshot('v', 's')).code, 'DM_NAME_TAKEN')
  t.is((await snapshot('v', 'v')).code, 'DM_NAME_TAKEN')
  t.is((await snapshot('w', 't')).code, 'DM_NO_SUCH_DEVICE')
  t.regex((await failure(client.deleteVolume({ pool: 'yes', name: 's' }))).line, /is a snapshot, no volume/)
  t.regex((await failure(client.deleteSnapshot({ pool: 'yes', name: 'v' }))).line, /is a volume, no snapshot/)
  const grow = (name: string, sizeBytes: number) => failure(client.growVolume({ pool: 'yes', name, sizeBytes }))
  t.regex((await grow('v', mebibyte / 2)).line, /cannot shrink/)
  t.is((await grow('s', 2 * mebibyte)).code, 'DM_ARGUMENT_INVALID')
  createDevice('yes-t', '0 8 zero')
  t.regex((await snapshot('v', 't')).line, /already is a device-mapper device yes-t/)
  removeDevice('yes-t')

  // On the wrong devices, a pool is not activated.
  await client.deactivatePool({ pool: 'yes', withVolumes: false })
  const behind = nameOf(metadata)
  const [table] = await deviceMapper.table(behind)
  reloadDevice(behind, `0 ${table.lengthSectors} linear /dev/ubda ${2048 * 2000}`)
  t.is((await failure(client.activatePool({ pool: 'yes', withVolumes: false }))).code, 'DM_METADATA_FOREIGN')
  reloadDevice(behind, `0 ${table.lengthSectors} ${table.targetType} ${table.params}`)
  createDevice('yes', '0 8 zero')
  t.regex(
    (await failure(client.activatePool({ pool: 'yes', withVolumes: false }))).line,
    /already is a device-mapper device yes/
  )
  t.deepEqual((await client.getPool({ pool: 'yes' })).state, 'inactive')
  t.deepEqual((await client.reconcile({ pool: 'yes' })).findings.map(({ what }) => what).length, 2)
  removeDevice('yes')
  await client.activatePool({ pool: 'yes', withVolumes: true })
  t.deepEqual(await devicesBesideDisks(deviceMapper), ['yes', 'yes-v'])
  await client.deleteVolume({ pool: 'yes', name: 'v' })
  await client.deleteSnapshot({ pool: 'yes', name: 's' })
  await client.removePool({ pool: 'yes', wipe: false })
  t.deepEqual(await devicesBesideDisks(deviceMapper), [])
})

test('a pool that fills up is warned of, says that it is full, and goes on once it has grown', async (t) => {
  const { client } = agent
  const { data, metadata } = blankDisks(4, 32)
  await client.createPool({
    ...{ name: 'small', metadataDevice: metadata, dataDevice: data },
    ...{ blockBytes: blockBytes, whenFull: 'error', lowWaterBytes: mebibyte }
  })
  const { device } = await client.createVolume({ pool: 'small', name: 'v', sizeBytes: 8 * mebibyte, inactive: false })
  write(device!.path, 0, 60)
  t.throws(() => write(device!.path, 60, 20), { message: /No space left|Input\/output error/ })
  const pool = await until(
    () => client.getPool({ pool: 'small' }),
    ({ state }) => state === 'out-of-data-space'
  )
  t.regex(pool.problem, /enlarge its data device/)
  t.regex(
    (await runCommand(['pool', 'list', '--endpoint', agent.live.address])).stdout,
    /^small +out-of-data-space +100 % /m
  )
  // Messages are still taken.
  await client.createSnapshot({ pool: 'small', origin: 'v', name: 's' })
  t.is((await agent.allocated('small/s')).length, 1)
  await until(
    () => Promise.resolve(agent.live.log.filter(({ pool }) => pool === 'small').map(({ msg }) => String(msg))),
    (lines) =>
      ['out-of-data-space', '100 % of its data space', 'low-water mark'].every((each) =>
        lines.some((line) => line.includes(each))
      )
  )
  await growDisk(deviceMapper, data, 32)
  t.is((await client.growPool({ pool: 'small' })).state, 'read-write')
  write(device!.path, 60, 20)
  t.is((await client.growPool({ pool: 'small' })).usage?.dataTotalBytes, 32 * mebibyte, 'once more changes nothing')
  await client.deactivatePool({ pool: 'small', withVolumes: true })
})

test('metadata that cannot be written makes for a pool that takes no changes, and says so', async (t) => {
  const { client } = agent
  const { data, metadata } = blankDisks(16)
  await client.createPool({
    name: 'ro',
    metadataDevice: metadata,
    dataDevice: data,
    blockBytes: blockBytes,
    whenFull: 'error'
  })
  const { device } = await client.createVolume({ pool: 'ro', name: 'v', sizeBytes: 8 * mebibyte, inactive: false })
  write(device!.path, 0, 4)
  await client.createSnapshot({ pool: 'ro', origin: 'v', name: 's' })
  const behind = nameOf(metadata)
  const [table] = await deviceMapper.table(behind)
  const words = table.params.split(' ')
  reloadDevice(behind, `0 ${table.lengthSectors} flakey ${words.join(' ')} 0 60 1 error_writes`)
  // The kernel says yes, and finds out when it commits.
  const error = await failure(client.createVolume({ pool: 'ro', name: 'w', sizeBytes: mebibyte, inactive: true }))
  t.true(['DM_CATALOG_DISAGREES', 'DM_CALL_FAILED'].includes(error.code), error.line)
  t.is((await client.getPool({ pool: 'ro' })).state, 'read-only')
  t.is((await failure(client.createSnapshot({ pool: 'ro', origin: 'v', name: 'x' }))).code, 'DM_POOL_READ_ONLY')
  t.is((await agent.allocated('ro/s')).length, 1, 'reading goes on')
  reloadDevice(behind, `0 ${table.lengthSectors} ${table.targetType} ${table.params}`)
  await client.deactivatePool({ pool: 'ro', withVolumes: true })
  run('thin_check', ['--clear-needs-check-flag', metadata])
  t.is((await client.activatePool({ pool: 'ro', withVolumes: true })).state, 'read-write')
  t.deepEqual(await client.reconcile({ pool: 'ro' }), { settled: [], findings: [] })
  await client.createVolume({ pool: 'ro', name: 'w', sizeBytes: mebibyte, inactive: true })
  t.deepEqual(
    (await client.listVolumes({ pool: 'ro' })).volumes.map(({ name }) => name),
    ['v', 'w']
  )
  await client.deactivatePool({ pool: 'ro', withVolumes: true })
})

test('what another program has done to a pool is told, and settled on a word', async (t) => {
  const { client } = agent
  const { data, metadata } = blankDisks(16)
  await client.createPool({
    name: 'shared',
    metadataDevice: metadata,
    dataDevice: data,
    blockBytes: blockBytes,
    whenFull: 'queue'
  })
  await client.createVolume({ pool: 'shared', name: 'v', sizeBytes: 8 * mebibyte, inactive: true })
  await client.createSnapshot({ pool: 'shared', origin: 'v', name: 's' })
  const kinds = async () =>
    (await client.reconcile({ pool: 'shared' })).findings.map(({ kind, thinId }) => [kind, thinId])
  t.deepEqual(await kinds(), [])

  sendMessage('shared', 'create_snap 9 0')
  sendMessage('shared', 'delete 1')
  sendMessage('shared', 'set_transaction_id 2 5')
  t.deepEqual(await kinds(), [
    ['transaction-differs', undefined],
    ['thin-missing', 1],
    ['thin-unknown', 9]
  ])
  t.regex((await failure(agent.allocated('shared/s'))).line, /^DM_SNAPSHOT_NOT_FOUND/)
  t.is(
    (await failure(client.createVolume({ pool: 'shared', name: 'w', sizeBytes: 512, inactive: true }))).code,
    'DM_CATALOG_DISAGREES'
  )
  t.is((await failure(client.deleteSnapshot({ pool: 'shared', name: 's' }))).code, 'DM_CATALOG_DISAGREES')
  const page = await runCommand(['pool', 'check', 'shared', '--endpoint', agent.live.address])
  t.regex(page.stdout, /is at transaction 5, where the catalog has 2.*\n {4}find out which.*pool accept/)
  t.regex(page.stdout, /3 findings; complete\n$/)

  t.like(await agent.command('pool', 'accept', 'shared', '--yes'), { transaction_id: '5' })
  const forget = { pool: 'shared', unseen: false }
  t.regex((await failure(client.forgetThin({ ...forget, name: 'v' }))).line, /is in the pool, as thin device 0/)
  await client.forgetThin({ ...forget, name: 's' })
  t.like(await agent.command('volume', 'adopt', 'shared/found', '--thin-id', '9', '--size', '8MiB', '--origin', 'v'), {
    ...{ kind: 'snapshot', thin_id: 9, origin: 'v', transaction_id: '2' }
  })
  const refusedToAdopt = async (thinId: number, sizeBytes: number) =>
    (await failure(client.adoptThin({ pool: 'shared', name: 'x', thinId, sizeBytes, origin: '' }))).line
  t.regex(await refusedToAdopt(9, 8 * mebibyte), /already in use/)
  t.regex(await refusedToAdopt(77, 8 * mebibyte), /^DM_DEVICE_NOT_FOUND/)
  t.deepEqual(await kinds(), [])
  t.deepEqual(await agent.allocated('shared/found'), [])

  // A device of another size, or of another name: neither is backed up or snapshotted by mistake.
  await client.activateVolume({ pool: 'shared', name: 'v', writable: false })
  write('/dev/mapper/shared-v', 100, 4)
  await client.deactivateVolume({ pool: 'shared', name: 'v' })
  createDevice('by-hand', thinTable('shared', 0, 16 * mebibyte))
  t.deepEqual(await kinds(), [['size-differs', 0]])
  const grown = client.growVolume({ pool: 'shared', name: 'v', sizeBytes: 16 * mebibyte })
  t.regex((await failure(grown)).line, /active as by-hand/)
  t.regex((await failure(client.createSnapshot({ pool: 'shared', origin: 'v', name: 'x' }))).line, /active as by-hand/)
  t.is((await failure(client.deactivatePool({ pool: 'shared', withVolumes: true }))).code, 'DM_DEVICE_BUSY')
  removeDevice('by-hand')
  createDevice('by-hand', thinTable('shared', 0, 8 * mebibyte))
  t.deepEqual(await kinds(), [])
  t.regex((await failure(client.createSnapshot({ pool: 'shared', origin: 'v', name: 'x' }))).line, /active as by-hand/)
  removeDevice('by-hand')

  // Too small for what it maps.
  sendMessage('shared', 'create_snap 20 0')
  t.regex(await refusedToAdopt(20, 6 * mebibyte), /maps blocks up to byte 6815744/)
  t.regex((await failure(client.removePool({ pool: 'shared', wipe: true }))).line, /2 volumes and snapshots/)
  await client.deleteVolume({ pool: 'shared', name: 'v' })
  await client.deleteSnapshot({ pool: 'shared', name: 'found' })
  t.regex(
    (await failure(client.removePool({ pool: 'shared', wipe: true }))).line,
    /1 thin devices that the catalog does not know/
  )
  t.deepEqual(await client.removePool({ pool: 'shared', wipe: false }), {})
})

test('a pool whose devices are lost can be forgotten', async (t) => {
  const { client } = agent
  const { data, metadata } = blankDisks(16)
  await client.createPool({
    name: 'lost',
    metadataDevice: metadata,
    dataDevice: data,
    blockBytes: blockBytes,
    whenFull: 'error'
  })
  await client.createVolume({ pool: 'lost', name: 'v', sizeBytes: 8 * mebibyte, inactive: true })
  await client.deactivatePool({ pool: 'lost', withVolumes: true })
  removeDevice(nameOf(metadata))
  t.is((await failure(client.activatePool({ pool: 'lost', withVolumes: false }))).code, 'DM_NO_SUCH_DEVICE')
  t.is((await failure(client.forgetThin({ pool: 'lost', name: 'v', unseen: false }))).code, 'DM_POOL_INACTIVE')
  await client.forgetThin({ pool: 'lost', name: 'v', unseen: true })
  await client.removePool({ pool: 'lost', wipe: false })
  t.false(await isListed('lost'))
})

test('a pool whose metadata device hangs keeps nothing else waiting, the start of an agent included', async (t) => {
  const disks = { stuck: blankDisks(16), well: blankDisks(16) }
  for (const [name, { data, metadata }] of Object.entries(disks)) {
    await agent.client.createPool({
      ...{ name, metadataDevice: metadata, dataDevice: data },
      ...{ blockBytes, whenFull: 'error' }
    })
    await agent.client.createVolume({ pool: name, name: 'v', sizeBytes: mebibyte, inactive: true })
  }
  const behind = nameOf(disks.stuck.metadata)
  run('dmsetup', ['suspend', '--nolockfs', '--noflush', behind])
  try {
    await agent.kill()
    await agent.startAgain()
    await agent.client.createSnapshot({ pool: 'well', origin: 'v', name: 's' })
    t.deepEqual(await agent.allocated('well/s'), [])
    const { volumes } = await agent.client.listVolumes({ pool: '' })
    const mapped = (name: string) => volumes.find(({ pool }) => pool === name)?.mappedBytes
    t.deepEqual([mapped('stuck'), mapped('well')], [undefined, 0])
  } finally {
    run('dmsetup', ['resume', behind])
  }
  t.deepEqual(await agent.client.reconcile({ pool: 'stuck' }), { settled: [], findings: [] })
  for (const pool of Object.keys(disks)) await agent.client.deactivatePool({ pool, withVolumes: true })
})

test('a snapshot of a volume that is being written to is of one moment', async (t) => {
  const { client } = agent
  const { data, metadata } = blankDisks(128)
  await client.createPool({
    name: 'busy',
    metadataDevice: metadata,
    dataDevice: data,
    blockBytes: blockBytes,
    whenFull: 'error'
  })
  const { device } = await client.createVolume({ pool: 'busy', name: 'v', sizeBytes: 16 * mebibyte, inactive: false })
  const writer = await startOrderedWriter(t, device!.path, 16 * mebibyte - blockBytes)
  const names = ['a', 'b', 'c', 'd', 'e', 'f']
  for (const name of names) {
    await client.createSnapshot({ pool: 'busy', origin: 'v', name })
    await sleep(50)
  }
  writer.kill('SIGKILL')
  await once(writer, 'close')
  let before = 0
  for (const name of names) {
    const { device: activated } = await client.activateVolume({ pool: 'busy', name, writable: false })
    const [first, last] = [0, 16 * mebibyte - blockBytes].map((at) => readWritten(activated!.path, at))
    t.true(first === last || first === last + 1, `${name}: ${first} and ${last}`)
    t.true(first > before, `${name}: the writer went on after the snapshot before`)
    before = first
  }
  await client.deactivatePool({ pool: 'busy', withVolumes: true })
})
