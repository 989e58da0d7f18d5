/**
 * The snapshot of `deltamapper nbd` on this node: the agent says what is in it and what changed, its block device has
 * the data.
 */
import { DeviceMapper } from '../../../native/device-mapper.ts'
import type { LogicalVolume } from '../../agent/lvm/parse.ts'
import { isThin } from '../../agent/lvm/volume.ts'
import { namedTracked } from '../../devicemapper/device-named.ts'
import { DeltamapperError } from '../../errors.ts'
import { connectAdmin } from '../../grpc/admin-client.ts'
import { connect, type SnapshotMetadataClient } from '../../grpc/client.ts'
import { parseHandle } from '../../handle.ts'
import type { NbdBase, NbdSource, SnapshotIdentity } from '../../nbd/source.ts'
import { everything } from '../../nbd/watched-device.ts'
import { socketAwaited } from '../command-line/awaited-socket.ts'
import { endpointAddress, endpointTls } from '../command-line/endpoint.ts'
import { UsageError } from '../command-line/failure.ts'
import { volumesOf } from '../lvm/group-report.ts'
import type { NbdOptions } from './nbd-options.ts'
import type { Remark } from './question.ts'
import { activated, openDevice, placeBelow, placeOf, trackedSnapshots } from './snapshot-device.ts'

type KnownSnapshot = Pick<NbdBase, 'sizeBytes' | 'identity'> & Pick<NbdSource, 'origins'>

/** @throws UsageError; the agent's errors; what opening the device throws; DM_LVM_FAILED */
export async function openAgentSource(
  target: string,
  bases: readonly string[],
  options: NbdOptions,
  remark: Remark
): Promise<NbdSource> {
  const tls = await endpointTls(options)
  const address = endpointAddress(options.endpoint, { tls: tls !== undefined })
  if (!address.startsWith('unix:')) {
    throw new UsageError(
      `${address} may be another machine, and the data are read here`,
      "name the agent's unix socket"
    )
  }
  const closing: (() => Promise<void> | void)[] = []
  /** All of them, also where one fails: what was activated is deactivated. */
  const close = async (): Promise<void> => {
    const last = closing.pop()
    try {
      await last?.()
    } finally {
      if (last) await close()
    }
  }
  try {
    await socketAwaited(address)
    const { tracked, known } = await findTracked(address, target)
    const below = tracked && (await placeBelow(tracked))
    const place = await placeOf(below ?? parseHandle(target), options.device)
    const deactivate = await activated(place, options.activate ?? false)
    if (deactivate) closing.push(deactivate)
    const deviceMapper = new DeviceMapper()
    closing.push(() => deviceMapper.close())
    const opening = { bytesPerSecond: options.rate, untouched: tracked !== undefined }
    const device = await openDevice(place, deviceMapper, opening)
    closing.push(() => device.close())
    if (device.isCostly) {
      remark(
        `${place.path} can be written to: its pool commits before each answer; read-only (lvchange -pr) it is faster`
      )
    }
    const client = connect(address, { tls })
    closing.push(() => client.close())
    const common = { target, data: device.data, look: () => device.look(), close, blockBytes: device.blockBytes }
    if (tracked) {
      const { id, sizeBytes } = tracked
      checkHolds(place.path, device.sizeBytes, target, sizeBytes)
      for (const base of bases) if (!known.has(base)) known.set(base, { identity: 'gone', sizeBytes: undefined })
      const identity = { uuid: id }
      return { ...common, ...questions(client, target, namedTracked(id), bases, known), identity, sizeBytes }
    }
    const { hasExternalOrigin, named, sizeBytes } = device
    const found = await snapshotsNamed(address, [target, ...bases])
    const asked = questions(client, target, named, bases, found)
    const identity = presentIdentity(found.get(target))
    const whole = { ...common, ...asked, identity, origins: found.get(target)?.origins, sizeBytes }
    if (!hasExternalOrigin) return whole
    return { ...whole, allocated: async () => everything(sizeBytes), hasExternalOrigin }
  } catch (error) {
    await close()
    throw error
  }
}

/**
 * What the agent has on record of a target that is a snapshot of a tracked volume, and of all of that
 * volume whose data are there what tells them apart, and their sizes in bytes, by their handles.
 *
 * @throws DM_SNAPSHOT_NOT_FOUND where the volume is tracked, and has no such snapshot with data
 */
