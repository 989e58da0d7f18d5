/**
 * Real volume groups: what LVM says is what the kernel's metadata says, and snapshots that are not active can be compared. Runs inside
 * the kernel lab: node test/lab/run.ts test/kernel/lvm.test.ts
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, existsSync, openSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { answersWith } from '../../src/agent/targets.ts'
import { thinPlan } from '../../src/agent/answers/thin-snapshots.ts'
import { snapshotMetadataBackend } from '../../src/agent/answers/backend.ts'
import { deviceMapperSource } from '../../src/agent/answers/plain-pool.ts'
import { LvmReporter } from '../../src/agent/lvm/report.ts'
import { volumeGroupSource } from '../../src/agent/answers/volume-group.ts'
import type { Snapshot } from '../../src/agent/walks/snapshot.ts'
import { Sources } from '../../src/agent/answers/sources.ts'
import { Walkers } from '../../src/agent/walks/walkers.ts'
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import type { DeviceDetails } from '../../src/devicemapper/thin/device-details.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { BlockMetadataMessage, decodeBlockMetadata } from '../../src/grpc/block-metadata.ts'
import type { EncodedStream } from '../../src/grpc/snapshot-metadata.ts'
import {
  createDevice,
  createLinear,
  removeDevice,
  run,
  sendMessage,
  thinPoolTable,
  thinTable,
  zeroStart
} from './dmsetup.ts'
import {
  createGroup,
  createPool,
  createSnapshot,
  createThick,
  createThin,
  lockFile,
  lvm,
  prepareLvm,
  shrink,
  writeBlocks
} from './lvm-setup.ts'

const mebibyte = 2 ** 20
const blockBytes = 65536
// A name whose hyphens device-mapper doubles.
const group = 'my-vg'
const pool = `${group}/po-ol`

prepareLvm()
const reporter = new LvmReporter()
const deviceMapper = new DeviceMapper()
const walkers = new Walkers(1)
const source = volumeGroupSource(group, { lvm: reporter, deviceMapper })
const backend = snapshotMetadataBackend(
  new Sources(new Map(), { deviceMapper, lvm: reporter }),
  walkers,
  answersWith({})
)
// Neither walkers nor device-mapper's helper keep a process alive on their own.
const alive = setInterval(() => undefined, 1000)
test.after.always(async () => {
  clearInterval(alive)
  await walkers.close()
  await deviceMapper.close()
})

async function find(name: string): Promise<Snapshot> {
  const snapshot = await source.snapshot(name)
  if (!snapshot) throw new Error(`${group}/${name} was not found`)
  return snapshot
}

/** What the pool's live metadata says of the device that a snapshot is resolved to. */
async function detailsOf({ metadataPath, thinId }: Snapshot): Promise<DeviceDetails> {
  const metadata = await openPoolMetadata(metadataPath, { liveRoot: true })
  try {
    return await metadata.deviceDetails(thinId)
  } finally {
    await metadata.close()
  }
}

/** An answer as first and last block (not included) of each extent. */
async function blocks(stream: Promise<EncodedStream>): Promise<[first: number, end: number][]> {
  const found: [number, number][] = []
  const message = new BlockMetadataMessage()
  for await (const bytes of (await stream).messages) {
    decodeBlockMetadata(bytes, message)
    for (let i = 0; i < message.count; i++) {
      const offset = message.offsets[i]
      found.push([offset / blockBytes, (offset + message.sizes[i]) / blockBytes])
    }
  }
  return found
}

function delta(base: string, target: string): Promise<[number, number][]> {
  return blocks(
    backend.delta(
      {
        baseSnapshotId: `${group}/${base}`,
        targetSnapshotId: `${group}/${target}`,
        startingOffset: 0n,
        maxResults: 0
      },
      new AbortController().signal
    )
  )
}

function allocated(handle: string): Promise<[number, number][]> {
  return blocks(
    backend.allocated({ snapshotId: handle, startingOffset: 0n, maxResults: 0 }, new AbortController().signal)
  )
}

async function failure(promise: Promise<unknown>): Promise<DeltamapperError> {
  const error: unknown = await promise.then(
    (result) => new Error(`it succeeded: ${JSON.stringify(result)}`),
    (thrown: unknown) => thrown
  )
  if (error instanceof DeltamapperError) return error
  throw error
}

