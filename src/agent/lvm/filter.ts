/**
 * The filter that keeps our LVM commands away from the devices of tracked volumes.
 *
 * Before anything else, LVM looks at every block device, and asks device-mapper devices for their status. A suspended
 * era device answers at its resume. If its table is exchanged meanwhile (a grow), LVM and the resume deadlock. So every
 * LVM command of ours filters these devices out, under all their names (LVM takes a device if *any* of its names is
 * accepted), ahead of LVM's own filter.
 *
 * The devices are read from sysfs. That is cheap, and covers the volumes of every agent on this machine.
 */
import { readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { decodeDeviceNumber, nodeName } from '../../../native/device.ts'
import { TRACKED_UUIDS } from '../node/era-devices.ts'
import { startCommand } from './command.ts'

/** How long LVM may take to report its configuration, in milliseconds, and the most bytes of it. */
const CONFIGURATION_DEADLINE_MS = 20_000
const MAX_CONFIGURATION_BYTES = 65_536
/** Folders in /dev that hold no block devices, and perhaps many files. */
const NO_BLOCK_DEVICES = new Set(['char', 'fd', 'hugepages', 'mqueue', 'pts', 'shm'])

export interface FilterOptions {
  /**
   * Also leave out what stands on them, such as an encrypted volume: it cannot be read while the volume is suspended.
   * Not for reports: a volume group may be on it, and its volumes may be asked for.
   */
  readonly holders?: boolean
}

/** Where the kernel and udev describe devices. */
export interface FilterPlaces {
  readonly sysfs: string
  readonly udev: string
  readonly dev: string
}

interface Block {
  /** As the kernel calls it. */
  readonly name: string
  /** `MAJOR:MINOR` */
  readonly number: string
  /** Its device-mapper name, if it has one. */
  readonly dmName: string | undefined
}

/**
 * A setting for an LVM command, in the form of lvm.conf.
 *
 * @param command the words that start LVM
 * @returns undefined if no volume is tracked
 * @throws DM_LVM_FAILED when LVM does not report its own filter
 */
export async function filterSetting(
  command: readonly string[],
  { holders = false }: FilterOptions = {},
  places: FilterPlaces = { sysfs: '/sys', udev: '/run/udev/data', dev: '/dev' }
): Promise<string | undefined> {
  const tracked = await trackedDevices(places)
  const rejected = holders ? await withHolders(tracked, places) : tracked
  if (rejected.length === 0) return undefined
  const paths = await allNames(rejected, places)
  const patterns = [...paths.map((path) => `"r|^${escaped(path)}$|"`), ...(await configuredFilter(command))]
  return `devices { global_filter=[ ${patterns.join(', ')} ] }`
}

/** The `global_filter` of lvm.conf, word by word: our setting replaces it. */
async function configuredFilter(command: readonly string[]): Promise<string[]> {
  const limits = { deadlineMs: CONFIGURATION_DEADLINE_MS, maxOutputBytes: MAX_CONFIGURATION_BYTES }
  const { result } = startCommand([...command, 'lvmconfig', 'devices/global_filter'], limits)
  // It fails if none is set.
  const { exitCode, stdout } = await result
  if (exitCode !== 0) return []
  // (A talkative LVM prints more than that to stdout.)
  const [, configured = ''] = /^\s*global_filter=(.*)$/m.exec(stdout) ?? []
  return configured.match(/"(?:[^"\\]|\\.)*"/g) ?? []
}

/** The devices of tracked volumes, guards included. */
async function trackedDevices(places: FilterPlaces): Promise<Block[]> {
  const names = await readdir(classFolder(places)).catch(() => [])
  const found = await Promise.all(
    names
      .filter((name) => /^dm-\d+$/.test(name))
      .map(async (name) => {
        const uuid = await attribute(places, name, 'dm/uuid')
        return uuid.startsWith(TRACKED_UUIDS) ? block(places, name) : undefined
      })
  )
  return found.filter((each) => each !== undefined)
}

/** These devices, and all that stand on them, however many are in between. */
async function withHolders(devices: readonly Block[], places: FilterPlaces): Promise<Block[]> {
  const found = new Map<string, Block>()
  const add = async (each: Block | undefined): Promise<void> => {
    if (!each || found.has(each.name)) return
    found.set(each.name, each)
    const folder = join(classFolder(places), each.name)
    const holders = await readdir(join(folder, 'holders')).catch(() => [])
    const partitions = (await readdir(folder).catch(() => [])).filter((name) => name.startsWith(each.name))
    for (const name of [...holders, ...partitions]) await add(await block(places, name))
  }
  for (const each of devices) await add(each)
  return [...found.values()]
}

async function block(places: FilterPlaces, name: string): Promise<Block | undefined> {
  const number = await attribute(places, name, 'dev')
  // It disappeared in the same moment.
  if (number === '') return undefined
  const dmName = await attribute(places, name, 'dm/name')
  return { name, number, dmName: dmName === '' ? undefined : dmName }
}

/** All names that the devices have, or may have, for LVM. */
async function allNames(devices: readonly Block[], places: FilterPlaces): Promise<string[]> {
  const names = new Set<string>()
  for (const { name, number, dmName } of devices) {
    names.add(`/dev/${name.replaceAll('!', '/')}`)
    if (dmName !== undefined) names.add(`/dev/mapper/${nodeName(dmName)}`)
    names.add(`/dev/block/${number}`)
    // (LVM asks udev for names if it is configured to, and its /dev may be another than ours.)
    const known = await readFile(join(places.udev, `b${number}`), 'utf8').catch(() => '')
    for (const [, link] of known.matchAll(/^S:(.+)$/gm)) names.add(`/dev/${link}`)
  }
  const numbers = new Set(devices.map(({ number }) => number))
  for await (const path of nodesOf(numbers, places.dev)) names.add(path)
  return [...names]
}

/** The block devices with one of these numbers, and symbolic links to them. */
async function* nodesOf(numbers: ReadonlySet<string>, folder: string): AsyncGenerator<string> {
  for (const entry of await readdir(folder, { withFileTypes: true }).catch(() => [])) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) {
      if (!NO_BLOCK_DEVICES.has(entry.name)) yield* nodesOf(numbers, path)
    } else if (entry.isBlockDevice() || entry.isSymbolicLink()) {
      const facts = await stat(path).catch(() => undefined)
      if (!facts?.isBlockDevice()) continue
      const { major, minor } = decodeDeviceNumber(facts.rdev)
      if (numbers.has(`${major}:${minor}`)) yield path
    }
  }
}

function classFolder({ sysfs }: FilterPlaces): string {
  return join(sysfs, 'class/block')
}

async function attribute(places: FilterPlaces, name: string, file: string): Promise<string> {
  return (await readFile(join(classFolder(places), name, file), 'utf8').catch(() => '')).trim()
}

/** A path as a pattern of LVM's (libdm/regex), between bars, inside a quoted string. */
function escaped(path: string): string {
  return path.replaceAll(/[.*+?^$()[\]{}|\\"]/g, (character) =>
    character === '|' || character === '"' ? '.' : `\\\\${character}`
  )
}
