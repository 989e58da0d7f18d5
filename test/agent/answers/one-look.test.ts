/** One look: one LVM report for all handles of a question and for everybody who waits, whichever groups they ask about. */
import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { DeviceMapperLook, LvmLook, type LvmPort } from '../../../src/agent/answers/one-look.ts'
import { type LogicalVolume } from '../../../src/agent/lvm/parse.ts'
import { LvmRefused, LvmReporter } from '../../../src/agent/lvm/report.ts'
import { Sources } from '../../../src/agent/answers/sources.ts'
import { recordedDevices, recordedReports, recordedVolumes } from '../../support/recorded-lvm.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const volumes = recordedVolumes('volumes')

/** LVM that counts what it is asked. */
function counting(all: () => LogicalVolume[]): LvmPort & { asked: string[] } {
  const asked: string[] = []
  return {
    asked,
    allLogicalVolumes: async () => {
      asked.push('all')
      return all()
    },
    logicalVolumes: async (group) => {
      asked.push(group)
      return volumes.filter(({ vgName }) => vgName === group)
    },
    snapshotLinks: async () => undefined
  }
}

test('both handles of a question are answered from one report, in whichever way the group is named', async (t) => {
  const lvm = counting(() => volumes)
  const look = new Sources(new Map(), { deviceMapper: recordedDevices(), lvm }).look()
  const find = async (source: string, name: string) => (await look.find(source))?.snapshot(name)
  const found = await Promise.all([find('my-vg', 'monday'), find('*', 'monday'), find('my-vg', 'nothing')])
  t.deepEqual(
    found.map((each) => each?.handle),
    ['my-vg/monday', 'my-vg/monday', undefined]
  )
  t.deepEqual(lvm.asked, ['all'])
})

test('a look is not older than its first question, and the next one looks again', async (t) => {
  const lvm = counting(() => volumes)
  const sources = new Sources(new Map(), { deviceMapper: recordedDevices(), lvm })
  const [first, second] = [sources.look(), sources.look()]
  t.deepEqual(lvm.asked, [])
  for (const look of [first, second, first]) await (await look.find('my-vg'))?.snapshot('monday')
  t.deepEqual(lvm.asked, ['all', 'all'])
})

test('what LVM complains of may be another group: then the group is asked for alone', async (t) => {
  const lvm = counting(() => {
    throw new LvmRefused('DM_LVM_FAILED', 'VG other is damaged', 'repair it')
  })
  t.true((await new LvmLook(lvm).logicalVolumes('my-vg'))!.length > 0)
  t.deepEqual(lvm.asked, ['all', 'my-vg'])
})

test('two groups of one name are never taken for one', async (t) => {
  const lvm = counting(() => [...volumes, ...volumes.map((each) => ({ ...each, vgUuid: 'another' }))])
  await new LvmLook(lvm).logicalVolumes('my-vg')
  t.deepEqual(lvm.asked, ['all', 'my-vg'])
})

test('200 questions about groups that do not exist take two reports, and hold up nobody', async (t) => {
  const path = join(folder, 'lvm')
  writeFileSync(`${path}.report`, recordedReports('volumes')[0].text)
  writeFileSync(path, `#!/bin/bash\necho "$1" >>${path}.log\nsleep 0.2\ncat ${path}.report\n`)
  chmodSync(path, 0o755)
  const lvm = new LvmReporter({ command: [path] })
  const sources = new Sources(new Map(), { deviceMapper: recordedDevices(), lvm })
  const unknown = Array.from({ length: 200 }, async (_, i) => {
    const source = await sources.look().find(`no-such-group-${i}`)
    return source?.snapshot('any').then(
      () => 'found',
      ({ code }: { code: string }) => code
    )
  })
  const mine = (await sources.look().find('my-vg'))?.snapshot('monday')
  t.is((await mine)?.handle, 'my-vg/monday')
  t.deepEqual(new Set(await Promise.all(unknown)), new Set(['DM_SNAPSHOT_NOT_FOUND']))
  const reports = readFileSync(`${path}.log`, 'utf8').trim().split('\n').length
  t.true(reports <= 2, `${reports} reports`)
})

test('device-mapper is asked once for each device', async (t) => {
  let calls = 0
  const devices = recordedDevices()
  const look = new DeviceMapperLook({
    info: (device) => (calls++, devices.info(device)),
    table: (device) => (calls++, devices.table(device))
  })
  const info = await look.info('my--vg-monday')
  const number = { major: info!.major, minor: info!.minor }
  await Promise.all([look.info('my--vg-monday'), look.table(number), look.table({ ...number })])
  t.is(calls, 2)
})
