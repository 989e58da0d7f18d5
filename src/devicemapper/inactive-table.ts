/**
 * Tables that somebody has loaded into a device and not put in place. Whoever resumes the device next puts them there, whether or not it is
 * theirs (do_resume in the kernel's drivers/md/dm-ioctl.c): `dmsetup reload` and our own suspension of a moment later make a volume that
 * nobody tracks. An era table is stale besides: what the live one commits after the load is lost when it takes over.
 *
 * So before a device is suspended, and once more before it is resumed, what is not meant to be put in place is found and dropped. What is
 * loaded between that look and the resume, which follow each other without a pause, was loaded into a suspended device: as an era table it
 * loses nothing, and as any other it is found at the next look at the volume.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { DeviceInfo, DeviceMapper, DeviceReference } from '../../native/device-mapper.ts'
import { DeltamapperError } from '../errors.ts'

/** How long a device is waited for that somebody is just giving another table, and how often it is looked at; milliseconds. */
const WAIT_MS = 2000
const LOOK_MS = 50
/** The same for a table that is being dropped, which takes no time at all. */
const DROP_LOOK_MS = 5

/**
 * Waits until no table is loaded into a device, or into any that it stands on: what suspends and resumes it may do so with those.
 *
 * @throws DM_DEVICE_BUSY when there still is one after two seconds
 */
export async function refuseInactiveTables(
  deviceMapper: Pick<DeviceMapper, 'info' | 'deps'>,
  device: DeviceReference,
  what: string
): Promise<void> {
  for (const until = performance.now() + WAIT_MS; ; await sleep(LOOK_MS)) {
    const found = await inactiveTableIn(deviceMapper, device)
    if (!found) return
    if (performance.now() > until) throw inactiveTableError(found, what)
  }
}

/** @param what is not done because of it, as the begin of a sentence */
export function inactiveTableError({ name }: Pick<DeviceInfo, 'name'>, what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_DEVICE_BUSY',
    `${what}: somebody has loaded another table into ${name}, which would be put in place with the next resume`,
    `\`dmsetup table --inactive ${name}\` shows it; \`dmsetup clear ${name}\` drops it, if nobody is at work on that device`
  )
}

/**
 * Drops the table that is loaded into a device, if there is one. It is gone when this resolves.
 *
 * @returns `over`: when those who ask the live table are done, too, which the kernel waits for; undefined where there was nothing to drop
 */
export async function dropInactiveTable(
  deviceMapper: Pick<DeviceMapper, 'info' | 'clear'>,
  device: DeviceReference
): Promise<{ over: Promise<unknown> } | undefined> {
  const loaded = async () => (await deviceMapper.info(device))?.hasInactiveTable === true
  if (!(await loaded())) return undefined
  let cleared = false
  const over = deviceMapper.clear(device).then(() => (cleared = true))
  // (Should it fail while nobody waits for it.)
  over.catch(() => undefined)
  // (What is there once it is cleared was loaded since.)
  while (!cleared && (await loaded())) await Promise.race([over, sleep(DROP_LOOK_MS)])
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
