/**
 * The content rules, through CSI and through hooks, against a driver of files: an honest one passes, and each that is
 * wrong in a way which only data shows is caught by the rule for it. Nothing that a run makes is left. (The same with
 * real block devices: test/kernel/conformance.test.ts.)
 */
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { type ContentOptions, type Report, runConformance } from '../../src/conformance/conformance.ts'
import { readHooks } from '../../src/conformance/hooks.ts'
import { runCommand, startCommand } from '../cli/run-command.ts'
import { eventually } from '../grpc/extent-backend.ts'
import { turns } from '../support/turns.ts'
import { testFolder } from '../support/test-folder.ts'
import { type FileFault, startFileDriver } from './file-driver.ts'

const folder = testFolder(test)
const sizeBytes = 1024 * 1024
const contentRules = [19, 21, 22, 23, 24, 25, 30]
const inTurn = turns(3)
let drivers = 0

async function driver(t: ExecutionContext, fault: FileFault = 'none') {
  const own = join(folder, String(drivers++))
  await mkdir(own)
  const socket = join(own, 'csi.sock')
  const stop = await startFileDriver(socket, join(own, 'images'), 'file', fault)
  t.teardown(stop)
  const csi = {
    parameters: {},
    snapshot_parameters: {},
    secrets: {},
    staging_dir: join(own, 'staging'),
    target_dir: join(own, 'target')
  }
  return { endpoint: `unix://${socket}`, images: join(own, 'images'), own, csi }
}

/** Enough for a driver that is wrong. */
const some = ['single-write', 'zeroes', 'restored-in-use', 'source-in-use', 'base-deleted']

async function judged(
  endpoint: string,
  content: ContentOptions,
  histories?: readonly string[]
): Promise<{ report: Report; left: string[] }> {
  const left: string[] = []
  const { report } = await inTurn(() =>
    runConformance({
      endpoint,
      snapshots: [],
      rules: contentRules,
      content: { ...content, sizeBytes, histories, onLeftBehind: (what) => void left.push(what) }
    })
  )
  return { report, left }
}

const outcomes = ({ rules }: Report, outcome: string) =>
  rules.filter((rule) => rule.outcome === outcome).map(({ number }) => number)

test('through CSI, an honest driver passes, and nothing is left', async (t) => {
  const { endpoint, csi, images } = await driver(t)
  const { report, left } = await judged(endpoint, { csi })
  t.deepEqual(
    report.rules.filter(({ outcome }) => outcome !== 'pass').map(({ number, seen }) => `${number}: ${seen}`),
    []
  )
  t.deepEqual(left, [])
  t.deepEqual(await readdir(images), [])
  t.regex(report.rules.find(({ number }) => number === 22)?.seen ?? '', /single-write, .*scattered, three-snapshots/)
})

for (const [fault, rules] of [
  ['loses-allocated', [21, 24, 25]],
  ['loses-changed', [22, 24, 25]],
  ['forgets-zeroes', [22]],
  ['wrong-while-restored-in-use', [24]],
  ['wrong-while-source-differs', [25]],
  ['empty-without-base', [30]],
  ['rounds-capacity-up', [19]]
] as const) {
  test(`a driver that is wrong by ${fault} is caught`, async (t) => {
    const { endpoint, csi } = await driver(t, fault)
    const { report } = await judged(endpoint, { csi }, some)
    t.deepEqual(outcomes(report, 'fail'), [...rules])
  })
}

test('Ctrl-C in the middle of a history leaves nothing', async (t) => {
  const { endpoint, own, images, csi } = await driver(t)
  const file = join(own, 'content.yaml')
  await writeFile(file, JSON.stringify(csi))
  const child = startCommand(['conformance', '--endpoint', endpoint, '--content', file, '--rule', '22'])
  t.true(await eventually(() => readdirSync(images).length > 1), 'a volume and a snapshot of it')
  child.kill('SIGINT')
  const [status] = (await once(child, 'exit')) as [number]
  t.is(status, 130)
  t.deepEqual(await readdir(images), [])
})

/** Commands of somebody who has no Node service: they ask the driver's Controller, and know where its files are. */
function hooksFor(endpoint: string, own: string) {
  const socket = endpoint.replace('unix://', '')
  const call = (method: string, request: string) =>
    `"${process.execPath}" ${JSON.stringify(join(import.meta.dirname, 'csi-call.ts'))} ${socket} ${method} "${request}"`
  return {
    create: `${call('CreateVolume', "{'name':'$VOLUME','capacity_range':{'required_bytes':'$SIZE_BYTES'}}")} && echo ${own}/images/$VOLUME.img`,
    snapshot: `${call('CreateSnapshot', "{'source_volume_id':'$VOLUME','name':'$SNAPSHOT'}")} && echo $SNAPSHOT`,
    restore: `${call('CreateVolume', "{'name':'$VOLUME','volume_content_source':{'type':'snapshot','snapshot':{'snapshot_id':'$SNAPSHOT_ID'}}}")} && echo ${own}/images/$VOLUME.img`,
    delete_snapshot: 'echo no such command >&2; exit 1',
    delete_volume: `rm ${own}/images/$VOLUME.img`
  }
}

test('a volume that could not be written meanwhile was not in use', async (t) => {
  const { endpoint, own } = await driver(t)
  const usual = hooksFor(endpoint, own)
  // The first that is restored is the one to be in use.
  const restore = `[ -e ${own}/once ] || { touch ${own}/once; echo ${own}/gone; exit; }; ${usual.restore}`
  const hooks = { ...usual, restore, delete_volume: 'true', delete_snapshot: 'true' }
  const { report } = await judged(endpoint, { hooks }, ['restored-in-use'])
  t.deepEqual(outcomes(report, 'fail'), [24])
  t.regex(report.rules.find(({ number }) => number === 24)?.seen ?? '', /restored-in-use: .*ENOENT.*gone/)
})

test('through hooks, with the command; what cannot be removed is listed', async (t) => {
  const { endpoint, own } = await driver(t)
  const hooks = hooksFor(endpoint, own)
  const file = join(own, 'hooks.yaml')
  await writeFile(file, JSON.stringify(hooks))
  t.deepEqual(await readHooks(file), hooks)
  const flags = [
    '--endpoint',
    endpoint,
    '--hooks',
    file,
    '--size',
    '64KiB',
    '--history',
    'ends',
    'nothing',
    'grown',
    '--rule',
    '21',
    '22',
    '-o',
    'json'
  ]
  const { status, stdout, stderr } = await runCommand(['conformance', ...flags])
  t.is(status, 0, stderr + stdout)
  t.regex(stdout, /grown skipped: volumes cannot be made larger/)
  t.regex(stderr, /deltamapper: not removed: snapshot conf-\S+: .*no such command/)
})
