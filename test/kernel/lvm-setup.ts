/**
 * LVM inside the kernel lab: what kernel tests and recording scripts make volume groups with.
 */
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { run } from './dmsetup.ts'

/** LVM's configuration and locks, made by prepareLvm(). */
let folder = ''

/**
 * Gives this process and its children an LVM configuration of their own (there is no udev inside, and programs are not in their
 * usual places), and loads what LVM would ask modprobe for by a path that does not exist.
 *
 * @param options.mapped whether it looks at device-mapper's devices as well, as it does where nothing is configured
 */
export function prepareLvm({ mapped = false }: { mapped?: boolean } = {}): void {
  folder = mkdtempSync(join(tmpdir(), 'lvm-'))
  mkdirSync(join(folder, 'lock'))
  const program = (name: string) => `${name}_executable="${run('bash', ['-c', `type -P ${name}`]).trim()}"`
  const configuration = [
    // (Hints, of which disks belong to which group, would keep LVM from looking at every disk every time.)
    'devices { dir="/dev" scan=["/dev"] use_devicesfile=0 hints="none" types=["ubd",16]',
    `  filter=["a|^/dev/ubd|","a|^/dev/loop|",${mapped ? '"a|^/dev/mapper/|","a|^/dev/dm-|",' : ''}"r|.*|"] }`,
    'activation { udev_sync=0 udev_rules=0 monitoring=0 }',
    `global { locking_dir="${folder}/lock" use_lvmpolld=0 ${['thin_check', 'thin_dump', 'thin_repair'].map(program).join(' ')} }`,
    'backup { backup=0 archive=0 }'
  ]
  writeFileSync(join(folder, 'lvm.conf'), `${configuration.join('\n')}\n`)
  process.env.LVM_SYSTEM_DIR = folder
  run('/run/modprobe', ['dm-snapshot'])
}

/** Where LVM keeps the lock of a volume group. */
export function lockFile(volumeGroup: string): string {
  return join(folder, 'lock', `V_${volumeGroup}`)
}

/** Runs an LVM command; it is not asked what it asks. Returns its stdout; throws an Error that holds its stderr. */
export function lvm(...words: string[]): string {
  // (What run() starts has the environment that this process had at the first run().)
  return run('env', [`LVM_SYSTEM_DIR=${folder}`, 'lvm', ...words, '--yes', '--quiet'])
}

/** A volume group on a disk, with extents of 1 MiB. */
export function createGroup(name: string, ...disks: string[]): void {
  lvm('vgcreate', '--physicalextentsize', '1m', name, ...disks)
}

/** A thin pool with blocks of 64 KiB. */
export function createPool(group: string, pool: string, mebibytes: number): void {
  lvm('lvcreate', '--type', 'thin-pool', '--size', `${mebibytes}m`, '--chunksize', '64k', '--name', pool, group)
}

/** An active thin volume; `mebibytes` is its virtual size. */
export function createThin(group: string, pool: string, name: string, mebibytes: number): string {
  lvm('lvcreate', '--type', 'thin', '--virtualsize', `${mebibytes}m`, '--thinpool', pool, '--name', name, group)
  return `/dev/${group}/${name}`
}

/** A thin snapshot; like LVM's own, inactive and skipped by activation unless `active`. */
export function createSnapshot(group: string, origin: string, name: string, { active = false } = {}): void {
  lvm('lvcreate', '--snapshot', '--setactivationskip', active ? 'n' : 'y', '--name', name, `${group}/${origin}`)
}

/** A volume outside of any pool; `options` may end with the disks it is to be on. */
export function createThick(group: string, name: string, mebibytes: number, ...options: string[]): void {
  lvm('lvcreate', '--size', `${mebibytes}m`, '--name', name, group, ...options)
}

/** Makes a volume smaller. `size` as lvreduce takes it. From 2.03.17 on, LVM refuses unless it is told to leave file systems alone. */
export function shrink(volume: string, size: string): void {
  const [, major, patch] = /LVM version: +2\.(\d+)\.(\d+)/.exec(run('lvm', ['version'])) ?? []
  const looksAtFileSystems = Number(major) > 3 || (Number(major) === 3 && Number(patch) >= 17)
  lvm('lvreduce', '--force', ...(looksAtFileSystems ? ['--fs', 'ignore'] : []), '--size', size, volume)
}

/** Writes to a device past the page cache: byte by byte what `fill` says, over whole 64 KiB blocks. */
export function writeBlocks(device: string, firstBlock: number, count: number, fill: string): void {
  const bytes = `head -c ${count * 65536} /dev/zero | tr '\\0' ${fill}`
  run('bash', ['-c', `${bytes} | dd of=${device} bs=64k seek=${firstBlock} oflag=direct iflag=fullblock status=none`])
}
