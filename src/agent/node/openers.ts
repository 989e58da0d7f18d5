/**
 * Who has a device-mapper device open and might write to it, beside the devices that stand on it. What stands on one is
 * listed in sysfs; what else has it open is only counted:
 *
 *     open count (DM_DEV_STATUS) = holders (sysfs) + processes, mounts, loop devices, targets of other subsystems
 *
 * So what the count has beyond the holders has to be explained by somebody who only reads: this process, another one
 * whose descriptor is for reading, a file system that is read-only. A loop device counts as a writer: it can be set
 * read-only (`blockdev --setro`) after something that stands on it was opened, which goes on writing. udev and LVM open
 * devices for a moment, so that several looks are taken before somebody counts as a writer.
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
  /** To the kernel, which then refuses what a loop device writes (blkdev_write_iter in block/fops.c). */
  readonly isReadOnly?: boolean
  readonly places?: OpenerPlaces
  /** Between looks, in milliseconds; 100 by default. */
  readonly pauseMs?: number
}

/** Who might write. */
export interface Writers {
  /** In words. */
  readonly who: string
  /** False where it cannot be seen from here who it is, and so not whether they only read. */
  readonly areKnown: boolean
}

/**
 * Those of some devices that may be open to others than this process and what stands on them. It costs little, for it
 * is done often: nobody else's processes are looked at.
 *
 * @throws DM_READ_FAILED; what device-mapper calls throw
 */
export async function openToOthers(
  deviceMapper: Port,
  devices: readonly DeviceNumber[],
  places: OpenerPlaces = HERE
): Promise<DeviceNumber[]> {
  const listed = () => ({
    own: openHere(devices, places),
    holders: devices.map((device) => new Set(holdersOf(device, places)))
  })
  const before = listed()
  const counts = await Promise.all(devices.map(async (device) => (await deviceMapper.info(device))?.openCount ?? 0))
  const after = listed()
  return devices.filter((_, i) => {
    const known = (of: 'own' | 'holders') => before[of][i].intersection(after[of][i]).size
    return counts[i] > known('own') + known('holders')
  })
}

/** @returns undefined where nobody might write @throws what device-mapper calls throw */
export async function writersOf(
  deviceMapper: Port,
  device: DeviceNumber,
  { isReadOnly = false, places = HERE, pauseMs = LOOK_MS }: OpenerOptions = {}
): Promise<Writers | undefined> {
  // Whoever comes or goes while it is counted explains nothing: only those do that are there before and after.
  for (let look = 1; ; look++) {
    if ((await openToOthers(deviceMapper, [device], places)).length === 0) return undefined
    const { beyond, info, others } = await counted(deviceMapper, device, places)
    if (beyond <= 0) return undefined
    const [mounted, loops] = await Promise.all([mountOf(device, places), loopsOn(device, places)])
    const kernels = [...loops.map((path) => ({ path, readOnly: isReadOnly })), ...(mounted ? [mounted] : [])]
    const writers = [...others.writers, ...kernels.filter(({ readOnly }) => !readOnly).map(({ path }) => path)]
    const readers = new Set(others.readers.values()).size + kernels.filter(({ readOnly }) => readOnly).length
    if (writers.length === 0 && beyond <= readers) return undefined
    if (look === MOST_LOOKS) {
      if (writers.length > 0) return { who: writers.join(', '), areKnown: true }
      return { who: `something that cannot be seen from here (${openTimes(info)})`, areKnown: false }
    }
    await sleep(pauseMs)
  }
}

interface Counted {
  readonly info: DeviceInfo | undefined
  /** How often it is open beyond what stands on it, and this process. */
  readonly beyond: number
  readonly others: Processes
}

/** How often it is open, and who was there all the while. */
async function counted(deviceMapper: Port, device: DeviceNumber, places: OpenerPlaces): Promise<Counted> {
  const [ownBefore] = openHere([device], places)
  const before = {
    others: await processesWith(device, places),
    holders: new Set(holdersOf(device, places)),
    own: ownBefore
  }
  const info = await deviceMapper.info(device)
  const [ownAfter] = openHere([device], places)
  const own = ownAfter.intersection(before.own)
  const holders = new Set(holdersOf(device, places)).intersection(before.holders)
  const { readers, writers } = await processesWith(device, places)
  const others = {
    readers: new Map([...readers].filter(([descriptor]) => before.others.readers.has(descriptor))),
    writers: writers.union(before.others.writers)
  }
  return { info, beyond: (info?.openCount ?? 0) - holders.size - own.size, others }
}

