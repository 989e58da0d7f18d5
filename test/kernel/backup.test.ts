/**
 * `deltamapper backup` on a live host: LVM thin volumes under ext4 in use, several volumes at once, classic snapshots, odd sizes; every point
 * restored byte for byte, every read counted, and nothing left by runs that were killed. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/backup.test.ts
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
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
import type { Manifest } from '../../src/backup/manifest.ts'
import { clientTest, type RunTool, toolFolder } from '../support/nbd-clients.ts'
import { newPlace, renamings } from './backup-names.ts'
import { run } from './dmsetup.ts'
import { labRun } from './lab-run.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, createThick, createThin, lvm, prepareLvm, shrink, writeBlocks } from './lvm-setup.ts'

const group = 'vg'
const { random, count: increments, again } = labRun(1)
const folder = mkdtempSync(join(tmpdir(), 'backup-'))
const root = join(folder, 'to')
const env = { PATH: `${toolFolder('bookworm')}:${process.env['PATH'] ?? ''}`, DELTAMAPPER_ENDPOINT: '' }

let agent: LiveAgent

test.before(async () => {
  for (const each of ['to', 'mounted']) mkdirSync(join(folder, each))
  prepareLvm()
  createGroup(group, '/dev/ubda')
  for (const [pool, chunk, size] of [
    ['pool64', '64k', '640m'],
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
 * Backs up, and has a command between snapshots and copy note what the snapshots hold, and what was read by then.
 *
 * @param counted the device whose reads are counted; by default, the first volume's snapshot
 */
async function backUp(t: ExecutionContext, volumes: string[], more: string[] = [], counted?: string) {
  const note = join(folder, `note-${runs++}`)
  const devices = volumes.map(snapshotGlob)
  const read = `d=${counted ?? devices[0]}; cat /sys/dev/block/$(($(stat -L -c 0x%t $d))):$(($(stat -L -c 0x%T $d)))/stat`
  // Those below tracked volumes are not active.
  const names = `lvm lvs --noheadings -o lv_name ${group} | grep -o "[^ ]*-backup-[^ ]*"`
  const active = volumes.some((each) => !each.includes('/'))
    ? `lvm lvchange -ay -K $(${names} | sed 's,^,${group}/,'); `
    : ''
  const digests = `${active}for d in ${devices.join(' ')}; do dd if=$d iflag=direct bs=1M status=none | sha256sum; done`
  const words = [
    'backup',
    ...volumes,
    '--to',
    root,
    '-o',
    'json',
    '--after',
    `{ ${digests}; ${read}; } > ${note}`,
    ...more
  ]
  const { status, stdout, stderr } = await runCommand(words, { env })
  if (status !== 0) throw new Error(`${words.join(' ')}: ${stderr} (${again})`)
  const { points } = JSON.parse(stdout) as { points: Made[] }
  const noted = readFileSync(note, 'utf8').trim().split('\n')
  t.is(points.length, volumes.length)
  const readBefore = sectorsRead(noted.at(-1) ?? '') * 512
  return points.map((made, i) => {
    expected.set(`${made.volume} ${made.point}`, noted[i].split(' ')[0])
    return { ...made, readBefore, stderr }
  })
}

/** For a shell: the newest snapshot of a backup, of LVM's. (Below a tracked volume's, LVM has one of the same name.) */
function snapshotGlob(volume: string): string {
  return `$(ls -d /dev/${group}/${volume.split('/').at(-1)}-backup-*-* | tail -n 1)`
}

