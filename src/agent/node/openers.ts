/**
 * Who has a device-mapper device open and might write to it, beside the devices that stand on it. What stands on one is
 * listed in sysfs; what else has it open is only counted:
 *
 *     open count (DM_DEV_STATUS) = holders (sysfs) + processes, mounts, loop devices, targets of other subsystems
 *
 * So what the count has beyond the holders has to be explained by somebody who only reads: this process, another one
 * whose descriptor is for reading, a file system or a loop device that is read-only. udev and LVM open devices for a
 * moment, so that several looks are taken before somebody counts as a writer.
 */
import { fstatSync, readdirSync } from 'node:fs'
import { readdir, readFile, readlink, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { DeviceInfo, DeviceMapper, DeviceNumber } from '../../../native/device-mapper.ts'
import { decodeDeviceNumber } from '../../../native/device.ts'
import { DeltamapperError } from '../../errors.ts'

/** How often to look, and how long to wait in between, in milliseconds. */
const [MOST_LOOKS, LOOK_MS] = [8, 100]

/** Where the kernel describes processes and devices. */
export interface OpenerPlaces {
  readonly proc: string
  readonly sysfs: string
}

const HERE: OpenerPlaces = { proc: '/proc', sysfs: '/sys' }

type Port = Pick<DeviceMapper, 'info'>

export interface OpenerOptions {
  /** What the first look is taken at; further ones are at device-mapper as it is then. */
  readonly seen?: Port
  /** To the kernel, which then refuses what a loop device writes (blkdev_write_iter in block/fops.c). */
  readonly isReadOnly?: boolean
  readonly places?: OpenerPlaces
  /** Between looks, in milliseconds; 100 by default. */
  readonly pauseMs?: number
}

/** @returns who might write, in words; undefined where nobody might @throws what device-mapper calls throw */
export async function writersOf(
  deviceMapper: Port,
  device: DeviceNumber,
  { seen = deviceMapper, isReadOnly = false, places = HERE, pauseMs = LOOK_MS }: OpenerOptions = {}
): Promise<string | undefined> {
  for (let look = 1; ; look++) {
    const info = await (look === 1 ? seen : deviceMapper).info(device)
    const beyond = (info?.openCount ?? 0) - (await holdersOf(device, places)).length
    if (beyond <= 0) return undefined
    const own = openHere(device, places)
    if (beyond <= own) return undefined
    const others = await processesWith(device, places)
    const [mounted, loops] = await Promise.all([mountOf(device, places), loopsOn(device, places)])
    const kernels = [
      ...loops.map((loop) => ({ ...loop, readOnly: isReadOnly || loop.readOnly })),
      ...(mounted ? [mounted] : [])
    ]
    const writers = [...others.writers, ...kernels.filter(({ readOnly }) => !readOnly).map(({ path }) => path)]
    const readers = own + others.readers + kernels.filter(({ readOnly }) => readOnly).length
    if (writers.length === 0 && beyond <= readers) return undefined
    if (look === MOST_LOOKS) return writers.join(', ') || `something that cannot be seen from here (${openTimes(info)})`
    await sleep(pauseMs)
  }
}

/** The devices that stand on one, as the kernel calls them; none on one that is gone. @throws DM_READ_FAILED */
export async function holdersOf(
  { major, minor }: DeviceNumber,
  { sysfs }: Pick<OpenerPlaces, 'sysfs'> = HERE
): Promise<string[]> {
  const blockDevices = `${sysfs}/dev/block`
  const found = await readdir(`${blockDevices}/${major}:${minor}/holders`).catch(() => undefined)
  if (found) return found
  await readdir(blockDevices).catch((cause: unknown) => {
    const what = `what stands on block device ${major}:${minor} is not to be seen: ${blockDevices} is not there`
    throw new DeltamapperError('DM_READ_FAILED', what, 'mount sysfs', { cause })
  })
  return []
}

function openTimes(info: DeviceInfo | undefined): string {
  return info ? `${info.name} is open ${info.openCount} times` : 'it is gone'
}

/** How often this process has it open, for reading. */
function openHere(device: DeviceNumber, { proc }: OpenerPlaces): number {
  return readdirSync(`${proc}/self/fd`).filter((descriptor) => {
    try {
      return isDevice(fstatSync(Number(descriptor)), device)
    } catch {
      // Closed meanwhile.
      return false
    }
  }).length
}

interface Processes {
  /** Openings for reading. */
  readonly readers: number
  /** In words. */
  readonly writers: readonly string[]
}

/** Other processes that have it open, as far as they can be seen from here (`hostPID`). */
async function processesWith(device: DeviceNumber, { proc }: OpenerPlaces): Promise<Processes> {
  // A descriptor that a process has from another one is the same opening: it has the same number and position there.
  const readers = new Set<string>()
  const writers = new Set<string>()
  for (const pid of await readdir(proc)) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue
    const folder = join(proc, pid)
    for (const descriptor of await readdir(`${folder}/fd`).catch(() => [])) {
      if (!(await isOpenOn(`${folder}/fd/${descriptor}`, device))) continue
      const about = await readFile(`${folder}/fdinfo/${descriptor}`, 'utf8').catch(() => '')
      const flags = /^flags:\s*([0-7]+)$/m.exec(about)?.[1]
      if (flags === undefined) continue
      const { name, session } = await processNamed(folder)
      if ((parseInt(flags, 8) & ACCESS_MODE) === READ_ONLY) readers.add([session, descriptor, about].join(' '))
      else writers.add(`process ${pid} (${name})`)
    }
  }
  return { readers: readers.size, writers: [...writers] }
}

