/**
 * By which names LVM is kept from which devices, in a /sys and a /dev that were made up. Real ones are in test/kernel/era-snapshots.test.ts and
 * era-devices.test.ts.
 */
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import test from 'ava'
import { filterSetting } from '../../../src/agent/lvm/filter.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)

/** Files by their path below a new folder; in sysfs, folders of block devices may hold each other's. */
function places(name: string, files: Record<string, string>) {
  const root = join(folder, name)
  for (const each of ['sys/class/block', 'udev', 'dev']) mkdirSync(join(root, each), { recursive: true })
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }
  return { sysfs: join(root, 'sys'), udev: join(root, 'udev'), dev: join(root, 'dev') }
}

function program(name: string, script: string): string[] {
  const path = join(folder, name)
  writeFileSync(path, `#!/bin/bash\n${script}\n`)
  chmodSync(path, 0o755)
  return [path]
}

const noFilter = program('none', 'exit 5')
const block = (name: string, number: string, dmName?: string, uuid?: string) => ({
  [`sys/class/block/${name}/dev`]: `${number}\n`,
  ...(dmName === undefined ? {} : { [`sys/class/block/${name}/dm/name`]: `${dmName}\n` }),
  ...(uuid === undefined ? {} : { [`sys/class/block/${name}/dm/uuid`]: `${uuid}\n` })
})
const tracked = {
  ...block('dm-0', '254:0', 'srv-guard', 'DELTAMAPPER-eraguard-1'),
  ...block('dm-1', '254:1', 'srv', 'DELTAMAPPER-era-1'),
  ...block('dm-2', '254:2', 'vg0-data', 'LVM-x'),
  ...block('dm-3', '254:3', 'pool', 'DELTAMAPPER-pool-1'),
  ...block('sda', '8:0')
}

test('where nothing is tracked, LVM is told nothing and asked nothing', async (t) => {
  const never = program('never', 'echo asked >&2; kill -KILL $PPID')
  t.is(await filterSetting(never, {}, places('empty', { ...block('dm-2', '254:2', 'vg0-data', 'LVM-x') })), undefined)
  t.is(await filterSetting(never, {}, { sysfs: '/none', udev: '/none', dev: '/none' }), undefined)
})

test('both devices of a tracked volume are rejected by every name', async (t) => {
  const setting = await filterSetting(
    noFilter,
    {},
    places('names', {
      ...tracked,
      'udev/b254:1': 'I:123\nS:disk/by-id/dm-name-srv\nS:disk/by-label/a.b\nE:ID_FS_TYPE=ext4\n'
    })
  )
  const names = ['dm-0', 'mapper/srv-guard', 'block/254:0', 'dm-1', 'mapper/srv', 'block/254:1']
  const linked = ['disk/by-id/dm-name-srv', String.raw`disk/by-label/a\\.b`]
  t.is(
    setting,
    `devices { global_filter=[ ${[...names, ...linked].map((each) => `"r|^/dev/${each}$|"`).join(', ')} ] }`
  )
})

test('what LVM has been told comes behind', async (t) => {
  const own = program(
    'own',
    `[ "$1 $2" = "lvmconfig devices/global_filter" ] && echo 'global_filter=["r|^/dev/drbd|","a|.*|"]'`
  )
  const filter = await filterSetting(own, {}, places('own-filter', tracked))
  t.regex(filter ?? '', /"r\|\^\/dev\/block\/254:1\$\|", "r\|\^\/dev\/drbd\|", "a\|\.\*\|" \] \}$/)
})

test('what stands on a volume, directly or not, is rejected where that is asked for', async (t) => {
  const made = places('holders', {
    ...tracked,
    ...block('dm-4', '254:4', 'luks', 'CRYPT-1'),
    ...block('md0', '9:0'),
    ...block('md0p1', '259:1'),
    'sys/class/block/dm-1/holders/dm-4': '',
    'sys/class/block/dm-0/holders/dm-1': '',
    'sys/class/block/dm-4/holders/md0': '',
    'sys/class/block/md0/md0p1/partition': '1'
  })
  const reports = await filterSetting(noFilter, {}, made)
  const snapshots = await filterSetting(noFilter, { holders: true }, made)
  for (const name of ['mapper/luks', 'dm-4', 'md0', 'md0p1', 'block/259:1']) {
    const pattern = `"r|^/dev/${name}$|"`
    t.false(reports?.includes(pattern), name)
    t.true(snapshots?.includes(pattern), name)
  }
  t.false(snapshots?.includes('vg0-data'))
})

test('links in /dev that lead nowhere do no harm', async (t) => {
  const made = places('links', tracked)
  symlinkSync('nowhere', join(made.dev, 'link'))
  t.truthy(await filterSetting(noFilter, {}, made))
})
