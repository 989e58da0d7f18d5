/**
 * Content rules with real block devices: through CSI against a driver of files on loop devices, which is not ours,
 * and through hooks against our own agent on LVM's thin volumes. `deltamapper conformance` makes, writes, restores
 * and compares; here is only what it is given.
 */
import { mkdirSync, mkdtempSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { type ContentOptions, type Report, runConformance } from '../../src/conformance/conformance.ts'
import { startFileDriver } from '../conformance/file-driver.ts'
import { run } from './dmsetup.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, createPool, lvm, prepareLvm } from './lvm-setup.ts'

const folder = mkdtempSync(join(tmpdir(), 'conformance-'))
const contentRules = [19, 21, 22, 23, 24, 25, 30]
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

/** Each LVM command takes a second there. */
const fewer = ['sub-block', 'restored-in-use', 'source-in-use', 'base-deleted']

async function judged(
  endpoint: string,
  content: ContentOptions,
  some = histories
): Promise<{ report: Report; left: string[] }> {
  const left: string[] = []
  const { report } = await runConformance({
    endpoint,
    snapshots: [],
    rules: contentRules,
    content: { ...content, histories: some, onLeftBehind: (what) => void left.push(what) }
  })
  return { report, left }
}

const unpassed = ({ rules }: Report) =>
  rules.filter(({ outcome }) => outcome !== 'pass').map(({ number, outcome, seen }) => `${number} ${outcome}: ${seen}`)

test.serial('a driver of files on loop devices, through CSI', async (t) => {
  t.timeout(300_000)
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
  t.timeout(300_000)
  prepareLvm()
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
  const { report, left } = await judged(agent.address, { hooks, sizeBytes: 4 * 1024 * 1024 }, histories && fewer)
  t.deepEqual(unpassed(report), [])
  t.deepEqual(left, [])
  t.is(lvm('lvs', '--noheadings', '--options', 'lv_name', 'conf').trim(), 'pool', 'no volume is left')
})
