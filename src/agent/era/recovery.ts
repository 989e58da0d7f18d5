/**
 * Completes or rolls back what an interrupted change to a tracked volume has left, by the intent that is on record.
 *
 * The caller must hold the volume's lock.
 */
import type { EraVolume } from '../catalog/era-volumes.ts'
import type { LowerSnapshot, LowerSnapshotting } from './boundary/lower-snapshot.ts'
import { resumeTracked } from './boundary/suspension.ts'
import { TrackedDevice } from './device/tracked-device.ts'
import type { BoundaryMachine } from './boundary/boundary-machine.ts'
import type { VolumeParts } from './device/volume-parts.ts'
import type { Attachment } from './attachment.ts'
import type { Growth } from './growth.ts'

export interface RecoveryParts extends VolumeParts {
  readonly machine: BoundaryMachine
  readonly lower: LowerSnapshotting
  readonly attachment: Attachment
  readonly growth: Growth
}

export class Recovery {
  readonly #parts: RecoveryParts

  constructor(parts: RecoveryParts) {
    this.#parts = parts
  }

  /**
   * Completes or rolls back the intent of a volume that is still in the catalog.
   *
   * @returns what was done, in words; undefined when there was no intent
   */
  async settle(name: string): Promise<string | undefined> {
    const { volumes, intents } = await this.#parts.catalog.eraVolumes.view()
    const volume = volumes.find((each) => each.name === name)
    const intent = intents.find((each) => each.volume === name)
    if (!volume || !intent) return undefined
    const tracked = new TrackedDevice(this.#parts.deviceMapper, volume, this.#parts.machine)
    switch (intent.kind) {
      case 'attach':
        return this.#parts.attachment.settleAttach(name, tracked)
      case 'detach':
        return this.#parts.attachment.settleDetach(volume, tracked)
      case 'grow':
        return this.#parts.growth.settleGrow(volume, tracked, intent.sizeBytes)
      case 'snapshot': {
        await resumeTracked(this.#parts, tracked)
        const left = await this.#parts.lower.unfinished(volume, intent.snapshot, intent.token)
        await this.removeLower(volume, left).catch((error: unknown) => {
          // No snapshot in the catalog refers to it, so leaving it only costs space.
          this.#parts.logger.warn(
            { volume: name, snapshot: intent.snapshot, err: error },
            'the lower snapshot could not be removed'
          )
        })
        await this.#parts.catalog.eraVolumes.rollBack(name)
        if (await tracked.info()) await this.#parts.historyCheck.lookAfter(name)
        return `snapshot ${name}/${intent.snapshot} was not finished: it is given up`
      }
    }
  }

  /** Removes the lower snapshot; does nothing if a driver is responsible for it. @throws what removing throws */
  async removeLower(volume: EraVolume, lower: Pick<LowerSnapshot, 'remove'> | undefined): Promise<void> {
    if (lower === undefined) return
    const seen = await new TrackedDevice(this.#parts.deviceMapper, volume, this.#parts.machine).removeLower(() =>
      lower.remove()
    )
    if (seen) await this.#parts.catalog.eraVolumes.saw(volume.name, { lowerSeen: JSON.stringify(seen) })
  }
}
