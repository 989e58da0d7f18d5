/**
 * What tracked volumes ask of their machine beside device-mapper: device nodes, the kernel's counters, metadata, helper
 * processes. It is an argument, so that a machine on which everything can go wrong may stand in for this one.
 */
import { open, stat } from 'node:fs/promises'
import type { DeviceInfo, DeviceMapper, DeviceNumber } from '../../../../native/device-mapper.ts'
import { type PlainClock, plainClock } from '../../../clock.ts'
import { decodeDeviceNumber } from '../../../../native/device.ts'
import { BlockReader } from '../../../devicemapper/block-reader.ts'
import { type Claim, ClaimedDevice, LOOK_BYTES, sizeOf } from '../../../devicemapper/block-device.ts'
import * as queue from '../../../devicemapper/block-queue.ts'
import type { OpenMedium } from '../../../devicemapper/metadata-medium.ts'
import { DeltamapperError } from '../../../errors.ts'
import { METADATA_BLOCK_BYTES } from '../../../units.ts'
import { LeaseKeeper, type Keepers, processKeepers } from '../../leases/lease-keeper.ts'
import { deviceIdentity } from '../../node/device-identity.ts'
import { mergeable } from './mergeable.ts'
import { type NeededPath, neededPaths, refuseSelfHosting } from './self-hosting.ts'

/** The functions that it is made of say what each of them throws. */
export interface TrackedMachine {
  readonly clock: PlainClock
  /** What opens metadata; undefined for files and devices of this machine. */
  readonly open: OpenMedium | undefined
  readonly bootId: typeof queue.bootId
  readonly counters: typeof queue.blockCounters
  readonly instance: typeof queue.deviceInstance
  readonly discardLimit: typeof queue.discardLimit
  readonly refuseDiscards: typeof queue.refuseDiscards
  /** What a path leads to; undefined where it is no block device. */
  readonly deviceAt: (path: string) => Promise<DeviceNumber | undefined>
  /** In bytes. */
  readonly sizeOf: (device: DeviceNumber) => Promise<number>
  readonly claim: (path: string, options?: { writable?: boolean }) => Promise<Claim>
  /** The first 128 KiB of a data device, or all of it, which may be in use. */
  readonly head: (path: string) => Promise<Buffer>
  /** Writes the dirty pages of a block device's page cache to it. */
  readonly writeBack: (path: string) => Promise<void>
  readonly identity: (deviceMapper: DeviceMapper, path: string, device: DeviceNumber) => Promise<string>
  readonly mergeable: (deviceMapper: DeviceMapper, device: DeviceNumber) => Promise<string[]>
  readonly neededPaths: typeof neededPaths
  readonly refuseSelfHosting: (device: DeviceInfo, name: string, places: readonly NeededPath[]) => Promise<void>
  readonly keepers: Keepers
}

export const thisMachine: TrackedMachine = {
  clock: plainClock,
  open: undefined,
  bootId: queue.bootId,
  counters: queue.blockCounters,
  instance: queue.deviceInstance,
  discardLimit: queue.discardLimit,
  refuseDiscards: queue.refuseDiscards,
  deviceAt,
  sizeOf,
  claim: (path, options) => ClaimedDevice.open(path, options),
  head: readHead,
  writeBack,
  identity: deviceIdentity,
  mergeable,
  neededPaths,
  refuseSelfHosting,
  keepers: {
    ...processKeepers,
    start: (lease, metadata, catalogPath, deadlineMs) =>
      LeaseKeeper.start(lease, metadata, catalogPath, deadlineMs, 'era')
  }
}

async function deviceAt(path: string): Promise<DeviceNumber | undefined> {
  const facts = await stat(path).catch(() => undefined)
  return facts?.isBlockDevice() ? decodeDeviceNumber(facts.rdev) : undefined
}

async function readHead(path: string): Promise<Buffer> {
  const reader = await BlockReader.open(path)
  try {
    return await reader.readStart(Math.min(reader.blocks, LOOK_BYTES / METADATA_BLOCK_BYTES))
  } finally {
    await reader.close()
  }
}

/** @throws DM_READ_FAILED */
async function writeBack(path: string): Promise<void> {
  try {
    await using device = await open(path)
    await device.sync()
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    throw new DeltamapperError('DM_READ_FAILED', `${path} cannot be written back (${code})`, 'see the kernel log', {
      cause
    })
  }
}
