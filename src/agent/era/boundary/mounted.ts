/**
 * Whether a tracked volume is still mounted where it was. A volume that lost its mount looks like one that nobody
 * writes to: writes to the empty mount point go to another device. The next snapshot would say that nothing changed,
 * which is true and useless.
 */
import { readFile } from 'node:fs/promises'
import type { DeviceInfo } from '../../../../native/device-mapper.ts'
import type { EraSnapshot } from '../../catalog/era-snapshots.ts'
import type { LowerSnapshotRecord } from './lower-snapshot.ts'
import { parseMounts } from '../device/self-hosting.ts'

/** The most mount points that are remembered of one snapshot. A volume may have any number. */
const MOST_PLACES = 10

/** `lower` of a snapshot's record: the lower snapshot, and where the volume was mounted when it was taken. */
export type RecordedLowerSnapshot = LowerSnapshotRecord & { readonly mountedAt?: readonly string[] }

/**
 * The mount points of a device, as this machine's first process sees them, or else this process; in a container there
 * may be none.
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
 * A warning if nothing uses a volume any more that was mounted at its last snapshot.
 *
 * @param openCount of the era device: every opener counts, including a mount anywhere
 * @param snapshots the volume's, in any order
 */
export function unmountedSince(
  { name, openCount }: Pick<DeviceInfo, 'name' | 'openCount'>,
  snapshots: readonly Pick<EraSnapshot, 'name' | 'lower' | 'takenAt'>[]
): string | undefined {
  if (openCount > 0) return undefined
  const newestFirst = [...snapshots].sort((one, other) => other.takenAt - one.takenAt)
  for (const snapshot of newestFirst) {
    const { mountedAt = [] } = JSON.parse(snapshot.lower || '{}') as RecordedLowerSnapshot
    if (mountedAt.length === 0) continue
    return (
      `nobody has /dev/mapper/${name} open: it was mounted at ${mountedAt.join(', ')} when snapshot ${snapshot.name} was taken, and is not now. ` +
      'What is written there goes elsewhere'
    )
  }
  return undefined
}
