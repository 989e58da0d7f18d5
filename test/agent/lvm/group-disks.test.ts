import { mkdirSync, mkdtempSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { GroupDisks } from '../../../src/agent/lvm/group-disks.ts'
import { decodeDeviceNumber } from '../../../native/device.ts'

/** A block device of this machine, and its number as tables have it. */
const [node, number] = readdirSync('/dev').flatMap((name) => {
  const facts = statSync(`/dev/${name}`, { throwIfNoEntry: false })
  if (!facts?.isBlockDevice()) return []
  const { major, minor } = decodeDeviceNumber(facts.rdev)
  return [`/dev/${name}`, `${major}:${minor}`]
})
const withDisk = number === undefined ? test.skip : test

/** A device that stands on others, as sysfs has it. */
function stacked(device: string, uuid: string, ...below: string[]): string {
  const sysfs = mkdtempSync(join(tmpdir(), 'sysfs-'))
  const folder = join(sysfs, 'dev/block', device)
  mkdirSync(join(folder, 'dm'), { recursive: true })
  writeFileSync(join(folder, 'dm/uuid'), `${uuid}\n`)
  for (const [i, each] of below.entries()) {
    mkdirSync(join(folder, `slaves/sd${i}`), { recursive: true })
    writeFileSync(join(folder, `slaves/sd${i}/dev`), `${each}\n`)
  }
  return sysfs
}

const disks = (sysfs: string) => new GroupDisks({ disks: new Map([['disk', node ?? '']]), lastSeen: new Map() }, sysfs)

withDisk('LVM names the whole of a disk, and a table from before multipath has one of its paths', async (t) => {
  const known = disks(stacked(number ?? '', 'mpath-3600', '8:16', '8:32'))
  for (const device of [number ?? '', '8:16', '8:32']) t.true(await known.isAt('disk', device), device)
  t.true(await known.has('8:32'))
  t.false(await known.isAt('disk', '8:48'))
  t.false(await known.isAt('another', '8:16'))
})

withDisk('the other way round', async (t) => {
  const known = disks(stacked('253:9', 'mpath-3600', '8:16', number ?? ''))
  t.true(await known.isAt('disk', '253:9'))
  t.false(await known.isAt('disk', '8:16'))
})

withDisk('what stands on a disk in another way is not that disk', async (t) => {
  t.false(await disks(stacked('253:9', 'CRYPT-1', number ?? '')).isAt('disk', '253:9'))
  t.false(await disks(stacked(number ?? '', 'CRYPT-1', '8:16')).isAt('disk', '8:16'))
})
