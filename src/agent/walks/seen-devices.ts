/** The devices of a walk as it has found them in the pool's metadata. */
import type { Fingerprint } from '../../devicemapper/thin/pool-metadata.ts'
import type { Snapshot } from './snapshot.ts'

/** A device as the pool's metadata has it when a walk begins, to compare with earlier observations. */
export interface SeenDevice {
  snapshot: Snapshot
  /** The pool's transaction id when the device was created. */
  transactionId: bigint
  fingerprint: Fingerprint
}

/** The devices of a walk, reported before its first message. */
export interface SeenDevices {
  base?: SeenDevice | undefined
  target: SeenDevice
  /** The answer is resumed at an offset, where an earlier one ended. */
  resumed: boolean
}