/** Names that device-mapper has a table for. */
async function active(): Promise<string[]> {
  return (await deviceMapper.list()).map(({ name }) => name)
}

test('a pool that nothing was put into', async (t) => {
  createGroup(group, '/dev/ubda')
  createPool(group, 'po-ol', 192)
  t.false((await active()).includes('my--vg-po--ol-tpool'))
  // There is nothing to ask about in it, but its metadata is found and read.
  const [row] = (await reporter.logicalVolumes(group))!.filter(({ name }) => name === 'po-ol')
  t.like(row, { transactionId: 0n, chunkSizeBytes: blockBytes, sizeBytes: 192 * mebibyte })
})

test('snapshots that are not active are compared as well as those that are', async (t) => {
  const volume = createThin(group, 'po-ol', 'data', 64)
  writeBlocks(volume, 0, 32, 'a')
  createSnapshot(group, 'data', 'monday', { active: true })
  writeBlocks(volume, 4, 3, 'b')
  writeBlocks(volume, 100, 2, 'b')
  createSnapshot(group, 'data', 'tuesday')
  run('blkdiscard', ['--offset', String(16 * blockBytes), '--length', String(4 * blockBytes), volume])
  createSnapshot(group, 'data', 'wednesday')

  const names = await active()
  t.true(names.includes('my--vg-monday'))
  t.false(names.includes('my--vg-tuesday') || names.includes('my--vg-wednesday'))
  t.deepEqual(await allocated(`${group}/monday`), [[0, 32]])
  t.deepEqual(await allocated('*/monday'), [[0, 32]], 'in whichever group it is')
  t.is((await failure(allocated('*/sunday'))).code, 'DM_SNAPSHOT_NOT_FOUND')
  t.deepEqual(await delta('monday', 'tuesday'), [
    [4, 7],
    [100, 102]
  ])
  t.deepEqual(await delta('tuesday', 'wednesday'), [[16, 20]])
  t.deepEqual(await delta('monday', 'wednesday'), [
    [4, 7],
    [16, 20],
    [100, 102]
  ])
  t.is((await failure(delta('wednesday', 'monday'))).code, 'DM_ORDER_REVERSED')
  // The volume goes on: what it is now, nobody could restore.
  const error = await failure(delta('monday', 'data'))
  t.is(error.code, 'DM_ORDER_REVERSED')
  t.regex(error.message, /^target my-vg\/data is the volume that base my-vg\/monday was taken of/)
  // Nothing was activated for it.
  t.deepEqual(await active(), names)
})

test('LVM and the metadata agree on every thin volume', async (t) => {
  const names = ['data', 'monday', 'tuesday', 'wednesday']
  const found = await Promise.all(names.map(find))
  t.deepEqual(
    found.map(({ thinId }) => thinId),
    [1, 2, 3, 4]
  )
  for (const snapshot of found) {
    const details = await detailsOf(snapshot)
    t.true(details.transactionId === snapshot.transactionId, snapshot.handle)
    t.is(snapshot.metadataPath, '/dev/mapper/my--vg-po--ol_tmeta')
  }
  t.is(found[0].volume, undefined)
  for (const snapshot of found.slice(1)) t.is(snapshot.volume, found[0].identity)
})

test('a pool of which only a volume is active serves, whatever LVM calls it', async (t) => {
  lvm('lvchange', '--activate', 'n', `${group}/data`, `${group}/monday`, pool)
  t.deepEqual(await active(), [])
  const error = await failure(delta('monday', 'tuesday'))
  t.is(error.code, 'DM_POOL_INACTIVE')
  t.is(error.remedy, 'activate it: lvchange -ay -K my-vg/po-ol')
  t.deepEqual(await active(), [])

  lvm('lvchange', '--activate', 'y', `${group}/data`)
  t.is(lvm('lvs', '--noheadings', '--options', 'lv_active', pool).trim(), '')
  t.deepEqual(await delta('tuesday', 'wednesday'), [[16, 20]])

  lvm('lvchange', '--activate', 'n', `${group}/data`)
  lvm('lvchange', '-ay', '-K', pool)
  t.deepEqual(await delta('tuesday', 'wednesday'), [[16, 20]])
  lvm('lvchange', '--activate', 'y', `${group}/data`)
})