/** Of a line of a device's `stat` in sysfs. */
function sectorsRead(stat: string): number {
  return Number(stat.trim().split(/\s+/)[2])
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

/** Snapshots of a volume's backups that are in the group now. */
function left(volume: string): string[] {
  const names = lvm('lvs', '--noheadings', '-o', 'lv_name', group).split('\n')
  return names.map((each) => each.trim()).filter((each) => each.startsWith(`${volume.split('/').at(-1)}-backup-`))
}

function bytesRead(device: string): number {
  const { rdev } = statSync(device)
  const stat = readFileSync(`/sys/dev/block/${rdev >> 8}:${rdev & 0xff}/stat`, 'utf8')
  return sectorsRead(stat) * 512
}

/** What a layer has of its own, in bytes. */
async function layerBytes(tool: RunTool, volume: string, point: string): Promise<number> {
  const file = { driver: 'file', filename: join(root, volume, `${point}.qcow2`) }
  const image = `json:${JSON.stringify({ driver: 'qcow2', backing: null, file })}`
  const { stdout } = await tool('qemu-img', ['map', '--output=json', image])
  const map = JSON.parse(stdout) as { length: number; present: boolean }[]
  return map.reduce((sum, { length, present }) => sum + (present ? length : 0), 0)
}

/** Writes files of a file system anew, removes some, and trims now and then. */
function work(mountPoint: string, round: number, trims: boolean): void {
  for (let files = 0; files < 5; files++) {
    const path = join(mountPoint, `file-${random.integer(0, 11)}`)
    if (random.chance(0.3)) rmSync(path, { force: true })
    else writeFileSync(path, Buffer.alloc(random.integer(1, 1_000_000), round + files + 1))
  }
  run('sync', ['-f', mountPoint])
  if (trims && random.chance(0.5)) run('fstrim', [mountPoint])
}

/**
 * Somebody who goes on writing to it, until told by a file: a kernel of the lab's panics where a process is killed within its fork (seen with 6.12,
 * in exit_mmap below copy_process).
 */
function busy(mountPoint: string): { stop(): Promise<void> } {
  const enough = join(folder, 'enough')
  rmSync(enough, { force: true })
  const write = 'dd if=/dev/urandom of=busy bs=16k count=4 seek=$((RANDOM % 60)) conv=fsync,notrunc status=none'
  const script = `until [ -e ${enough} ]; do ${write}; done`
  const child = spawn('bash', ['-c', script], { cwd: mountPoint, stdio: 'ignore' })
  const ended = once(child, 'exit')
  return {
    async stop() {
      writeFileSync(enough, '')
      await ended
      run('sync', ['-f', mountPoint])
    }
  }
}

interface Life {
  readonly volume: string
  readonly device: string
  readonly more: readonly string[]
  /** How much is counted of what it has read: on this device. By default on the snapshot, which is kept. */
  readonly counted?: string
  /** Whether somebody writes while the copy is made. */
  readonly isBusy?: boolean
  /** Whether discards are passed down: not by dm-era, nor by the origin of a classic snapshot. */
  readonly trims?: boolean
}

/** A full backup of a file system in use, and increments of it: each reads what changed, once, and all of them restore. */
async function live(t: ExecutionContext, tool: RunTool, life: Life): Promise<void> {
  const { volume, device, more, counted, isBusy, trims = true } = life
  run('mkfs.ext4', ['-q', device])
  const mountPoint = mkdtempSync(join(tmpdir(), 'mounted-'))
  run('mount', ['-o', 'discard', device, mountPoint])
  for (let i = 0; i <= increments; i++) {
    work(mountPoint, i, trims)
    const writer = isBusy ? busy(mountPoint) : undefined
    const [made] = await backUp(t, [volume], [...more], counted)
    await writer?.stop()
    t.is(made.kind, i === 0 ? 'full' : 'increment', made.stderr)
    const kept = left(volume)
    t.is(kept.length, more.includes('--keep-snapshot') ? 1 : 0)
    if (i === 0) continue
    const read = bytesRead(counted ?? `/dev/${group}/${kept[0]}`) - made.readBefore
    const changed = await layerBytes(tool, volume, made.point)
    t.true(changed > 0)
    t.true(read <= changed * 1.01, `${read} bytes were read, ${changed} changed: ${again}`)
    t.true(made.read_bytes <= changed)
    t.log(`${volume} ${i}: ${changed} bytes changed, ${read} read`)
  }
  await checkRestores(t, volume)
  run('umount', [mountPoint])
}

kernelTest('a file system in use: full and increments, each changed block read once', async (t, tool) => {
  const volume = createThin(group, 'pool64', 'data', 64)
  const more = ['--keep-snapshot', '--keep', String(Math.max(3, increments + 1))]
  await live(t, tool, { volume: `${group}/data`, device: volume, more, isBusy: true })
  const verified = await runCommand(['backup', 'verify', root, '--volume', `${group}/data`, '-o', 'json'], { env })
  t.is(verified.status, 0, verified.stderr)
  t.true((JSON.parse(verified.stdout) as { points: { compared: boolean }[] }).points.at(-1)?.compared)

  run('mount', [volume, join(folder, 'mounted')])
  const target = createThin(group, 'pool64', 'restored', 64)
  const newest = [...expected.keys()].at(-1)?.split(' ')[1] ?? ''
  const words = ['backup', 'restore', root, '--volume', `${group}/data`, '--point', newest, '--to']
  t.regex((await runCommand([...words, volume], { env })).stderr, /in use.*DM_DEVICE_BUSY/)
  writeBlocks(target, 3, 100, 'z')
  t.is((await runCommand([...words, target], { env })).status, 0)
  t.is(run('sha256sum', [target]).split(' ')[0], [...expected.values()].at(-1) ?? '')
  run('umount', [join(folder, 'mounted')])
})

longTest(
  'a file system in use, and nothing kept: full and increments, each changed block read once',
  async (t, tool) => {
    const device = createThin(group, 'pool64', 'unkept', 64)
    await live(t, tool, { volume: `${group}/unkept`, device, more: [], counted: `/dev/mapper/${group}-pool64_tdata` })
  }
)

longTest('a file system in use, with classic snapshots: full and increments', async (t, tool) => {
  createThick(group, 'thick', 32)
  const more = ['--keep-snapshot', '--cow-size', '40MiB']
  await live(t, tool, { volume: `${group}/thick`, device: `/dev/${group}/thick`, more, isBusy: true, trims: false })
  const refused = await runCommand(['backup', `${group}/thick`, '--to', root], { env })
  t.is(refused.status, 2)
  t.regex(refused.stderr, /--cow-size/)
})

longTest('a file system in use on a tracked volume: full and increments', async (t, tool) => {
  run('/run/modprobe', ['dm-era'])
  createThin(group, 'pool64', 'beneath', 32)
  createThick(group, 'eras', 4)
  run('dd', ['if=/dev/zero', `of=/dev/${group}/eras`, 'bs=1M', 'count=4', 'conv=fsync', 'status=none'])
  const admin = connectAdmin(agent.address)
  const [dataDevice, metadataDevice] = ['beneath', 'eras'].map((each) => `/dev/${group}/${each}`)
  const tracked = { name: 'watched', dataDevice, metadataDevice, blockBytes: 65536, snapshotSize: '' }
  await admin.attachEra({ ...tracked, allowLossyKernel: false })
  admin.close()
  const counted = `/dev/mapper/${group}-pool64_tdata`
  await live(t, tool, { volume: 'watched', device: '/dev/mapper/watched', more: [], counted, trims: false })
  run('dmsetup', ['remove', 'watched'])
})

longTest('a volume with an external origin: a full backup each time, and it is said', async (t) => {
  createThick(group, 'master', 8)
  run('bash', ['-c', `head -c 8M /dev/urandom > /dev/${group}/master`])
  lvm('lvchange', '--permission', 'r', '--activate', 'n', `${group}/master`)
  lvm('lvcreate', '--snapshot', '--thinpool', `${group}/pool64`, '--name', 'clone', `${group}/master`)
  for (let i = 0; i < 2; i++) {
    writeBlocks(`/dev/${group}/clone`, 10 * i, 3, 'vw'[i])
    const [made] = await backUp(t, [`${group}/clone`], ['--keep-snapshot'])
    t.is(made.kind, 'full')
    t.log(made.full_because)
    if (i > 0) t.regex(made.stderr, /a full backup, because .*external origin/)
  }
  await checkRestores(t, `${group}/clone`)
})

longTest(
  'after a restart of the machine: with a kept snapshot an increment, with nothing kept a full backup, and why',
  async (t) => {
    const pool = 'again'
    lvm('lvcreate', '--type', 'thin-pool', '--size', '32m', '--chunksize', '64k', '--name', pool, group)
    for (const [name, ...more] of [['woken', '--keep-snapshot'], ['waking']]) {
      writeBlocks(createThin(group, pool, name, 8), 0, 50, 'a')
      t.is((await backUp(t, [`${group}/${name}`], more))[0].kind, 'full')
    }
    // The pool is put away and activated anew, as a restart does. The agent looks by itself, and after its own restart.
    lvm('lvchange', '--activate', 'n', ...['woken', 'waking', ...left('woken'), pool].map((each) => `${group}/${each}`))
    lvm('lvchange', '--activate', 'y', ...['woken', 'waking', ...left('woken')].map((each) => `${group}/${each}`))
    for (const [name, kind, ...more] of [
      ['woken', 'increment', '--keep-snapshot'],
      ['waking', 'full']
    ]) {
      writeBlocks(`/dev/${group}/${name}`, 7, 2, 'b')
      const [made] = await backUp(t, [`${group}/${name}`], more)
      t.is(made.kind, kind, made.stderr)
      if (kind === 'full') t.regex(made.stderr, /a full backup, because .*DM_BASE_RECORD_INTERRUPTED/)
      else t.is(made.read_bytes, 2 * 65536)
      await checkRestores(t, `${group}/${name}`)
    }
  }
)

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
      const [made] = await backUp(t, [`${group}/${name}`], ['--keep-snapshot', '--keep', '2'])
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
  await checkReused(t, admin, made.device?.path ?? '')
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

/** A name that a person gives to one snapshot after the other: what is on the chain is of the first one. */
async function checkReused(t: ExecutionContext, admin: ReturnType<typeof connectAdmin>, device: string): Promise<void> {
  for (const [name, fill] of [
    ['monday', 'c'],
    ['monday', 'd'],
    ['tuesday', 'e'],
    ['monday', 'f']
  ]) {
    writeBlocks(device, 40, 4, fill)
    if (fill === 'f' || fill === 'd') {
      await admin.deactivateVolume({ pool: 'tank', name })
      await admin.deleteSnapshot({ pool: 'tank', name })
    }
    await admin.createSnapshot({ pool: 'tank', origin: 'mail', name })
    await admin.activateVolume({ pool: 'tank', name, writable: false })
    if (fill === 'd') continue
    const words = ['backup', 'tank/mail', '--snapshot', name, '--to', root, '-o', 'json']
    const { status, stdout, stderr } = await runCommand(words, { env })
    t.is(status, 0, stderr)
    const [made] = (JSON.parse(stdout) as { points: Made[] }).points
    t.is(made.kind, fill === 'e' ? 'full' : 'increment', `${name} ${fill}: ${stderr}`)
    if (fill === 'e') t.regex(stderr, /tank\/monday, .* is another snapshot/)
    expected.set(`tank/mail ${made.point}`, run('sha256sum', [device]).split(' ')[0])
  }
  await checkRestores(t, 'tank/mail')
  for (const name of ['monday', 'tuesday']) {
    await admin.deactivateVolume({ pool: 'tank', name })
    await admin.deleteSnapshot({ pool: 'tank', name })
  }
}

longTest(
  'names that mean something else by the next backup: no point holds anything but what the volume held',
  async (t) => {
    const clock = Date.now()
    for (const { what, isClassic = false, act } of renamings) {
      for (const isKept of isClassic ? [true] : [true, false]) {
        const place = newPlace(folder, isClassic)
        const [volume, device] = [`${place.group}/${place.name}`, `/dev/${place.group}/${place.name}`]
        const more = [...(isKept ? ['--keep-snapshot'] : []), ...(isClassic ? ['--cow-size', '8MiB'] : [])]
        const backedUp = async () => {
          const result = await runCommand(['backup', volume, '--to', root, '-o', 'json', ...more], { env })
          // An error would be no wrong point, but none is needed here.
          t.is(result.status, 0, `${what}: ${result.stderr}`)
          const [made] = (JSON.parse(result.stdout) as { points: Made[] }).points
          expected.set(`${volume} ${made.point}`, run('sha256sum', [device]).split(' ')[0])
          return made
        }
        await backedUp()
        const { points } = JSON.parse(readFileSync(join(root, volume, 'chain.json'), 'utf8')) as Manifest
        act({ ...place, snapshot: points[0].snapshot.handle.split('/')[1], isKept }, folder)
        const { kind, full_because: because = '' } = await backedUp()
        t.log(`${what}, ${isKept ? 'kept' : 'nothing kept'}: ${kind} ${because}`)
        await checkRestores(t, volume)
      }
    }
    run('date', ['--set', `@${Math.ceil(clock / 1000)}`])
  }
)

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
    const made = await backUp(t, volumes, ['--keep-snapshot'])
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
  const misspelt = await runCommand(['backup', `${group}/oen`, '--to', root], { env })
  t.is(misspelt.stdout, '')
  t.regex(misspelt.stderr, /volume group vg has no volume oen.*DM_NO_SUCH_DEVICE/)
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