/** O_ACCMODE and O_RDONLY of open(2). */
const [ACCESS_MODE, READ_ONLY] = [3, 0]

/** (What is no device node is left alone: looking at a file may take for ever, as on a network's file system.) */
async function isOpenOn(descriptor: string, device: DeviceNumber): Promise<boolean> {
  const path = await readlink(descriptor).catch(() => '')
  if (!path.includes('/dev')) return false
  const facts = await stat(descriptor).catch(() => undefined)
  return facts !== undefined && isDevice(facts, device)
}

function isDevice(facts: { isBlockDevice(): boolean; rdev: number }, { major, minor }: DeviceNumber): boolean {
  if (!facts.isBlockDevice()) return false
  const found = decodeDeviceNumber(facts.rdev)
  return found.major === major && found.minor === minor
}

/** Of /proc/PID/stat: proc_pid_stat(5). */
async function processNamed(folder: string): Promise<{ name: string; session: string }> {
  const text = await readFile(`${folder}/stat`, 'utf8').catch(() => '')
  const [, name = '?', rest = ''] = /^\d+ \((.*)\) (.*)$/s.exec(text) ?? []
  const [, , , session = '?'] = rest.split(' ')
  return { name, session }
}

/** Where it is mounted, as this machine's first process sees it, or else this one; undefined where it is not. */
async function mountOf(
  { major, minor }: DeviceNumber,
  { proc }: OpenerPlaces
): Promise<{ path: string; readOnly: boolean } | undefined> {
  const text = await readFile(`${proc}/1/mountinfo`, 'utf8').catch(() => readFile(`${proc}/self/mountinfo`, 'utf8'))
  const found = text.split('\n').flatMap((line) => {
    const [left = '', right = ''] = line.split(' - ')
    const [, , number, , path = ''] = left.split(' ')
    // Of the file system, not of the mount: proc_pid_mountinfo(5).
    const options = right.split(' ').at(-1)?.split(',')
    return number === `${major}:${minor}` ? [{ path, readOnly: options?.includes('ro') ?? false }] : []
  })
  return found.find(({ readOnly }) => !readOnly) ?? found.at(0)
}

/** Loop devices on it. (Kubernetes has one on each block volume that is in a pod, to keep it open.) */
async function loopsOn(device: DeviceNumber, { sysfs }: OpenerPlaces): Promise<{ path: string; readOnly: boolean }[]> {
  const names = (await readdir(`${sysfs}/block`)).filter((name) => name.startsWith('loop'))
  const found = await Promise.all(
    names.map(async (name) => {
      const folder = `${sysfs}/block/${name}`
      const file = await readFile(`${folder}/loop/backing_file`, 'utf8').catch(() => '')
      const facts = file === '' ? undefined : await stat(file.trim()).catch(() => undefined)
      if (facts === undefined || !isDevice(facts, device)) return []
      const readOnly = await readFile(`${folder}/ro`, 'utf8').catch(() => '')
      return [{ path: `/dev/${name}`, readOnly: readOnly.trim() === '1' }]
    })
  )
  return found.flat()
}