/** The devices that stand on one, as the kernel calls them; none on one that is gone. @throws DM_READ_FAILED */
export function holdersOf({ major, minor }: DeviceNumber, { sysfs }: Pick<OpenerPlaces, 'sysfs'> = HERE): string[] {
  const blockDevices = `${sysfs}/dev/block`
  const found = listOf(`${blockDevices}/${major}:${minor}/holders`)
  if (found) return found
  if (listOf(blockDevices)) return []
  const what = `what stands on block device ${major}:${minor} is not to be seen: ${blockDevices} is not there`
  throw new DeltamapperError('DM_READ_FAILED', what, 'mount sysfs')
}

/** (Of folders in the kernel's memory, which are read faster than a thread can be asked to.) */
function listOf(folder: string): string[] | undefined {
  try {
    return readdirSync(folder)
  } catch {
    return undefined
  }
}

function openTimes(info: DeviceInfo | undefined): string {
  return info ? `${info.name} is open ${info.openCount} times` : 'it is gone'
}

/** The descriptors by which this process has each of some devices open, for reading. */
function openHere(devices: readonly DeviceNumber[], { proc }: OpenerPlaces): Set<string>[] {
  const found = devices.map(() => new Set<string>())
  for (const descriptor of readdirSync(`${proc}/self/fd`)) {
    try {
      const facts = fstatSync(Number(descriptor))
      for (const [i, device] of devices.entries()) if (isDevice(facts, device)) found[i].add(descriptor)
    } catch {
      // Closed meanwhile.
    }
  }
  return found
}

interface Processes {
  /** Openings for reading, by the descriptors that lead to them. */
  readonly readers: ReadonlyMap<string, string>
  /** In words. */
  readonly writers: ReadonlySet<string>
}

/** Other processes that have it open, as far as they can be seen from here (`hostPID`). */
async function processesWith(device: DeviceNumber, { proc }: OpenerPlaces): Promise<Processes> {
  // A descriptor that a process has from another one is the same opening: it has the same number and position there.
  const readers = new Map<string, string>()
  const writers = new Set<string>()
  for (const pid of await readdir(proc)) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue
    const folder = join(proc, pid)
    for (const descriptor of await readdir(`${folder}/fd`).catch(() => [])) {
      if (!(await isOpenOn(`${folder}/fd/${descriptor}`, device))) continue
      const about = await readFile(`${folder}/fdinfo/${descriptor}`, 'utf8').catch(() => '')
      const flags = /^flags:\s*([0-7]+)$/m.exec(about)?.[1]
      if (flags === undefined) continue
      const mode = parseInt(flags, 8)
      // (It opens nothing, and so explains nothing.)
      if ((mode & PATH_ONLY) !== 0) continue
      const { name, session } = await processNamed(folder)
      if ((mode & ACCESS_MODE) === READ_ONLY)
        readers.set(`${pid} ${descriptor}`, [session, descriptor, about].join(' '))
      else writers.add(`process ${pid} (${name})`)
    }
  }
  return { readers, writers }
}

/** O_ACCMODE, O_RDONLY and O_PATH of open(2). */
const [ACCESS_MODE, READ_ONLY, PATH_ONLY] = [3, 0, 0o10000000]

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
async function loopsOn(device: DeviceNumber, { sysfs }: OpenerPlaces): Promise<string[]> {
  const names = (await readdir(`${sysfs}/block`)).filter((name) => name.startsWith('loop'))
  const found = await Promise.all(
    names.map(async (name) => {
      const folder = `${sysfs}/block/${name}`
      const file = await readFile(`${folder}/loop/backing_file`, 'utf8').catch(() => '')
      const facts = file === '' ? undefined : await stat(file.trim()).catch(() => undefined)
      return facts !== undefined && isDevice(facts, device) ? [`/dev/${name}`] : []
    })
  )
  return found.flat()
}
