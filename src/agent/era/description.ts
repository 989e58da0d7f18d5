/**
 * Tracked volumes and their snapshots for display: the catalog's data with the kernel's present state. If the kernel
 * does not answer, its part is left out, and the call still succeeds.
 */
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { asDeltamapperError } from '../../errors.ts'
import type { EraSnapshot } from '../catalog/era-snapshots.ts'
import type { EraIntent, EraVolume } from '../catalog/era-volumes.ts'
import { type LowerSnapshotRecord, tagOf } from './boundary/lower-snapshot.ts'
import { unmountedSince } from './boundary/mounted.ts'
import type { TrackedMachine } from './device/machine.ts'
import type { StatusGate } from './device/status-gate.ts'
import { dataBytes, parseLastLook, TrackedDevice } from './device/tracked-device.ts'
import { METADATA_BLOCK_BYTES, SECTOR_BYTES } from '../../units.ts'

/** Percent of metadata in use above which a volume has a problem: a full metadata device fails writes. */
const FULL_PERCENT = 80

/** A tracked volume. Sizes are in bytes, times in milliseconds since 1970. */
export interface DescribedEraVolume {
  readonly name: string
  /** Under /dev/mapper. */
  readonly deviceName: string
  readonly dataDevice: string
  readonly metadataDevice: string
  readonly blockBytes: number
  readonly sizeBytes: number
  readonly active: boolean
  readonly suspended: boolean
  /** What is wrong with it; empty where nothing is known to be. */
  problem: string
  /** Left out where the kernel cannot be asked. */
  usage?: DescribedEraUsage
  /** Of the data device; left out while the volume is not active. More than `sizeBytes`: the volume can grow. */
  dataBytes?: number
  readonly line: string
  readonly lineBecause: string
  readonly guardCheckedAtMs: number
  readonly snapshots: number
  /** What was begun and is not finished; empty for nothing. */
  readonly underWay: string
  readonly createdAtMs: number
}

interface DescribedEraUsage {
  readonly currentEra: number
  readonly metadataUsedBytes: number
  readonly metadataTotalBytes: number
  /** Metadata block. */
  readonly heldMetadataSnapshot?: number
  readonly openCount: number
}

/** A snapshot of a tracked volume. */
export interface DescribedEraSnapshot {
  readonly volume: string
  readonly name: string
  readonly id: string
  readonly line: string
  /** The first era after it. */
  readonly boundaryEra: number
  readonly sizeBytes: number
  /** What was taken below, in words. */
  readonly lower: string
  /** Whether what was written since the one before is known exactly, or may be more. */
  readonly exact: boolean
  readonly suspendedMs: number
  readonly takenAtMs: number
  /** Left out while it has not been deleted. */
  readonly removedAtMs?: number
  /** What whoever takes it should know; empty for nothing. */
  readonly warning: string
  /** The tag of LVM's snapshot below; empty where LVM did not take it. */
  readonly lowerTag: string
}

/**
 * @param intents of all volumes; `snapshots` too
 * @param statusGate tells whether the kernel may be asked for status, beyond what it answers without waiting
 */
export async function describeEraVolume(
  { deviceMapper, machine }: { readonly deviceMapper: DeviceMapper; readonly machine: TrackedMachine },
  volume: EraVolume,
  intents: readonly EraIntent[],
  snapshots: readonly EraSnapshot[],
  statusGate: StatusGate
): Promise<DescribedEraVolume> {
  const { name, dmName, dataDevice, metadataDevice, blockSectors, sizeBytes, line, lineBecause } = volume
  const described: DescribedEraVolume = {
    ...{ name, deviceName: dmName, dataDevice, metadataDevice, blockBytes: blockSectors * SECTOR_BYTES, sizeBytes },
    ...{ active: false, suspended: false, problem: '', line, lineBecause },
    guardCheckedAtMs: volume.guardCheckedAt,
    snapshots: snapshots.filter((each) => each.volume === volume.id && each.removedAt === undefined).length,
    underWay: intents.find((each) => each.volume === name)?.kind ?? '',
    createdAtMs: volume.createdAt
  }
  const tracked = new TrackedDevice(deviceMapper, volume, machine)
  try {
    const info = await tracked.info()
    if (!info) return described
    Object.assign(described, { active: true, suspended: info.suspended })
    const devices = await tracked.active()
    described.dataBytes = await dataBytes(devices, machine)
    const problem = tracked.unseen(await tracked.look(devices), parseLastLook(volume.lowerSeen))
    if (problem !== undefined) described.problem = problem
    const status = await statusGate.ask(name, async () => {
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
export function describeEraSnapshot(volume: string, snapshot: EraSnapshot, warning = ''): DescribedEraSnapshot {
  const { name, id, line, boundaryEra, sizeBytes, exact, suspendedMs, takenAt, removedAt } = snapshot
  const lower = JSON.parse(snapshot.lower) as LowerSnapshotRecord
  return {
    ...{ volume, name, id, line, boundaryEra, sizeBytes, exact, suspendedMs, warning },
    lower: lowerInWords(lower),
    lowerTag: lower.kind === 'lvm' ? tagOf(lower.token) : '',
    takenAtMs: takenAt,
    ...(removedAt === undefined ? {} : { removedAtMs: removedAt })
  }
}

function lowerInWords(lower: LowerSnapshotRecord): string {
  switch (lower.kind) {
    case 'lvm':
      return `LVM's ${lower.volume}`
    case 'command':
      return `taken by the configured command as ${lower.name}`
    case 'driver':
      return lower.reference
  }
}
