/**
 * The storage of the Vagrant lab's nodes (deploy/lab/storage.sh), and an agent on it with no more rights than a pod needs.
 * Runs inside the kernel lab: node test/lab/run.ts test/kernel/lab-storage.test.ts
 */
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { runCommand } from '../cli/run-command.ts'
import { run, sendMessage } from './dmsetup.ts'
import { LiveAgent } from './live-agent.ts'
import { createSnapshot, createThin, lvm, prepareLvm, writeBlocks } from './lvm-setup.ts'

const script = fileURLToPath(new URL('../../deploy/lab/storage.sh', import.meta.url))
const daemonSet = fileURLToPath(new URL('../../deploy/daemonset.yaml', import.meta.url))
const blockBytes = 65536
const era = '/dev/mapper/lab-tracked-era'

prepareLvm()
run('/run/modprobe', ['dm-era'])

function storage(args: readonly string[], variables: readonly string[] = []): string {
  return run('env', [`LVM_SYSTEM_DIR=${process.env.LVM_SYSTEM_DIR}`, ...variables, 'bash', script, ...args])
}

const volumes = () =>
  lvm('lvs', '--noheadings', '--options', 'lv_name,lv_uuid,lv_size,segtype', '--sort', 'lv_name', 'lab')

function eraStatus(): { words: string[]; era: number } {
  const words = run('dmsetup', ['status', 'lab-tracked-era']).trim().split(' ')
  return { words, era: Number(words[5]) }
}

/** Extents of `deltamapper … -o json`, as first and last block (not included). */
function blocksIn(stdout: string): [number, number][] {
  const answer = JSON.parse(stdout) as { block_metadata: { byte_offset: number; size_bytes: number }[] }
  return answer.block_metadata.map(({ byte_offset, size_bytes }) => [
    byte_offset / blockBytes,
    (byte_offset + size_bytes) / blockBytes
  ])
}

test.serial('without a blank disk it says so, and makes nothing', (t) => {
  run('dd', ['if=/dev/zero', `of=${process.env.TMPDIR}/full`, 'bs=1M', 'count=32', 'status=none'])
  const loop = run('losetup', ['--find', '--show', `${process.env.TMPDIR}/full`]).trim()
  run('mkfs.ext4', ['-q', loop])
  t.throws(() => storage([loop]), { message: /holds something/ })
  t.throws(() => storage(['/dev/nothing']), { message: /no block device/ })
  t.is(lvm('vgs', '--noheadings').trim(), '')
  run('losetup', ['--detach', loop])
})

test.serial('it finds the blank disk, and makes a thin pool and an era device on it', (t) => {
  storage([])
  const [pool, tracked] = volumes().trim().split('\n')
  t.regex(pool ?? '', /pool0 .* thin-pool/)
  t.regex(tracked ?? '', /tracked .* linear/)
  t.is(lvm('lvs', '--noheadings', '--options', 'chunk_size', '--units', 'b', '--nosuffix', 'lab/pool0').trim(), '65536')
  t.is(eraStatus().words[2], 'era')
  const minor = run('dmsetup', ['info', '--columns', '--noheadings', '--options', 'minor', 'lab-tracked-era']).trim()
  t.is(readFileSync(`/sys/block/dm-${minor}/queue/discard_max_bytes`, 'utf8').trim(), '0')
})

test.serial('run again it changes nothing', (t) => {
  const before = { volumes: volumes(), era: eraStatus() }
  storage([])
  t.deepEqual({ volumes: volumes(), era: eraStatus() }, before)
  t.throws(() => storage([], ['LAB_GROUP=other']), { message: /which disk\? Blank ones are: none/ })
})

test.serial('after a boot it brings back what was there, eras included', (t) => {
  const before = { volumes: volumes(), era: eraStatus().era }
  for (const name of ['lab-tracked-era', 'lab-tracked-guard']) run('dmsetup', ['remove', name])
  lvm('vgchange', '--activate', 'n', 'lab')
  storage([])
  t.is(volumes(), before.volumes)
  t.true(eraStatus().era > before.era)
})

test.serial('the era device tells what was written', async (t) => {
  const since = eraStatus().era + 1
  sendMessage('lab-tracked-era', 'checkpoint')
  writeBlocks(era, 3, 2, 'x')
  writeBlocks(era, 100, 1, 'y')
  sendMessage('lab-tracked-era', 'take_metadata_snap')
  const size = run('blockdev', ['--getsize64', era]).trim()
  const options = ['--metadata', '/dev/lab/tracked_era', '--since', String(since), '--size', size, '-o', 'json']
  const { status, stdout, stderr } = await runCommand(['delta', ...options])
  sendMessage('lab-tracked-era', 'drop_metadata_snap')
  t.is(status, 0, stderr)
  t.deepEqual(blocksIn(stdout), [
    [3, 5],
    [100, 101]
  ])
})

