/**
 * `deltamapper backup` on a live host: LVM thin volumes under ext4 in use, several volumes at once, classic snapshots, odd sizes; every point
 * restored byte for byte, every read counted, and nothing left by runs that were killed. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/backup.test.ts
 */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import { connectAdmin } from '../../src/grpc/admin-client.ts'
import { outcome, runCommand, startCommand } from '../cli/run-command.ts'
import { clientTest, toolFolder } from '../support/nbd-clients.ts'
import { run } from './dmsetup.ts'
import { labRun } from './lab-run.ts'
import { LiveAgent, processes } from './live-agent.ts'
import { createGroup, createThick, createThin, lvm, prepareLvm, shrink, writeBlocks } from './lvm-setup.ts'

const group = 'vg'
const { random, count: increments, again } = labRun(1)
const folder = mkdtempSync(join(tmpdir(), 'backup-'))
const root = join(folder, 'to')
const env = { PATH: `${toolFolder('bookworm')}:${process.env['PATH'] ?? ''}`, DELTAMAPPER_ENDPOINT: '' }

let agent: LiveAgent

test.before(async () => {
  mkdirSync(root)
  prepareLvm()
  createGroup(group, '/dev/ubda')
  for (const [pool, chunk, size] of [
    ['pool64', '64k', '384m'],
    ['pool192', '192k', '128m'],
    ['pool1m', '1m', '128m']
  ]) {
    lvm('lvcreate', '--type', 'thin-pool', '--size', size, '--chunksize', chunk, '--name', pool, group)
  }
  agent = await LiveAgent.start()
  env.DELTAMAPPER_ENDPOINT = agent.address
})
test.after.always(async () => {
  if (agent.child.exitCode === null) await agent.kill()
  rmSync(folder, { recursive: true })
})

const kernelTest = (title: string, body: Parameters<typeof clientTest>[1]) => clientTest(title, body, ['bookworm'])
/** In `npm run soak`, which says how many rounds; the test is too long for each run. */
const longTest: typeof kernelTest = (title, body) => {
  if (process.env['LAB_COUNT'] !== undefined) kernelTest(title, body)
}

interface Made {
  volume: string
  point: string
  kind: string
  size_bytes: number
  read_bytes: number
  full_because?: string
}

/** What each point has to be when it is restored: its snapshot's digest, made while that is there. */
const expected = new Map<string, string>()
let runs = 0

/**
 * Backs up, and has a command between snapshots and copy note what the snapshots hold, and what was read of them by then.
 */
async function backUp(t: ExecutionContext, volumes: string[], ...more: string[]) {
  const note = join(folder, `note-${runs++}`)
  const each = `dd if=$d iflag=direct bs=1M status=none | sha256sum; stat -L -c %t:%T $d; cat /sys/dev/block/$(($(stat -L -c 0x%t $d))):$(($(stat -L -c 0x%T $d)))/stat`
  const devices = volumes.map((volume) => `$(ls -d /dev/${volume.slice(0, 40)}-backup-*-* | tail -n 1)`)
  const hook = `for d in ${devices.join(' ')}; do ${each}; done > ${note}`
  const words = ['backup', ...volumes, '--to', root, '-o', 'json', '--after', hook, ...more]
  const { status, stdout, stderr } = await runCommand(words, { env })
  if (status !== 0) throw new Error(`${words.join(' ')}: ${stderr} (${again})`)
  const { points } = JSON.parse(stdout) as { points: Made[] }
  const noted = readFileSync(note, 'utf8').trim().split('\n')
  t.is(points.length, volumes.length)
  return points.map((made, i) => {
    const [digest = '', , stat = ''] = noted.slice(3 * i, 3 * i + 3)
    expected.set(`${made.volume} ${made.point}`, digest.split(' ')[0])
    return { ...made, readBefore: Number(stat.trim().split(/\s+/)[2]) * 512, stderr }
  })
}

async function checkRestores(t: ExecutionContext, volume: string): Promise<void> {
  const listed = await runCommand(['backup', 'list', root, '-o', 'json'], { env })
  const { points } = JSON.parse(listed.stdout) as { points: Made[] }
  const ours = points.filter((each) => each.volume === volume)
  t.true(ours.length > 0)
  for (const { point } of ours) {
    const to = join(folder, 'restored')
    const file = join(root, volume, `${point}.qcow2`)
    // As it is done without us.
    run('bash', ['-c', `PATH=${env.PATH} qemu-img convert -f qcow2 -O raw ${file} ${to}`])
    t.is(run('sha256sum', [to]).split(' ')[0], expected.get(`${volume} ${point}`) ?? '', `${volume} ${point}: ${again}`)
    rmSync(to)
  }
}

