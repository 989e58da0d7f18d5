/**
 * Content rules with real block devices: through CSI against a driver of files on loop devices, which is not ours,
 * and through hooks against our own agent: on LVM's thin volumes, in a pool of its own, and on volumes that dm-era
 * tracks. `deltamapper conformance` makes, writes, restores and compares; here is only what it is given.
 */
import { mkdirSync, mkdtempSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { type ContentOptions, type Report, runConformance } from '../../src/conformance/conformance.ts'
import { command } from '../cli/run-command.ts'
import { startFileDriver } from '../conformance/file-driver.ts'
import { run } from './dmsetup.ts'
import { loopDisk } from './era-lab.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, createPool, lvm, prepareLvm } from './lvm-setup.ts'
import { OwnedAgent } from './owned-agent.ts'

prepareLvm()

const folder = mkdtempSync(join(tmpdir(), 'conformance-'))
const contentRules = [19, 21, 22, 23, 24, 25, 30]
/** Rules that are judged by one history alone. */
const judgedBy: Readonly<Record<number, string>> = { 24: 'restored-in-use', 25: 'source-in-use', 30: 'base-deleted' }
/** The slice of `npm test`; a soak has all of them. */
const slice = [
  'single-write',
  'sub-block',
  'discard',
  'restored-base',
  'restored-in-use',
  'source-in-use',
  'base-deleted'
]
const histories = process.env.LAB_COUNT === undefined ? slice : undefined

/** Each command of a hook takes a second there: a soak has these where hooks need most of them. */
const fewer = ['sub-block', 'restored-in-use', 'source-in-use', 'base-deleted']
/** One that compares everything, and one whose base is gone. */
const fewest = ['sub-block', 'base-deleted']

async function judged(
  endpoint: string,
  content: ContentOptions,
  some = histories
): Promise<{ report: Report; left: string[] }> {
  const left: string[] = []
  const { report } = await runConformance({
    endpoint,
    snapshots: [],
    // The lab is slow, and has one processor.
    patience: { runMs: 600_000 },
    rules: contentRules.filter((n) => some === undefined || !(n in judgedBy) || some.includes(judgedBy[n])),
    content: { ...content, histories: some, onLeftBehind: (what) => void left.push(what) }
  })
  return { report, left }
}

const unpassed = ({ rules }: Report) =>
  rules.filter(({ outcome }) => outcome !== 'pass').map(({ number, outcome, seen }) => `${number} ${outcome}: ${seen}`)

/** How a hook runs our own command line, and says nothing. */
const deltamapper = (address: string, words: string) =>
  `DELTAMAPPER_ENDPOINT=${address} ${process.execPath} ${command} ${words} >/dev/null`

test.serial('a driver of files on loop devices, through CSI', async (t) => {
  t.timeout(900_000)
  const socket = join(folder, 'csi.sock')
  const stop = await startFileDriver(socket, join(folder, 'images'), 'loop')
  t.teardown(stop)
  const csi = {
    parameters: {},
    snapshot_parameters: {},
    secrets: {},
    staging_dir: join(folder, 'staging'),
    target_dir: join(folder, 'target')
  }
  const { report, left } = await judged(`unix://${socket}`, { csi, sizeBytes: 2 * 1024 * 1024 })
  t.deepEqual(unpassed(report), [])
  t.deepEqual(left, [])
  t.deepEqual(readdirSync(join(folder, 'images')), [])
  t.is(run('losetup', ['--list', '--noheadings']).trim(), '', 'no loop device is left')
})

test.serial("our agent on LVM's thin volumes, through hooks", async (t) => {
  t.timeout(900_000)
  createGroup('conf', '/dev/ubda')
  createPool('conf', 'pool', 256)
  const lvmFolder = process.env.LVM_SYSTEM_DIR ?? ''
  const bin = (words: string) => `LVM_SYSTEM_DIR=${lvmFolder} lvm ${words} --yes --quiet >/dev/null`
  const device = 'echo /dev/conf/$VOLUME'
  const hooks = {
    create: `${bin('lvcreate --type thin --virtualsize ${SIZE_BYTES}b --thinpool pool --name $VOLUME conf')} && ${device}`,
    snapshot: `${bin('lvcreate --snapshot --permission r --name $SNAPSHOT conf/$VOLUME')} && echo conf/$SNAPSHOT`,
    restore: `${bin('lvcreate --snapshot --setactivationskip n --name $VOLUME $SNAPSHOT_ID')} && ${bin('lvchange --activate y --permission rw conf/$VOLUME || true')}; ${device}`,
    delete_snapshot: bin('lvremove $SNAPSHOT_ID'),
    delete_volume: bin('lvremove conf/$VOLUME'),
    discard: 'blkdiscard --offset $OFFSET_BYTES --length $LENGTH_BYTES $DEVICE',
    grow: bin('lvextend --size ${SIZE_BYTES}b conf/$VOLUME')
  }
  mkdirSync(join(folder, 'hooks'))
  const agent = await LiveAgent.start({ config: { driverName: 'topolvm.io' } })
  t.teardown(() => agent.stop())
  const { report, left } = await judged(agent.address, { hooks, sizeBytes: 4 * 1024 * 1024 }, histories && fewest)
  t.deepEqual(unpassed(report), [])
  t.deepEqual(left, [])
  t.is(lvm('lvs', '--noheadings', '--options', 'lv_name', 'conf').trim(), 'pool', 'no volume is left')
})

test.serial('our agent on a thin pool of its own, through hooks', async (t) => {
  t.timeout(900_000)
  const agent = await OwnedAgent.start()
  t.teardown(() => agent.kill())
  const [data, metadata] = [loopDisk(64), loopDisk(4)]
  await agent.command('pool', 'create', 'own', '--data', data.path, '--metadata', metadata.path)
  const cli = (words: string) => deltamapper(agent.live.address, words)
  // device-mapper's names have dashes doubled.
  const device = 'echo /dev/mapper/own-$(echo $VOLUME | sed s/-/--/g)'
  // What is restored is a snapshot of a snapshot, and is deleted as one.
  const mark = join(mkdtempSync(join(folder, 'restored-')), '$VOLUME')
  const hooks = {
    create: `${cli('volume create own/$VOLUME --size $SIZE_BYTES')} && ${device}`,
    snapshot: `${cli('snapshot create own/$VOLUME $SNAPSHOT')} && echo own/$SNAPSHOT`,
    restore: [
      cli('snapshot create $SNAPSHOT_ID $VOLUME'),
      cli('snapshot activate --writable own/$VOLUME'),
      `touch ${mark}`,
      device
    ].join(' && '),
    delete_snapshot: cli('snapshot delete --yes $SNAPSHOT_ID'),
    delete_volume: `[ -e ${mark} ] && kind=snapshot || kind=volume; ${cli('$kind delete --yes own/$VOLUME')}`,
    discard: 'blkdiscard --offset $OFFSET_BYTES --length $LENGTH_BYTES $DEVICE',
    grow: cli('volume grow own/$VOLUME --size $SIZE_BYTES')
  }
  const some = histories ? ['sub-block'] : fewer
  const { report, left } = await judged(agent.live.address, { hooks, sizeBytes: 4 * 1024 * 1024 }, some)
  t.deepEqual(unpassed(report), [])
  t.deepEqual(left, [])
  await agent.command('pool', 'remove', 'own')
})

test.serial('our agent on volumes that dm-era tracks, through hooks', async (t) => {
  t.timeout(900_000)
  run('/run/modprobe', ['dm-era'])
  createGroup('thick', loopDisk(256).path)
  const agent = await LiveAgent.start({ config: { walkers: 1, drainSeconds: 1 } })
  t.teardown(() => agent.stop())
  const cli = (words: string) => deltamapper(agent.address, words)
  const bin = (words: string) => `LVM_SYSTEM_DIR=${process.env.LVM_SYSTEM_DIR} lvm ${words} --yes --quiet >/dev/null`
  const attach = '--data /dev/thick/$VOLUME --metadata /dev/thick/${VOLUME}_eras --snapshot-size 16m'
  const create = [
    bin('lvcreate --size ${SIZE_BYTES}b --name $VOLUME thick'),
    bin('lvcreate --size 2m --name ${VOLUME}_eras thick'),
    cli(`era attach $VOLUME ${attach} --allow-lossy-kernel`)
  ].join(' && ')
  // An id is VOLUME/SNAPSHOT, and LVM's snapshot below has the snapshot's name.
  const below = '/dev/thick/${SNAPSHOT_ID#*/}'
  const copy = `dd if=${below} of=/dev/mapper/$VOLUME bs=64k conv=fsync status=none`
  const hooks = {
    create: `${create} && echo /dev/mapper/$VOLUME`,
    snapshot: `${cli('snapshot create $VOLUME $SNAPSHOT')} && echo $VOLUME/$SNAPSHOT`,
    restore: `SIZE_BYTES=$(blockdev --getsize64 ${below}) && ${create} && ${copy} && echo /dev/mapper/$VOLUME`,
    delete_snapshot: cli('snapshot delete --yes $SNAPSHOT_ID'),
    delete_volume: `${cli('era detach --yes $VOLUME')} && ${bin('lvremove thick/$VOLUME thick/${VOLUME}_eras')}`
  }
  const some = histories ? ['sub-block'] : ['sub-block', 'restored-in-use']
  const { report, left } = await judged(agent.address, { hooks, sizeBytes: 4 * 1024 * 1024 }, some)
  t.deepEqual(unpassed(report), [])
  t.deepEqual(left, [])
  t.is(lvm('lvs', '--noheadings', '--options', 'lv_name', 'thick').trim(), '', 'no volume is left')
})
