/**
 * Whether a tracked volume is mounted where it was. One that lost its mount looks as quiet as one that nobody writes to: what is written into
 * the empty folder below goes to another device, and the next snapshot says that nothing has changed, which is true and of no use.
 */
import { readFile } from 'node:fs/promises'
import type { DeviceInfo } from '../../../../native/device-mapper.ts'
import type { EraSnapshot } from '../../catalog/era-snapshots.ts'
import type { Lower } from './lower-snapshot.ts'
import { parseMounts } from '../device/own-place.ts'

/** Places that are remembered of one snapshot. A volume may be mounted anywhere any number of times. */
const MOST_PLACES = 10

/** What is recorded with a snapshot, in `lower`: what it is, and where the volume was mounted when it was taken. */
export type RecordedLower = Lower & { readonly mountedAt?: readonly string[] }

/**
 * Where a device is mounted, as this machine's first process sees it, or as this one does; in a container that may be nowhere.
 *
 * @param proc where procfs is mounted
 */
export async function mountPoints(
  { major, minor }: Pick<DeviceInfo, 'major' | 'minor'>,
  proc = '/proc'
): Promise<string[]> {
  const text = await readFile(`${proc}/1/mountinfo`, 'utf8').catch(() => readFile(`${proc}/self/mountinfo`, 'utf8'))
  const places = parseMounts(text)
    .filter(({ device }) => device.major === major && device.minor === minor)
    .map(({ mountPoint }) => mountPoint)
  return [...new Set(places)].sort().slice(0, MOST_PLACES)
}

/**
 * Says so when nobody uses a volume any more that was mounted when a snapshot of it was taken last.
 *
 * @param openCount of the era device: whoever has it open, a mount too, counts, wherever that is
 * @param snapshots the volume's, in any order
 */
export function unmountedSince(
  { name, openCount }: Pick<DeviceInfo, 'name' | 'openCount'>,
  snapshots: readonly Pick<EraSnapshot, 'name' | 'lower' | 'takenAt'>[]
): string | undefined {
  if (openCount > 0) return undefined
  const newestFirst = [...snapshots].sort((one, other) => other.takenAt - one.takenAt)
  for (const snapshot of newestFirst) {
    const { mountedAt = [] } = JSON.parse(snapshot.lower || '{}') as RecordedLower
    if (mountedAt.length === 0) continue
    return (
      `nobody has /dev/mapper/${name} open: it was mounted at ${mountedAt.join(', ')} when snapshot ${snapshot.name} was taken, and is not now. ` +
      'What is written there goes elsewhere'
    )
  }
  return undefined
}
