/**
 * Tables that were loaded into a device and not put in place. The next resume puts them there, whoever does it
 * (do_resume in the kernel's drivers/md/dm-ioctl.c). So a `dmsetup reload`, followed by our own suspension, would give
 * a volume a table under which nothing tracks it. A loaded era table is also stale: it loses what the live table
 * commits after the load.
 *
 * So before a device is suspended, and once more before it is resumed, foreign loaded tables are found and dropped.
 * Look and resume follow each other without a pause. A table that is loaded between them was loaded into a suspended
 * device. An era table loses nothing then, and the next look at the volume finds any other.
 */
import type { DeviceInfo, DeviceMapper, DeviceReference } from '../../native/device-mapper.ts'
import { type PlainClock, plainClock } from '../clock.ts'
import { DeltamapperError } from '../errors.ts'

/** How long to wait for another process that is giving a device a new table, and how often to look; milliseconds. */
const WAIT_MS = 2000
const LOOK_MS = 50
/** The same for dropping a table, which takes no time at all. */
const DROP_LOOK_MS = 5

/**
 * Waits until no table is loaded into a device, or into any device below it: suspending and resuming it may resume
 * those as well.
 *
 * @throws DM_DEVICE_BUSY when there still is one after two seconds
 */
export async function refuseInactiveTables(
  deviceMapper: Pick<DeviceMapper, 'info' | 'deps'>,
  device: DeviceReference,
  what: string,
  clock: PlainClock = plainClock
): Promise<void> {
  for (const until = clock.monotonic() + WAIT_MS; ; await clock.sleep(LOOK_MS)) {
    const found = await inactiveTableIn(deviceMapper, device)
    if (!found) return
    if (clock.monotonic() > until) throw inactiveTableError(found, what)
  }
}

/** @param what is not done because of it, as the beginning of a sentence */
export function inactiveTableError({ name }: Pick<DeviceInfo, 'name'>, what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_DEVICE_BUSY',
    `${what}: somebody has loaded another table into ${name}, which would be put in place with the next resume`,
    `\`dmsetup table --inactive ${name}\` shows it; \`dmsetup clear ${name}\` drops it, if nobody is at work on that device`
  )
}

/**
 * Drops a device's loaded table, if there is one. It is gone when this resolves.
 *
 * @returns `over`: resolves when queries of the live table are done, too, which the kernel waits for; undefined if
 *   there was nothing to drop
 */
export async function dropInactiveTable(
  deviceMapper: Pick<DeviceMapper, 'info' | 'clear'>,
  device: DeviceReference,
  clock: PlainClock = plainClock
): Promise<{ over: Promise<unknown> } | undefined> {
  const loaded = async () => (await deviceMapper.info(device))?.hasInactiveTable === true
  if (!(await loaded())) return undefined
  let cleared = false
  const over = deviceMapper.clear(device).then(() => (cleared = true))
  // (If it fails while nobody waits for it.)
  over.catch(() => undefined)
  // (A table that is there after clearing was loaded since.)
  while (!cleared && (await loaded())) await Promise.race([over, clock.sleep(DROP_LOOK_MS)])
  return { over }
}

/** The first device with a loaded table, from this one downwards; undefined when there is none. */
async function inactiveTableIn(
  deviceMapper: Pick<DeviceMapper, 'info' | 'deps'>,
  device: DeviceReference,
  seen = new Set<string>()
): Promise<DeviceInfo | undefined> {
  const info = await deviceMapper.info(device)
  if (info === undefined || seen.has(info.name)) return undefined
  seen.add(info.name)
  if (info.hasInactiveTable) return info
  if (!info.hasLiveTable) return undefined
  for (const below of await deviceMapper.deps({ major: info.major, minor: info.minor })) {
    const found = await inactiveTableIn(deviceMapper, below, seen)
    if (found) return found
  }
  return undefined
}
