/**
 * What a pool of our own asks of its machine beside device-mapper: its disks, what is on them, the time. It is an
 * argument, so that a machine on which everything can go wrong may stand in for this one.
 */
import { type PlainClock, plainClock } from '../../clock.ts'
import { type Claim, ClaimedDevice, sizeOf } from '../block-device.ts'
import type { OpenMedium } from '../metadata-medium.ts'

/** The functions that it is made of say what each of them throws. */
export interface PoolMachine {
  readonly clock: PlainClock
  /** What opens metadata; undefined for files and devices of this machine. */
  readonly open: OpenMedium | undefined
  readonly claim: (path: string, options?: { writable?: boolean }) => Promise<Claim>
  /** In bytes. */
  readonly sizeOf: typeof sizeOf
}

export const thisMachine: PoolMachine = {
  clock: plainClock,
  open: undefined,
  claim: (path, options) => ClaimedDevice.open(path, options),
  sizeOf
}
