/**
 * What a workload does to a thin pool, however that is run: the same history is lived through on a pool made with dmsetup, and on
 * one that belongs to LVM.
 */
import type { DeviceMapper, TableRow } from '../../native/device-mapper.ts'
import { parsePoolStatus, parseThinStatus } from '../../src/devicemapper/thin/status.ts'
import { sectorBytes } from './dmsetup.ts'

export const blockBytes = 65536

/** A thin device, as whoever runs the pool knows it. */
export interface ThinFacts {
  readonly thinId: number
  readonly sizeBytes: number
  /** LVM's UUIDs, of itself and of what it is known to be a snapshot of. */
  readonly uuid?: string
  readonly originUuid?: string
}

export interface WorkloadPool {
  readonly kind: 'dmsetup' | 'lvm'
  /** What handles begin with. */
  readonly source: string
  /** The device that has the thin-pool target. */
  readonly poolDevice: string
  readonly metadataDevice: string
  /** Sizes are multiples of this. */
  readonly sizeUnit: number
  /** A thin volume that the background writes to, and what is done to it over and over. */
  readonly noise: { path: string; sizeBytes: number; commands: string[][]; commandsApart: number }

  createVolume(name: string, sizeBytes: number): Promise<void>
  /** A snapshot at one moment, however much its origin is written to. `active`: it is in the way of nothing. */
  snapshot(origin: string, name: string, active: boolean): Promise<void>
  remove(name: string): Promise<void>
  rename(name: string, newName: string): Promise<void>
  resize(name: string, sizeBytes: number): Promise<void>
  /**
   * Puts a snapshot in the place of its origin. With `whilePending` the origin is open, so that the merge has to wait, and that is
   * called meanwhile.
   */
  merge?(snapshot: string, origin: string, whilePending?: () => Promise<void>): Promise<void>
  facts(): Promise<Map<string, ThinFacts>>
  /** Lends the node of a thin, and activates it for that long where it is not. */
  withDevice<T>(name: string, use: (path: string) => T | Promise<T>): Promise<T>
  /** The node of a volume, which is always active. */
  volumePath(name: string): string
  /** How full the pool is, data or metadata, from 0 to 1. */
  fullness(): Promise<number>
  /** Of an active device. */
  mappedBlocks(path: string): Promise<number>
  close(): Promise<void>
}

/** The table of a thin device. */
export const thinRow = (sizeBytes: number, pool: string, thinId: number): TableRow => ({
  startSector: 0,
  lengthSectors: sizeBytes / sectorBytes,
  targetType: 'thin',
  params: `/dev/mapper/${pool} ${thinId}`
})

/** How full a pool is, data or metadata, from 0 to 1; throws unless it takes writes. */
export async function poolFullness(deviceMapper: DeviceMapper, pool: string): Promise<number> {
  const [row] = await deviceMapper.status(pool)
  const status = parsePoolStatus(row?.params ?? '')
  if (status.state !== 'working' || status.mode !== 'read-write') throw new Error(`the pool is ${row?.params}`)
  const { usedMetadataBlocks, totalMetadataBlocks, usedDataBlocks, totalDataBlocks } = status
  return Math.max(usedMetadataBlocks / totalMetadataBlocks, usedDataBlocks / totalDataBlocks)
}

/** How many data blocks an active thin device maps. */
export async function mappedBlocks(deviceMapper: DeviceMapper, path: string): Promise<number> {
  const [row] = await deviceMapper.status(path.slice('/dev/mapper/'.length))
  const status = parseThinStatus(row?.params ?? '')
  if (status.state !== 'working') throw new Error(`${path} is ${row?.params}`)
  return (status.mappedSectors * sectorBytes) / blockBytes
}