test('a volume that was resized has the size it has now, its snapshots theirs', async (t) => {
  lvm('lvextend', '--size', '80m', `${group}/data`)
  t.is((await find('data')).sizeBytes, 80 * mebibyte)
  t.is((await find('wednesday')).sizeBytes, 64 * mebibyte)
  writeBlocks('/dev/my-vg/data', 1100, 1, 'c')
  createSnapshot(group, 'data', 'grown')
  t.deepEqual(await delta('wednesday', 'grown'), [[1100, 1101]])
  shrink(`${group}/data`, '64m')
  t.is((await find('data')).sizeBytes, 64 * mebibyte)
  t.is((await find('grown')).sizeBytes, 80 * mebibyte)
})

test('the highest thin id is given out again; identity and transaction id tell', async (t) => {
  createSnapshot(group, 'data', 'short-lived')
  const before = await find('short-lived')
  lvm('lvremove', `${group}/short-lived`)
  createSnapshot(group, 'data', 'short-lived')
  const after = await find('short-lived')
  t.is(after.thinId, before.thinId)
  t.not(after.identity, before.identity)
  t.not(after.transactionId, before.transactionId)
  t.true((await detailsOf(before)).transactionId === after.transactionId)
  // What was resolved before the removal is not read from the one that took its place.
  const walk = walkers.stream(
    thinPlan({ target: before, startingOffset: 0, maxResults: 0 }),
    new AbortController().signal
  )
  t.is((await failure(blocks(Promise.resolve(walk)))).code, 'DM_SNAPSHOT_NOT_FOUND')
  lvm('lvremove', `${group}/short-lived`)
})

test('what cannot be tracked is refused', async (t) => {
  createThick(group, 'thick', 16)
  lvm('lvcreate', '--snapshot', '--size', '8m', '--name', 'cow', `${group}/thick`)
  lvm('lvcreate', '--snapshot', '--size', '8m', '--name', 'thin-cow', `${group}/data`)
  createThick(group, 'alone', 16)
  for (const [name, why] of [
    ['alone', /is a linear volume/],
    ['po-ol', /is a thin pool/],
    ['po-ol_tmeta', /is a part of another volume/]
  ] as const) {
    const error = await failure(allocated(`${group}/${name}`))
    t.is(error.code, 'DM_NOT_TRACKED')
    t.regex(error.message, why)
  }
  // A thin volume that has a copy-on-write snapshot is thin all the same, and a target as little as any volume in use.
  t.is((await failure(allocated(`${group}/data`))).code, 'DM_VOLUME_IN_USE')
  t.is((await failure(allocated(`${group}/thick`))).code, 'DM_VOLUME_IN_USE')
  lvm('lvremove', `${group}/thin-cow`, `${group}/cow`, `${group}/thick`, `${group}/alone`)
})

test('hostile handles find nothing, and no shell', async (t) => {
  const invalid = [
    ...['', '/', group, `${group}/`, '/monday', `${group}//monday`, `${group}/monday/`, '../..', `${group}/..`],
    ...[`${group}/monday;touch /run/hacked`, `${group}/$(touch /run/hacked)`, `${group}/\`touch /run/hacked\``],
    ...[`${group}/monday\0`, `${group}/mon\nday`, `${group}/mönday`, `${group}/@tag`, `${group}/${'x'.repeat(123)}`]
  ]
  for (const handle of invalid) t.is((await failure(allocated(handle))).code, 'DM_HANDLE_INVALID', handle)
  const missing = ['--help', '-S', '--config', 'tuesda', 'Monday', 'po-ol-tpool', 'my--vg-monday', '1', 'x'.repeat(122)]
  for (const name of missing) {
    t.is((await failure(allocated(`${group}/${name}`))).code, 'DM_SNAPSHOT_NOT_FOUND', name)
  }
  for (const handle of ['gone-vg/monday', 'my--vg-po--ol/monday', `${group}-po/monday`]) {
    t.is((await failure(allocated(handle))).code, 'DM_SNAPSHOT_NOT_FOUND', handle)
  }
  t.is((await failure(allocated('--help/monday'))).status, 'INVALID_ARGUMENT')
  t.false(existsSync('/run/hacked'))
})