/** Of the folders that LVM might want to write to, those that the agent's pod can. */
function writableInPod(folders: readonly string[]): string[] {
  const manifest = readFileSync(daemonSet, 'utf8')
  return folders.filter((each) => new RegExp(`mountPath: ${each}\\b(?!.*readOnly: true)`).test(manifest))
}

/** Devices that container engines let everybody have (runc's list): null, zero, full, random, urandom, tty, terminals. */
const usualDevices = [
  'c 1:3 rwm',
  'c 1:5 rwm',
  'c 1:7 rwm',
  'c 1:8 rwm',
  'c 1:9 rwm',
  'c 5:0 rwm',
  'c 5:2 rwm',
  'c 136:* rwm'
]

/** What docs/kubernetes.md wants of a device plugin. */
function devicesOfPlugin(): string[] {
  const block = (path: string) => {
    const { rdev } = statSync(path)
    return `b ${rdev >> 8}:${rdev & 255} r`
  }
  return ['c 10:236 rw', block('/dev/mapper/lab-pool0_tmeta'), block('/dev/ubda')]
}

/** Lines of a shell that put it, and what it starts, below device rules, as a container engine does. */
function belowDeviceRules(rules: readonly string[]): string[] {
  const folder = `${process.env.TMPDIR}/devices`
  const other = '/dev/mapper/lab-pool0_tdata'
  return [
    `head --bytes 1 ${other} >/dev/null`,
    `mkdir --parents ${folder}`,
    `busybox mount -t cgroup -o devices none ${folder}`,
    `mkdir ${folder}/pod`,
    `echo a >${folder}/pod/devices.deny`,
    ...rules.map((each) => `echo '${each}' >${folder}/pod/devices.allow`),
    `echo $$ >${folder}/pod/cgroup.procs`,
    // (One whose rules do not count would show nothing.)
    `! head --bytes 1 ${other} >/dev/null 2>&1`
  ]
}

// What the comments in daemonset.yaml say is enough, and no more than is mounted there.
test.serial(
  'an agent serves the pool with CAP_SYS_ADMIN alone, the devices of a plugin, and nothing writable but what its pod has',
  async (t) => {
    const folders = ['/dev', '/run/lock', '/run/lvm', '/etc/lvm']
    const writable = writableInPod(folders)
    t.deepEqual(writable, ['/run/lock'])
    // Where LVM has its locks unless it is told otherwise.
    const configuration = `${process.env.TMPDIR}/lvm-of-the-pod`
    mkdirSync(configuration)
    const usual = readFileSync(`${process.env.LVM_SYSTEM_DIR}/lvm.conf`, 'utf8').replace(/locking_dir="[^"]*"/, '')
    writeFileSync(`${configuration}/lvm.conf`, usual)
    const closed = folders.filter((each) => each !== '/dev' && !writable.includes(each))
    const confined = [
      ...belowDeviceRules([...usualDevices, 'b *:* m', 'c *:* m', ...devicesOfPlugin()]),
      'busybox mount -o bind /dev /dev',
      'busybox mount -o remount,ro,bind /dev',
      '! mknod /dev/deltamapper-test b 1 1 2>/dev/null',
      ...writable.map((each) => `busybox mount -t tmpfs none ${each}`),
      ...closed.map((each) => `{ [ ! -d ${each} ] || busybox mount -t tmpfs -o ro none ${each}; }`),
      `export LVM_SYSTEM_DIR=${configuration}`,
      'exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,+sys_admin "$@"'
    ]
    const agent = await LiveAgent.start({
      prefix: ['unshare', '--mount', 'bash', '-c', confined.join(' && '), 'confined'],
      config: { admin: false }
    })
    t.teardown(() => agent.stop())
    const device = createThin('lab', 'pool0', 'data', 64)
    writeBlocks(device, 0, 10, 'a')
    createSnapshot('lab', 'data', 'one')
    writeBlocks(device, 5, 2, 'b')
    writeBlocks(device, 40, 3, 'c')
    createSnapshot('lab', 'data', 'two')
    const ask = async (...words: string[]) => {
      const { status, stdout, stderr } = await runCommand([...words, '--endpoint', agent.address, '-o', 'json'])
      t.is(status, 0, stderr)
      return blocksIn(stdout)
    }
    t.deepEqual(await ask('allocated', 'lab/one'), [[0, 10]])
    t.deepEqual(await ask('delta', 'lab/one', 'lab/two'), [
      [5, 7],
      [40, 43]
    ])
    t.regex(readFileSync(`/proc/${agent.pid}/status`, 'utf8'), /^CapEff:\t0000000000200000$/m)
    t.is((await runCommand(['doctor', '--endpoint', agent.address])).status, 0)
  }
)