/** Snapshots of backups that are in the group now. */
function left(volume: string): string[] {
  const names = lvm('lvs', '--noheadings', '-o', 'lv_name', group).split('\n')
  return names.map((each) => each.trim()).filter((each) => each.startsWith(`${volume}-backup-`))
}

function bytesRead(device: string): number {
  const { rdev } = statSync(device)
  const stat = readFileSync(`/sys/dev/block/${rdev >> 8}:${rdev & 0xff}/stat`, 'utf8')
  return Number(stat.trim().split(/\s+/)[2]) * 512
}

kernelTest('a file system in use: full and increments, each changed block read once', async (t, tool) => {
  const volume = createThin(group, 'pool64', 'data', 64)
  run('mkfs.ext4', ['-q', volume])
  const mountPoint = mkdtempSync(join(tmpdir(), 'mounted-'))
  run('mount', ['-o', 'discard', volume, mountPoint])
  for (let i = 0; i <= increments; i++) {
    for (let files = 0; files < 5; files++) {
      const path = join(mountPoint, `file-${random.integer(0, 11)}`)
      if (random.chance(0.3)) rmSync(path, { force: true })
      else writeFileSync(path, Buffer.alloc(random.integer(1, 2_000_000), i + files + 1))
    }
    run('sync', ['-f', mountPoint])
    if (random.chance(0.5)) run('fstrim', [mountPoint])
    const [made] = await backUp(t, [`${group}/data`], '--keep-snapshot', '--keep', String(Math.max(3, increments - 1)))
    t.is(made.kind, i === 0 ? 'full' : 'increment', made.stderr)
    const [kept, ...others] = left('data')
    t.deepEqual(others, [])
    if (i === 0) continue
    const read = bytesRead(`/dev/${group}/${kept}`) - made.readBefore
    const layer = join(root, group, 'data', `${made.point}.qcow2`)
    const { stdout } = await tool('qemu-img', [
      'map',
      '--output=json',
      `json:${JSON.stringify({ driver: 'qcow2', backing: null, file: { driver: 'file', filename: layer } })}`
    ])
    const map = JSON.parse(stdout) as { length: number; data: boolean; present: boolean }[]
    const changed = map.reduce((sum, { length, present }) => sum + (present ? length : 0), 0)
    t.true(changed > 0)
    t.true(read <= changed * 1.01, `${read} bytes were read, ${changed} changed: ${again}`)
    t.true(made.read_bytes <= changed)
  }
  const verified = await runCommand(['backup', 'verify', root, '-o', 'json'], { env })
  t.is(verified.status, 0, verified.stderr)
  t.true((JSON.parse(verified.stdout) as { points: { compared: boolean }[] }).points.at(-1)?.compared)
  await checkRestores(t, `${group}/data`)
  const target = createThin(group, 'pool64', 'restored', 64)
  const newest = [...expected.keys()].at(-1)?.split(' ')[1] ?? ''
  const words = ['backup', 'restore', root, '--volume', `${group}/data`, '--point', newest, '--to']
  t.regex((await runCommand([...words, volume], { env })).stderr, /in use.*DM_DEVICE_BUSY/)
  writeBlocks(target, 3, 100, 'z')
  t.is((await runCommand([...words, target], { env })).status, 0)
  t.is(run('sha256sum', [target]).split(' ')[0], [...expected.values()].at(-1) ?? '')
  run('umount', [mountPoint])
})

longTest('chunks of 192 KiB and 1 MiB, odd sizes, shrunk and grown, pruned all the while', async (t) => {
  for (const [name, pool, sizes] of [
    ['odd', 'pool192', ['61m', '31m', '45m']],
    ['wide', 'pool1m', ['37m', '12m', '50m']]
  ] as const) {
    const device = createThin(group, pool, name, Number.parseInt(sizes[0]))
    writeBlocks(device, 0, 190, 'a')
    for (const [i, size] of sizes.entries()) {
      const grows = i > 0 && Number.parseInt(size) > Number.parseInt(sizes[i - 1])
      if (grows) lvm('lvextend', '--size', size, `${group}/${name}`)
      else if (i > 0) shrink(`${group}/${name}`, size)
      writeBlocks(device, random.integer(0, 150), 5, 'bcde'[i])
      const [made] = await backUp(t, [`${group}/${name}`], '--keep-snapshot', '--keep', '2')
      t.is(made.kind, i === 0 ? 'full' : 'increment', made.stderr)
      await checkRestores(t, `${group}/${name}`)
    }
  }
})