async function findTracked(address: string, target: string) {
  const { source, name } = parseHandle(target)
  const admin = connectAdmin(address)
  try {
    const snapshots = await trackedSnapshots(admin, source)
    const known = new Map<string, KnownSnapshot>(
      snapshots?.map(({ name, sizeBytes, id }) => [`${source}/${name}`, { sizeBytes, identity: { uuid: id } }])
    )
    const tracked = snapshots?.find((each) => each.name === name)
    if (tracked || !snapshots) return { tracked, known }
    throw new DeltamapperError(
      'DM_SNAPSHOT_NOT_FOUND',
      `tracked volume ${source} has no snapshot ${name}, or its data were deleted`,
      '`deltamapper snapshot list --tracked` lists those whose data are there'
    )
  } finally {
    admin.close()
  }
}

/** A tracked volume may be smaller than the device below it. @throws DM_SNAPSHOT_CHANGED where it is larger */
function checkHolds(path: string, bytes: number, target: string, sizeBytes: number): void {
  if (bytes >= sizeBytes) return
  throw new DeltamapperError(
    'DM_SNAPSHOT_CHANGED',
    `${path} has ${bytes} bytes, and ${target} had ${sizeBytes}`,
    'take another snapshot, and begin again'
  )
}

/**
 * A name can stand for one thing to the agent (a recorded pool, a pool of dmsetup's) and for another below /dev. So
 * each question names the device, and an answer about anything else is refused.
 *
 * @param device what the data are of
 */
function questions(
  client: SnapshotMetadataClient,
  target: string,
  device: string,
  bases: readonly string[],
  known: ReadonlyMap<string, KnownSnapshot>
): Pick<NbdSource, 'allocated' | 'bases'> {
  return {
    allocated: (startingOffset, signal) => client.allocated({ snapshotId: target, startingOffset, signal, device }),
    bases: bases.map((name) => ({
      name,
      identity: known.get(name)?.identity,
      sizeBytes: known.get(name)?.sizeBytes,
      delta: (startingOffset, signal) =>
        client.delta({ baseSnapshotId: name, targetSnapshotId: target, startingOffset, signal, device })
    }))
  }
}

/**
 * What LVM knows of snapshots, or the agent of those in its own pools: what tells each from another of its name, and
 * its size in bytes, but of a classic one, where LVM has the size of the store. (The agent would say the size, to a
 * question that it then has on record as an answer about the base, which nobody was given.)
 */
async function snapshotsNamed(address: string, handles: readonly string[]): Promise<Map<string, KnownSnapshot>> {
  const known = new Map<string, KnownSnapshot>()
  const sources = new Map<string, Map<string, KnownSnapshot> | undefined>()
  for (const handle of handles) {
    const { source, name } = parseHandle(handle)
    if (!sources.has(source)) sources.set(source, (await inGroup(source)) ?? (await inOwnedPool(address, source)))
    const all = sources.get(source)
    if (all) known.set(handle, all.get(name) ?? { identity: 'gone', sizeBytes: undefined })
  }
  return known
}

/** By name. Undefined where LVM has no such group, or does not say. */
async function inGroup(group: string): Promise<Map<string, KnownSnapshot> | undefined> {
  const volumes = await volumesOf(group).catch(() => undefined)
  return (
    volumes &&
    new Map(
      volumes.map((each) => {
        const sizeBytes = isThin(each) ? each.sizeBytes : undefined
        const origins = originsOf(each.name, volumes).map((name) => `${group}/${name}`)
        return [each.name, { identity: { uuid: each.uuid }, sizeBytes, origins }]
      })
    )
  )
}

/** Names of what a volume is a snapshot of, nearest first; empty where LVM does not know, or the origin is gone. */
function originsOf(name: string, volumes: readonly LogicalVolume[]): string[] {
  const origin = volumes.find((each) => each.name === name)?.origin
  return origin === undefined ? [] : [origin, ...originsOf(origin, volumes)]
}

/** By name. Undefined where the agent has no such pool of its own, or does not say. */
async function inOwnedPool(address: string, pool: string): Promise<Map<string, KnownSnapshot> | undefined> {
  const admin = connectAdmin(address)
  try {
    const { snapshots } = await admin.listSnapshots({ pool })
    return new Map(
      snapshots.map(({ name, id, sizeBytes, volume, origin }) => {
        // (Of those that are deleted it does not know the names any more.)
        const origins = [origin, volume].filter((each) => each !== '').map((each) => `${pool}/${each}`)
        return [name, { identity: { uuid: id }, sizeBytes, origins }]
      })
    )
  } catch {
    return undefined
  } finally {
    admin.close()
  }
}

function presentIdentity(known: KnownSnapshot | undefined): SnapshotIdentity | undefined {
  return known?.identity === 'gone' ? undefined : known?.identity
}
