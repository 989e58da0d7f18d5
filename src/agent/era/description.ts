/**
 * Tracked volumes and their snapshots for display: the catalog's data with the kernel's present state. If the kernel
 * does not answer, its part is left out, and the call still succeeds.
 */
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { asDeltamapperError } from '../../errors.ts'
import type * as admin from '../../grpc/admin.ts'
import type { EraSnapshot } from '../catalog/era-snapshots.ts'
import type { EraIntent, EraVolume } from '../catalog/era-volumes.ts'
import type { Lower } from './boundary/lower-snapshot.ts'
import { unmountedSince } from './boundary/mounted.ts'
import type { Quiet } from './device/quiet.ts'
import { dataBytes, parseLowerSeen, TrackedDevice } from './device/tracked-device.ts'

const SECTOR_BYTES = 512
const METADATA_BLOCK_BYTES = 4096
/** Percent of metadata in use above which a volume has a problem: a full metadata device fails writes. */
const FULL_PERCENT = 80

/**
 * @param intents of all volumes; `snapshots` too
 * @param quiet tells whether the kernel may be asked for status, beyond what it answers without waiting
 */
export async function describeEraVolume(
  deviceMapper: DeviceMapper,
  volume: EraVolume,
  intents: readonly EraIntent[],
  snapshots: readonly EraSnapshot[],
  quiet: Quiet
): Promise<admin.EraVolume> {
  const { name, dmName, dataDevice, metadataDevice, blockSectors, sizeBytes, line, lineBecause } = volume
  const described: admin.EraVolume = {
    ...{ name, deviceName: dmName, dataDevice, metadataDevice, blockBytes: blockSectors * SECTOR_BYTES, sizeBytes },
    ...{ active: false, suspended: false, problem: '', line, lineBecause },
    guardCheckedAtMs: volume.guardCheckedAt,
    snapshots: snapshots.filter((each) => each.volume === volume.id && each.removedAt === undefined).length,
    underWay: intents.find((each) => each.volume === name)?.kind ?? '',
    createdAtMs: volume.createdAt
  }
  const tracked = new TrackedDevice(deviceMapper, volume)
  try {
    const info = await tracked.info()
    if (!info) return described
    Object.assign(described, { active: true, suspended: info.suspended })
    const devices = await tracked.active()
    described.dataBytes = await dataBytes(devices)
    const problem = tracked.unseen(await tracked.look(devices), parseLowerSeen(volume.lowerSeen))
    if (problem !== undefined) described.problem = problem
    const status = await quiet.ask(name, async () => {
      // A suspended device does not answer.
      return (await tracked.info())?.suspended === false ? tracked.status() : undefined
    })
    if (status === undefined) return described
    if (status.state === 'unknown') return { ...described, problem: 'the kernel could not tell its state' }
    const { currentEra, usedMetadataBlocks: used, totalMetadataBlocks: total, metadataSnapshot } = status
    described.usage = {
      currentEra,
      metadataUsedBytes: used * METADATA_BLOCK_BYTES,
      metadataTotalBytes: total * METADATA_BLOCK_BYTES,
      ...(metadataSnapshot === undefined ? {} : { heldMetadataSnapshot: metadataSnapshot }),
      openCount: info.openCount
    }
    if (used * 100 > total * FULL_PERCENT && described.problem === '') {
      described.problem = `its metadata is ${Math.round((used / total) * 100)} % full, and when it is full writes fail`
    }
    if (described.problem === '') {
      const own = snapshots.filter((each) => each.volume === volume.id)
      described.problem = unmountedSince(info, own) ?? ''
    }
  } catch (error) {
    described.problem = asDeltamapperError(error).message
  }
  return described
}

/** @param warning for the one who takes the snapshot */
export function describeEraSnapshot(volume: string, snapshot: EraSnapshot, warning = ''): admin.EraSnapshot {
  const { name, id, line, boundaryEra, sizeBytes, exact, suspendedMs, takenAt, removedAt } = snapshot
  return {
    ...{ volume, name, id, line, boundaryEra, sizeBytes, exact, suspendedMs, warning },
    lower: lowerInWords(JSON.parse(snapshot.lower) as Lower),
    takenAtMs: takenAt,
    ...(removedAt === undefined ? {} : { removedAtMs: removedAt })
  }
}

function lowerInWords(lower: Lower): string {
  switch (lower.kind) {
    case 'lvm':
      return `LVM's ${lower.volume}`
    case 'command':
      return `taken by the configured command as ${lower.name}`
    case 'driver':
      return lower.reference
  }
}