kernelTest('without a kept snapshot nothing stays in the pool, and a backup that is full says why', async (t) => {
  writeBlocks(createThin(group, 'pool64', 'lone', 16), 0, 20, 'l')
  const [first] = await backUp(t, [`${group}/lone`])
  t.is(first.kind, 'full')
  t.deepEqual(left('lone'), [])
  writeBlocks(`/dev/${group}/lone`, 3, 2, 'm')
  // The agent has a record of the snapshot that is gone.
  const [second] = await backUp(t, [`${group}/lone`])
  t.is(second.kind, 'increment', second.stderr)
  t.is(second.read_bytes, 2 * 65536)
  t.deepEqual(left('lone'), [])

  const chain = JSON.parse(readFileSync(join(root, group, 'lone', 'chain.json'), 'utf8')) as {
    points: { snapshot: { handle: string } }[]
  }
  const { status, stderr } = await runCommand(['base', 'drop', '--yes', chain.points[1].snapshot.handle], { env })
  t.is(status, 0, stderr)
  const [third] = await backUp(t, [`${group}/lone`])
  t.is(third.kind, 'full')
  t.regex(third.full_because ?? '', /DM_SNAPSHOT_NOT_FOUND|DM_BASE_/)
  t.regex(third.stderr, /a full backup, because/)
  await checkRestores(t, `${group}/lone`)
})

longTest('classic snapshots: full and increments', async (t) => {
  createThick(group, 'thick', 24)
  const device = `/dev/${group}/thick`
  run('bash', ['-c', `head -c 24M /dev/urandom > ${device}`])
  for (let i = 0; i < 2; i++) {
    writeBlocks(device, 40 * i, 9, 'xyz'[i])
    const [made] = await backUp(t, [`${group}/thick`], '--keep-snapshot', '--cow-size', '8MiB')
    t.is(made.kind, i === 0 ? 'full' : 'increment', made.stderr)
    if (i > 0) t.true(made.read_bytes <= 9 * 65536 * 1.01, String(made.read_bytes))
    t.is(left('thick').length, 1)
  }
  await checkRestores(t, `${group}/thick`)
  const refused = await runCommand(['backup', `${group}/thick`, '--to', root], { env })
  t.is(refused.status, 2)
  t.regex(refused.stderr, /--cow-size/)
})

longTest("a tracked volume, and one in a pool of the agent's own", async (t) => {
  run('/run/modprobe', ['dm-era'])
  const admin = connectAdmin(agent.address)
  createThin(group, 'pool64', 'below', 12)
  createThick(group, 'notes', 4)
  run('dd', ['if=/dev/zero', `of=/dev/${group}/notes`, 'bs=1M', 'count=4', 'conv=fsync', 'status=none'])
  const [ownMetadata, ownData] = [4, 24].map((mebibytes) => {
    const file = join(folder, `disk-${mebibytes}`)
    writeFileSync(file, '')
    truncateSync(file, mebibytes * 2 ** 20)
    return run('losetup', ['--find', '--show', file]).trim()
  })
  const [dataDevice, metadataDevice] = ['below', 'notes'].map((each) => `/dev/${group}/${each}`)
  const tracked = { name: 'srv', dataDevice, metadataDevice, blockBytes: 65536, snapshotSize: '' }
  await admin.attachEra({ ...tracked, allowLossyKernel: false })
  await admin.createPool({
    ...{ name: 'tank', metadataDevice: ownMetadata, dataDevice: ownData },
    ...{ blockBytes: 65536, whenFull: 'error' }
  })
  const made = await admin.createVolume({ pool: 'tank', name: 'mail', sizeBytes: 8 * 2 ** 20, inactive: false })
  for (const [volume, path, ...more] of [
    ['srv', '/dev/mapper/srv'],
    ['tank/mail', made.device?.path ?? '', '--keep-snapshot']
  ]) {
    writeBlocks(path, 0, 60, 'a')
    for (const kind of ['full', 'increment']) {
      const { status, stdout, stderr } = await runCommand(['backup', volume, '--to', root, '-o', 'json', ...more], {
        env
      })
      t.is(status, 0, stderr)
      const [made] = (JSON.parse(stdout) as { points: Made[] }).points
      t.is(made.kind, kind, `${volume}: ${stderr}`)
      if (kind === 'increment') t.is(made.read_bytes, 3 * 65536)
      expected.set(`${volume} ${made.point}`, run('sha256sum', [path]).split(' ')[0])
      writeBlocks(path, 20, 3, 'b')
    }
    await checkRestores(t, volume)
  }
  const { snapshots } = await admin.listSnapshots({ pool: 'tank' })
  t.is(snapshots.length, 1)
  t.deepEqual((await admin.listEraSnapshots({ volume: 'srv' })).snapshots, [])
  for (const { name } of snapshots) {
    await admin.deactivateVolume({ pool: 'tank', name })
    await admin.deleteSnapshot({ pool: 'tank', name })
  }
  admin.close()
  run('dmsetup', ['remove', 'srv'])
})