test('snapshots of different volumes are not compared', async (t) => {
  createThin(group, 'po-ol', 'second', 16)
  createSnapshot(group, 'second', 'second-monday')
  const error = await failure(delta('monday', 'second-monday'))
  t.is(error.code, 'DM_VOLUMES_DIFFER')
  t.regex(error.message, /my-vg\/monday is a snapshot of my-vg\/data, my-vg\/second-monday of my-vg\/second/)
  createPool(group, 'pool2', 32)
  createThin(group, 'pool2', 'far', 16)
  t.is((await failure(delta('monday', 'far'))).code, 'DM_POOLS_DIFFER')
  // Restored from a snapshot: another volume, whose own snapshots go together.
  createSnapshot(group, 'tuesday', 'restored', { active: true })
  writeBlocks('/dev/my-vg/restored', 40, 1, 'r')
  createSnapshot(group, 'restored', 'restored-monday')
  t.deepEqual(await delta('tuesday', 'restored'), [[40, 41]])
  t.is((await failure(delta('tuesday', 'restored-monday'))).code, 'DM_VOLUMES_DIFFER')
  lvm('lvremove', `${group}/restored-monday`, `${group}/restored`, `${group}/second-monday`, `${group}/second`)
  lvm('lvremove', `${group}/pool2`)
})

test('external origins', async (t) => {
  createThick(group, 'image', 16)
  writeBlocks('/dev/my-vg/image', 0, 64, 'i')
  lvm('lvchange', '--activate', 'n', `${group}/image`)
  lvm('lvchange', '--permission', 'r', `${group}/image`)
  lvm('lvcreate', '--type', 'thin', '--thinpool', 'po-ol', '--name', 'clone', `${group}/image`)
  createSnapshot(group, 'clone', 'clone-1')
  writeBlocks('/dev/my-vg/clone', 3, 2, 'x')
  createSnapshot(group, 'clone', 'clone-2')
  createSnapshot(group, 'clone-2', 'clone-2-copy')
  const [first, copy] = [await find('clone-1'), await find('clone-2-copy')]
  t.is(first.externalOrigin?.sizeBytes, 16 * mebibyte)
  t.deepEqual(copy.externalOrigin, first.externalOrigin)
  // The kernel's tables agree, for those that are active. (Only LVM sees to it that it stays so.)
  const { major, minor } = (await deviceMapper.info('my--vg-image-real'))!
  const byTables = deviceMapperSource('my--vg-po--ol-tpool', deviceMapper)
  t.regex(
    (await failure(byTables.snapshot('my--vg-clone'))).message,
    new RegExp(`external origin ${major}:${minor} shows`)
  )

  t.deepEqual(await delta('clone-1', 'clone-2'), [[3, 5]])
  t.is((await failure(allocated(`${group}/clone-1`))).code, 'DM_NOT_TRACKED')
  t.is((await failure(delta('monday', 'clone-1'))).code, 'DM_VOLUMES_DIFFER')
  // Grown beyond the origin's end, nothing more of it shows; grown before it, something does that is in no backup of the base.
  lvm('lvextend', '--size', '20m', `${group}/clone`)
  createSnapshot(group, 'clone', 'clone-3')
  t.deepEqual(await delta('clone-2', 'clone-3'), [])
  shrink(`${group}/clone`, '8m')
  createSnapshot(group, 'clone', 'clone-4')
  lvm('lvextend', '--size', '12m', `${group}/clone`)
  createSnapshot(group, 'clone', 'clone-5')
  const grown = await failure(delta('clone-4', 'clone-5'))
  t.is(grown.code, 'DM_NOT_TRACKED')
  t.regex(grown.message, /shows more of itself since my-vg\/clone-4, which is smaller/)
  t.deepEqual(await delta('clone-1', 'clone-5'), [[3, 5]])

  // With the snapshot in between gone, LVM still knows what shows through.
  lvm('lvremove', `${group}/clone-2`, `${group}/clone`)
  t.deepEqual((await find('clone-2-copy')).externalOrigin, first.externalOrigin)
  t.is((await find('clone-2-copy')).volume, undefined)
  t.deepEqual(await delta('clone-1', 'clone-2-copy'), [[3, 5]])
  const left = ['clone-1', 'clone-2-copy', 'clone-3', 'clone-4', 'clone-5', 'image']
  lvm('lvremove', ...left.map((name) => `${group}/${name}`))
})

