/**
 * Whatever lvm.conf says of reports and messages, the answers are those of an lvm.conf that says nothing; of both LVMs, the lab's own and
 * Debian 13's, which writes its errors into the report. Runs inside the kernel lab: node test/lab/run.ts test/kernel/lvm-settings.test.ts
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { LowerSnapshots } from '../../src/agent/era/boundary/lower-snapshot.ts'
import { LvmReporter } from '../../src/agent/lvm/report.ts'
import { trixieLvm } from '../lab/trixie-lvm.ts'
import { labRun } from './lab-run.ts'
import { createGroup, createPool, createThick, createThin, lvm, prepareLvm } from './lvm-setup.ts'

prepareLvm()
const file = join(process.env.LVM_SYSTEM_DIR ?? '', 'lvm.conf')
const plain = readFileSync(file, 'utf8')
const group = 'my-vg'
createGroup(group, '/dev/ubda')
createPool(group, 'pool', 64)
createThin(group, 'pool', 'thin', 16)
createThick(group, 'thick', 8)
const deviceMapper = new DeviceMapper()
test.after.always(() => deviceMapper.close())

/** As people have them; all that LVM knows of reports, and what spoils messages. */
const all = [
  ...['report { prefixes=1 quoted=0 }', 'report { prefixes=1 }', 'report { quoted=0 }', 'log { command_names=1 }'],
  ...['log { prefix="> " }', 'log { silent=1 }', 'log { verbose=3 }', 'log { verbose=7 prefix="" command_names=1 }'],
  ...['log { debug_output_fields=["time","command"] verbose=4 }', 'report { mark_hidden_devices=0 }'],
  ...['report { compact_output=1 }', 'report { columns_as_rows=1 }', 'report { headings=0 }', 'report { headings=2 }'],
  ...['report { binary_values_as_numeric=1 }', 'report { list_item_separator=";" }', 'report { buffered=0 }'],
  ...['report { separator="|" aligned=0 }', 'report { output_format="json" }', 'log { report_command_log=1 }'],
  ...['log { report_command_log=1 command_log_selection="all" }', 'config { checks=0 }', 'log { indent=0 }']
]

/** A slice, another one with each seed: LAB_COUNT=23 takes all. */
const { random, count } = labRun(4)
const spoilt = random.shuffle(all).slice(0, count)

const versions: Readonly<Record<string, readonly string[] | undefined>> = {
  'the lab': ['lvm'],
  'Debian 13': trixieLvm()
}
for (const [version, command] of Object.entries(versions)) {
  const titled = `of ${version}'s LVM`
  if (command === undefined) {
    test.skip(`reports ${titled}: it could not be fetched`, () => undefined)
    continue
  }

  test.serial(`reports ${titled} are the same whatever lvm.conf says, and so is what is not there`, async (t) => {
    writeFileSync(file, plain)
    const reporter = new LvmReporter({ command })
    const volumes = await reporter.logicalVolumes(group)
    t.true(volumes?.some(({ name, hidden }) => name === 'pool_tdata' && hidden))
    for (const settings of spoilt) {
      writeFileSync(file, `${plain}\n${settings}\n`)
      t.deepEqual(await reporter.logicalVolumes(group).catch((error: unknown) => error), volumes, settings)
      t.is(await reporter.logicalVolumes('no-group'), undefined, settings)
      t.deepEqual(
        (await reporter.volumeGroups()).map(({ name }) => name),
        [group],
        settings
      )
    }
    writeFileSync(file, plain)
  })

  test.serial(`snapshots ${titled} are taken, of the kind that is right for the volume`, async (t) => {
    const snapshots = new LowerSnapshots(deviceMapper, command, {})
    const words = ['report { prefixes=1 quoted=0 output_format="json" }', plain.replace('global {', 'global { test=1')]
    for (const settings of words) {
      writeFileSync(file, settings.includes('test=1') ? settings : `${plain}\n${settings}\n`)
      for (const [volume, kind] of [
        ['thin', 'thin'],
        ['thick', 'linear']
      ] as const) {
        const device = await deviceMapper.info(`my--vg-${volume}`)
        if (!device) throw new Error(`${volume} is not active`)
        const lower = await snapshots.prepare(
          { name: 'srv', dataDevice: `/dev/${group}/${volume}`, snapshotBy: '{"size":"4m"}' } as never,
          device,
          'taken',
          'token'
        )
        await lower.take(60_000, new AbortController().signal)
        writeFileSync(file, plain)
        const [found] =
          (await new LvmReporter({ command }).logicalVolumes(group))?.filter(({ name }) => name === 'taken') ?? []
        t.deepEqual([found?.origin, found?.segmentTypes], [volume, [kind]], settings)
        await lower.remove()
        t.is(lvm('lvs', '--noheadings', '-o', 'lv_name', group).includes('taken'), false)
      }
    }
  })
}