longTest("several volumes: frozen together and thawed; hooks; one that fails is no other's problem", async (t) => {
  const names = ['one', 'two']
  const mounts = names.map((name) => {
    const device = createThin(group, 'pool64', name, 32)
    run('mkfs.ext4', ['-q', device])
    const mountPoint = mkdtempSync(join(tmpdir(), 'mounted-'))
    run('mount', [device, mountPoint])
    return mountPoint
  })
  const volumes = names.map((name) => `${group}/${name}`)
  for (let i = 0; i < Math.min(2, increments); i++) {
    for (const each of mounts) writeFileSync(join(each, `file-${i}`), Buffer.alloc(500_000, i + 1))
    const made = await backUp(t, volumes, '--keep-snapshot')
    t.deepEqual(
      made.map(({ kind }) => kind),
      i === 0 ? ['full', 'full'] : ['increment', 'increment']
    )
    // Nothing is frozen: this would hang.
    for (const each of mounts) run('touch', [join(each, 'thawed')])
  }
  for (const each of volumes) await checkRestores(t, each)
  const mark = join(folder, 'undone')
  const words = ['backup', ...volumes, '--to', root, '--after', `touch ${mark}`, '--before']
  const failed = await runCommand([...words, 'exit 3'], { env })
  t.regex(failed.stderr, /--before ended with 3.*DM_HOOK_FAILED/)
  t.true(existsSync(mark))
  const late = await runCommand([...words, 'sleep 1000', '--hook-deadline', '1'], { env })
  t.regex(late.stderr, /not done after 1 s.*DM_HOOK_FAILED/)
  t.deepEqual(
    names.map((name) => left(name).length),
    [1, 1]
  )
  for (const each of mounts) run('umount', [each])
})

longTest('a target that is read-only, or full, or fills up in the middle: nothing is lost', async (t) => {
  const device = createThin(group, 'pool64', 'target', 16)
  const place = join(folder, 'small')
  mkdirSync(place)
  run('mount', ['-t', 'tmpfs', '-o', 'size=9m', 'tmpfs', place])
  const words = ['backup', `${group}/target`, '--to', place, '--keep-snapshot']
  writeBlocks(device, 0, 40, 'a')
  t.is((await runCommand(words, { env })).status, 0)
  run('mount', ['-o', 'remount,ro', place])
  t.regex((await runCommand(words, { env })).stderr, /DM_CHAIN_READ_ONLY/)
  run('mount', ['-o', 'remount,rw', place])
  writeBlocks(device, 50, 70, 'b')
  const child = startCommand([...words, '--rate', '2MiB'], { env })
  const ended = outcome(child)
  while (!readdirSync(join(place, group, 'target')).some((name) => name.endsWith('.part'))) await sleep(20)
  run('bash', ['-c', `head -c 9M /dev/zero > ${place}/other || true`])
  t.regex((await ended).stderr, /DM_CHAIN_NO_SPACE/)
  t.regex((await runCommand(words, { env })).stderr, /bytes free, and this backup needs.*DM_CHAIN_NO_SPACE/)
  rmSync(join(place, 'other'))
  const { status, stdout } = await runCommand([...words, '-o', 'json'], { env })
  t.is(status, 0)
  t.is((JSON.parse(stdout) as { points: Made[] }).points[0].kind, 'increment')
  t.is(left('target').length, 1)
  run('umount', [place])
})

longTest('runs that are killed leave nothing once the next one is over', async (t) => {
  const device = createThin(group, 'pool64', 'killed', 32)
  for (let i = 0; i < Math.max(2, increments); i++) {
    writeBlocks(device, (30 * i) % 400, 60, 'pqrs'[i % 4])
    const child = startCommand(
      ['backup', `${group}/killed`, '--to', root, '--keep-snapshot', '--keep', '2', '--rate', '6MiB'],
      { env }
    )
    const ended = outcome(child)
    // From the first snapshot on, at some moment.
    while (left('killed').length < (i === 0 ? 1 : 2) && child.exitCode === null) await sleep(30)
    await sleep(random.integer(0, 700))
    child.kill('SIGKILL')
    await ended
    const [made] = await backUp(t, [`${group}/killed`], '--keep-snapshot', '--keep', '2')
    t.is(left('killed').length, 1)
    const chain = join(root, group, 'killed')
    t.deepEqual(
      readdirSync(chain).filter((name) => name.endsWith('.part')),
      []
    )
    t.deepEqual(
      processes().filter(({ words }) => words.includes('qemu-img')),
      []
    )
    // A point that was finished before it was killed has no digest noted: prune keeps the newest two, and the last is ours.
    const to = join(folder, 'newest')
    run('bash', ['-c', `PATH=${env.PATH} qemu-img convert -f qcow2 -O raw ${join(chain, `${made.point}.qcow2`)} ${to}`])
    t.is(run('sha256sum', [to]).split(' ')[0], expected.get(`${group}/killed ${made.point}`) ?? '', again)
  }
})