/** The command that activates a volume leaves the end of its merge to a process in the background. */
async function mergeIsOver(snapshot: string): Promise<void> {
  while (lvm('lvs', '--noheadings', '--options', 'lv_name', group).split(/\s+/).includes(snapshot)) await sleep(100)
}

test('a merge: until it is done the snapshot is refused, then its device is the volume', async (t) => {
  const [data, tuesday] = [await find('data'), await find('tuesday')]
  const open = openSync('/dev/my-vg/data', 'r')
  lvm('lvconvert', '--merge', `${group}/tuesday`)
  const error = await failure(delta('monday', 'tuesday'))
  t.is(error.code, 'DM_NOT_TRACKED')
  t.regex(error.message, /being merged back into my-vg\/data/)
  t.is((await find('data')).thinId, data.thinId)
  closeSync(open)
  lvm('lvchange', '--activate', 'n', `${group}/data`)
  lvm('lvchange', '--activate', 'y', `${group}/data`)
  await mergeIsOver('tuesday')

  const merged = await find('data')
  t.like(merged, { identity: data.identity, thinId: tuesday.thinId, transactionId: tuesday.transactionId })
  t.true((await detailsOf(merged)).transactionId === merged.transactionId)
  t.is((await failure(allocated(`${group}/tuesday`))).code, 'DM_SNAPSHOT_NOT_FOUND')
  // The other snapshots no longer know what they are of; compared with what came back, and with what is written next, they are right.
  t.is((await find('monday')).volume, undefined)
  createSnapshot(group, 'data', 'merged')
  t.deepEqual(await delta('monday', 'merged'), [
    [4, 7],
    [100, 102]
  ])
  writeBlocks('/dev/my-vg/data', 50, 1, 'd')
  createSnapshot(group, 'data', 'thursday')
  t.deepEqual(await delta('merged', 'thursday'), [[50, 51]])
})

test('a merge leaves the volume with a device of another size: it is refused until that is put right', async (t) => {
  createThin(group, 'po-ol', 'shrunk', 9)
  createSnapshot(group, 'shrunk', 'shrunk-monday')
  lvm('lvextend', '--size', '10m', `${group}/shrunk`)
  const open = openSync(`/dev/${group}/shrunk`, 'r')
  lvm('lvconvert', '--merge', `${group}/shrunk-monday`)
  closeSync(open)
  const activate = () => {
    for (const active of ['n', 'y']) lvm('lvchange', '--activate', active, `${group}/shrunk`)
  }
  activate()
  await mergeIsOver('shrunk-monday')
  // Otherwise LVM has learned better, and there is nothing to refuse.
  t.is(run('blockdev', ['--getsize64', `/dev/${group}/shrunk`]).trim(), String(10 * mebibyte))
  const error = await failure(allocated(`${group}/shrunk`))
  t.is(error.code, 'DM_NOT_TRACKED')
  t.regex(error.message, /of 9437184 bytes to LVM, and its active device is thin device \d+ of 10485760 bytes/)
  activate()
  t.is((await find('shrunk')).sizeBytes, 9 * mebibyte)
  lvm('lvchange', '--activate', 'n', `${group}/shrunk`)
  t.deepEqual(await allocated(`${group}/shrunk`), [])
  lvm('lvremove', `${group}/shrunk`)
})

test('snapshots whose volume was removed are still compared', async (t) => {
  lvm('lvremove', `${group}/data`)
  t.is((await find('thursday')).volume, undefined)
  t.deepEqual(await delta('merged', 'thursday'), [[50, 51]])
  t.deepEqual(await delta('monday', 'wednesday'), [
    [4, 7],
    [16, 20],
    [100, 102]
  ])
})

