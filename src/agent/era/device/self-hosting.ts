/**
 * The self-hosting check: whether suspending a volume would suspend what must resume it. The agent's catalog, logs and
 * program, LVM's files, and swap must not be on the volume, however many devices are in between.
 */
import { readdir, readFile, readlink, realpath, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { decodeDeviceNumber } from '../../../../native/device.ts'
import type { DeviceNumber } from '../../../devicemapper/target-words.ts'
import { DeltamapperError } from '../../../errors.ts'

/** @param catalogPath the catalog's file */
export interface NeededPath {
  readonly path: string
  /** What we use it for, in words. */
  readonly what: string
}

/** What must work while a volume is suspended. The look-up skips what does not exist. */
export async function neededPaths(catalogPath: string): Promise<NeededPath[]> {
  const logs = await Promise.all([1, 2].map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')))
  return [
    { path: dirname(catalogPath), what: 'the catalog' },
    { path: '/var/log', what: 'the logs' },
    ...logs
      .filter((path) => path.startsWith('/') && !path.startsWith('/dev/'))
      .map((path) => ({ path, what: 'the log' })),
    { path: process.execPath, what: 'the program that resumes it' },
    { path: import.meta.filename, what: 'the program that resumes it' },
    { path: '/etc', what: 'configuration that LVM reads' },
    { path: '/run', what: "LVM's locks" },
    ...swaps(await readFile('/proc/swaps', 'utf8').catch(() => ''))
  ]
}

/**
 * @param device the device to suspend
 * @throws DM_DEVICE_BUSY when it holds something that is needed meanwhile
 */
export async function refuseSelfHosting(
  device: DeviceNumber,
  name: string,
  places: readonly NeededPath[]
): Promise<void> {
  const mounts = parseMounts(await readFile('/proc/self/mountinfo', 'utf8'))
  for (const { path, what } of places) {
    if (!(await isOn(path, device, mounts))) continue
    throw new DeltamapperError(
      'DM_DEVICE_BUSY',
      `${what} (${path}) is on ${name}: suspending it would suspend the process that must resume it`,
      'move that to another device; volumes that hold them are for a driver of their own'
    )
  }
}

interface Mount {
  readonly device: DeviceNumber
  readonly mountPoint: string
  readonly source: string
  /** The folders of an overlay, as given in its mount options. In a container these are paths of the host. */
  readonly layers: readonly string[]
}

/** The lines of /proc/PID/mountinfo: proc(5). */
export function parseMounts(text: string): Mount[] {
  return text.split('\n').flatMap((line) => {
    const [left = '', right = ''] = line.split(' - ')
    const [, , number = '', , mountPoint = ''] = left.split(' ')
    const [type, source = '', options = ''] = right.split(' ')
    const [major, minor] = number.split(':').map(Number)
    if (major === undefined || minor === undefined) return []
    const layers = type === 'overlay' ? overlayLayers(options) : []
    return [{ device: { major, minor }, mountPoint: unescaped(mountPoint), source: unescaped(source), layers }]
  })
}

/** The absolute paths among an overlay's options: filesystems/overlayfs.rst in the kernel's documentation. */
function overlayLayers(options: string): string[] {
  return options
    .split(',')
    .flatMap((option) => {
      const [name = '', folders = ''] = option.split(/=(.*)/s)
      if (name === 'upperdir') return [folders]
      // A colon inside a name is preceded by a backslash.
      return /^(lowerdir|datadir)\+?$/.test(name) ? folders.split(/(?<!\\):+/) : []
    })
    .map((folder) => unescaped(folder).replaceAll(/\\(.)/g, '$1'))
    .filter((folder) => folder.startsWith('/'))
}

/** The files of /proc/swaps. */
export function swaps(text: string): NeededPath[] {
  const lines = text.split('\n').slice(1)
  return lines.flatMap((line) => {
    const path = line.split(/\s/)[0] ?? ''
    return path.startsWith('/') ? [{ path: unescaped(path), what: 'swap' }] : []
  })
}

function unescaped(word: string): string {
  return word.replaceAll(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8)))
}

/**
 * Whether a file, or the block device that it is, needs a device. Paths that this process cannot see are not followed.
 *
 * @param through overlays on the way here. If one of them appears again, its folder is the host's, and this is a
 *   container
 */
async function isOn(
  path: string,
  wanted: DeviceNumber,
  mounts: readonly Mount[],
  through: readonly Mount[] = []
): Promise<boolean> {
  const real = await realpath(path).catch(() => undefined)
  if (real === undefined) return false
  const facts = await stat(real)
  if (facts.isBlockDevice()) return standsOn(decodeDeviceNumber(facts.rdev), wanted, mounts)
  const inside = mounts.filter(
    ({ mountPoint }) => real === mountPoint || real.startsWith(mountPoint === '/' ? '/' : `${mountPoint}/`)
  )
  const mount = inside.reduce<Mount | undefined>(
    (best, each) => (best === undefined || each.mountPoint.length >= best.mountPoint.length ? each : best),
    undefined
  )
  if (mount === undefined || through.includes(mount)) return false
  if (mount.device.major !== 0) return standsOn(mount.device, wanted, mounts)
  for (const layer of mount.layers) {
    if (await isOn(layer, wanted, mounts, [...through, mount])) return true
  }
  // btrfs and the like have device numbers of their own; the source in the mount line is the real device.
  const source = mount.source.startsWith('/') ? await stat(mount.source).catch(() => undefined) : undefined
  return source?.isBlockDevice() === true && standsOn(decodeDeviceNumber(source.rdev), wanted, mounts)
}

/** Whether a device is another device, or is built on it. */
async function standsOn(device: DeviceNumber, wanted: DeviceNumber, mounts: readonly Mount[]): Promise<boolean> {
  if (device.major === wanted.major && device.minor === wanted.minor) return true
  const folder = await realpath(`/sys/dev/block/${device.major}:${device.minor}`).catch(() => undefined)
  if (folder === undefined) return false
  const file = await readFile(`${folder}/loop/backing_file`, 'utf8').catch(() => undefined)
  if (file !== undefined) return isOn(file.replace(/\n$/, ''), wanted, mounts)
  const partition = await readFile(`${folder}/partition`, 'utf8').catch(() => undefined)
  const below = partition === undefined ? await readdir(`${folder}/slaves`).catch(() => []) : ['..']
  for (const each of below) {
    const path = partition === undefined ? `${folder}/slaves/${each}/dev` : `${folder}/../dev`
    const [major, minor] = (await readFile(path, 'utf8').catch(() => '')).trim().split(':').map(Number)
    if (major !== undefined && minor !== undefined && (await standsOn({ major, minor }, wanted, mounts))) return true
  }
  return false
}