test('reports in the middle of changes are never of a snapshot that is not that snapshot', async (t) => {
  createThin(group, 'po-ol', 'busy', 16)
  // It stays for a different time each, and goes on until it was seen: how long a look takes is the machine's business.
  const enough = join(tmpdir(), 'enough')
  const script = `while [ ! -e ${enough} ]; do
    lvm lvcreate -q -y -s -ky -n "turn" ${group}/busy && sleep 0.$((RANDOM % 8)) && lvm lvremove -q -y ${group}/turn || exit 1
  done`
  const changes = spawn('bash', ['-c', script], { stdio: 'ignore' })
  const ended = once(changes, 'exit')
  let over = false
  void ended.then(() => (over = true))
  let [seen, gone, asked] = [0, 0, 0]
  try {
    while (!over && (asked < 8 || seen === 0)) {
      asked++
      const found = await source.snapshot('turn')
      if (!found) continue
      const details = await detailsOf(found).catch((error: unknown) => {
        if (error instanceof DeltamapperError && error.code === 'DM_DEVICE_NOT_FOUND') return undefined
        throw error
      })
      // Removed, or replaced by the next one under the same id: then the transaction id differs.
      if (details?.transactionId === found.transactionId) seen++
      else gone++
    }
  } finally {
    writeFileSync(enough, '')
  }
  t.deepEqual(await ended, [0, null])
  t.log(`asked ${asked} times; there: ${seen}, already removed or replaced: ${gone}`)
  t.true(asked >= 8)
  t.true(seen > 0)
})

test("nobody's lock and no suspended device is waited for", async (t) => {
  const script = 'exec 9>>"$1"; flock --exclusive 9; echo locked; read -r'
  const holder = spawn('bash', ['-c', script, 'holder', lockFile(group)], { stdio: ['pipe', 'pipe', 'ignore'] })
  await once(holder.stdout, 'data')
  const blocked = spawn('timeout', ['2', 'lvm', 'lvs', group], { stdio: 'ignore' })
  t.true((await find('monday')).thinId > 0)
  t.deepEqual(await once(blocked, 'exit'), [124, null])
  holder.stdin.end()
  await once(holder, 'exit')

  const devices = ['my--vg-busy', 'my--vg-po--ol', 'my--vg-po--ol-tpool', 'my--vg-po--ol_tdata', 'my--vg-po--ol_tmeta']
  for (const device of devices) run('dmsetup', ['suspend', '--noflush', '--nolockfs', device])
  t.true((await find('monday')).thinId > 0)
  for (const device of devices.reverse()) run('dmsetup', ['resume', device])
})

test('the configured command line reaches LVM', async (t) => {
  const expected = await reporter.logicalVolumes(group)
  for (const command of [
    ['nsenter', '-m', '-u', '-i', '-n', '-p', '-t', '1', run('bash', ['-c', 'type -P lvm']).trim()],
    ['chroot', '/', 'lvm'],
    ['env', 'LC_ALL=C', 'lvm']
  ]) {
    t.deepEqual(await new LvmReporter({ command }).logicalVolumes(group), expected, command.join(' '))
  }
  const [found] = (await reporter.volumeGroups()).filter(({ name }) => name === group)
  t.like(found, { extentSizeBytes: mebibyte, missingPhysicalVolumes: 0, exported: false, partial: false })
  t.is(found.uuid, expected![0].vgUuid)
})

test('an LVM that hangs is given up in time', async (t) => {
  // A disk hangs that LVM looks at, as it looks at every disk: a loop device over one that is suspended.
  const below = createLinear('below', '/dev/ubda', 0, 16 * mebibyte)
  const disk = run('losetup', ['--find', '--show', '--offset', '8M', '--direct-io=on', below]).trim()
  const deadlineMs = 4000
  const impatient = new LvmReporter({ deadlineMs })
  t.is((await impatient.volumeGroups()).length, 1)
  run('dmsetup', ['suspend', 'below'])
  try {
    // (The disk hangs until all of this has been answered.)
    const first = await failure(impatient.volumeGroups())
    t.is(first.code, 'DM_LVM_FAILED')
    t.regex(first.message, /was not done after \d\.\d s and was killed/)
    // Killed or not, its read hangs in the kernel, and so does it: nothing is started behind it, and nobody waits for long.
    const others = await Promise.all([group, 'a', 'b'].map((name) => failure(impatient.logicalVolumes(name))))
    for (const error of others) t.regex(error.message, /has not had its turn in time: `lvm vgs`/)
  } finally {
    run('dmsetup', ['resume', 'below'])
  }
  t.true((await impatient.logicalVolumes(group))!.length > 0)
  run('losetup', ['--detach', disk])
  removeDevice('below')
})

test('a program that only sleeps is killed at the deadline', async (t) => {
  const sleeper = new LvmReporter({ command: ['bash', '-c', 'sleep 86463 & wait', 'lvm'], deadlineMs: 700 })
  t.is((await failure(sleeper.logicalVolumes(group))).code, 'DM_LVM_FAILED')
  // (By itself it ends after a day.)
  while (run('bash', ['-c', 'pgrep -fc "^sleep 86463" || true']).trim() !== '0') await sleep(50)
})

test('a pool without LVM, by its tables alone', async (t) => {
  lvm('vgremove', '--force', group)
  lvm('pvremove', '/dev/ubda')
  const metadata = createLinear('raw-metadata', '/dev/ubda', 0, 4 * mebibyte)
  const data = createLinear('raw-data', '/dev/ubda', 4 * mebibyte, 64 * mebibyte)
  zeroStart(metadata)
  const table = { metadataDevice: metadata, dataDevice: data, dataBytes: 64 * mebibyte, blockBytes }
  createDevice('raw-pool', thinPoolTable(table))
  sendMessage('raw-pool', 'create_thin 7')
  const sizeBytes = 16 * mebibyte + 4096
  const volume = createDevice('raw-volume', thinTable('raw-pool', 7, sizeBytes))
  const snapshot = (id: number) => {
    run('dmsetup', ['suspend', 'raw-volume'])
    sendMessage('raw-pool', `create_snap ${id} 7`)
    run('dmsetup', ['resume', 'raw-volume'])
    createDevice(`raw-${id}`, thinTable('raw-pool', id, sizeBytes), '--readonly')
  }
  writeBlocks(volume, 0, 8, 'a')
  snapshot(8)
  writeBlocks(volume, 2, 1, 'b')
  snapshot(9)
  const rawPool = deviceMapperSource('raw-pool', deviceMapper)
  t.like(await rawPool.snapshot('raw-8'), {
    kind: 'thin',
    handle: 'raw-pool/raw-8',
    thinId: 8,
    sizeBytes,
    writable: false,
    metadataPath: '/dev/mapper/raw-metadata',
    live: true,
    pool: 'raw-pool'
  })
  const question = {
    baseSnapshotId: 'raw-pool/raw-8',
    targetSnapshotId: 'raw-pool/raw-9',
    startingOffset: 0n,
    maxResults: 0
  }
  t.deepEqual(await blocks(backend.delta(question, new AbortController().signal)), [[2, 3]])
  t.deepEqual(await allocated('raw-pool/raw-9'), [[0, 8]])
  t.is((await failure(allocated('raw-pool/raw-volume'))).code, 'DM_VOLUME_IN_USE')
  const codes: [string, string][] = [
    ['raw-pool/thin-9', 'DM_NOT_TRACKED'],
    ['raw-pool/raw-data', 'DM_NOT_TRACKED'],
    ['raw-pool/raw-pool', 'DM_NOT_TRACKED'],
    ['raw-pool/raw-10', 'DM_SNAPSHOT_NOT_FOUND']
  ]
  for (const [handle, code] of codes) t.true((await failure(allocated(handle))).code === code, handle)
  for (const name of ['raw-9', 'raw-8', 'raw-volume', 'raw-pool']) removeDevice(name)
  t.is((await failure(rawPool.snapshot('raw-8'))).code, 'DM_POOL_INACTIVE')
  t.is((await failure(allocated('raw-pool/raw-8'))).code, 'DM_SNAPSHOT_NOT_FOUND')

  // Metadata on a device that is not device-mapper's own.
  run('losetup', ['--detach-all'])
  const file = run('bash', ['-c', 'truncate -s 4M /run/metadata && losetup --find --show /run/metadata']).trim()
  createDevice('raw-pool', thinPoolTable({ ...table, metadataDevice: file }))
  sendMessage('raw-pool', 'create_thin 1')
  createDevice('raw-1', thinTable('raw-pool', 1, mebibyte), '--readonly')
  t.is((await rawPool.snapshot('raw-1'))?.metadataPath, file)
  t.deepEqual(await allocated('raw-pool/raw-1'), [])
  for (const name of ['raw-1', 'raw-pool', 'raw-data', 'raw-metadata']) removeDevice(name)
})
