/**
 * Whose snapshot a device is, as far as a pool's metadata tells. The metadata has no such record, only clock readings:
 *
 * - Taking a snapshot advances the pool's clock by one, to T. T is the new device's creation time. It is also the
 *   origin's snapshotted time, until the origin takes part in a later snapshot (dm-thin-metadata.c, __create_snap).
 * - Creating an empty device does not advance it: its creation time is that of the snapshot taken last, 0 before the
 *   first.
 *
 * Hence, for a device created at T:
 *
 * - T = 0: no snapshot had been taken yet. It was certainly created empty.
 * - A device older than T whose snapshotted time is T was the origin of the one snapshot taken then. This device is
 *   likely that snapshot. It might also be an empty device created afterwards, if the snapshot is gone. With several
 *   devices created at T, each is just possible.
 * - A device older than T that was snapshotted later may have been the origin: its own reading was overwritten.
 * - No such device: created empty, or the origin is gone.
 *
 * Data blocks tell more. A device that shares one with an older device was not created empty. So it is certainly the
 * snapshot taken at T, of the device with that snapshotted time. If no reading names the origin, the only candidate
 * that it shares blocks with is likely it.
 */
import type { ThinDevice } from '../../devicemapper/thin/pool-metadata.ts'

/** The most candidates that are named; of further ones only the existence is shown. */
const MAX_CANDIDATES = 16

export interface Origin {
  certainty: 'certain' | 'likely' | 'possible' | 'unknown'
  /** The origin, or its candidates, by thin device id. None and certain: created empty. */
  devices: number[]
  /** Whether there are more candidates than these. */
  more: boolean
  /** Whether its snapshotted time says that it was the origin of a snapshot just then. */
  byClock: boolean
}

interface Snapshotted {
  id: number
  creationTime: number
  snapshottedTime: number
}

/** Collects the facts about every device of a view, then answers for each. */
export class Origins {
  /**
   * Devices that took part in a snapshot after their own creation: only those can be origins. Latest first once
   * complete.
   */
  readonly #snapshotted: Snapshotted[] = []
  /**
   * Of those, by that time, the one that was the origin then; undefined if the metadata names several, which cannot be.
   */
  readonly #originAt = new Map<number, number | undefined>()
  readonly #createdAt = new Map<number, number>()
  /** For each root: the first device with it, and the second. */
  readonly #firstWithRoot = new Map<number, number>()
  readonly #secondWithRoot = new Map<number, number>()

  add({ id, root, details: { creationTime, snapshottedTime } }: ThinDevice): void {
    if (snapshottedTime > creationTime) {
      this.#snapshotted.push({ id, creationTime, snapshottedTime })
      this.#originAt.set(snapshottedTime, this.#originAt.has(snapshottedTime) ? undefined : id)
    }
    this.#createdAt.set(creationTime, (this.#createdAt.get(creationTime) ?? 0) + 1)
    if (!this.#firstWithRoot.has(root)) this.#firstWithRoot.set(root, id)
    else if (!this.#secondWithRoot.has(root)) this.#secondWithRoot.set(root, id)
  }

  /** Call it once all devices were added. */
  complete(): void {
    this.#snapshotted.sort((a, b) => b.snapshottedTime - a.snapshottedTime)
  }

  /** The origin according to the clock readings. */
  of({ details: { creationTime } }: ThinDevice): Origin {
    if (creationTime === 0) return { certainty: 'certain', devices: [], more: false, byClock: false }
    const origin = this.#originAt.get(creationTime)
    if (origin !== undefined) {
      const certainty = this.#createdAt.get(creationTime) === 1 ? 'likely' : 'possible'
      return { certainty, devices: [origin], more: false, byClock: true }
    }
    const candidates: number[] = []
    for (const each of this.#snapshotted) {
      if (each.snapshottedTime < creationTime || candidates.length > MAX_CANDIDATES) break
      if (each.creationTime < creationTime) candidates.push(each.id)
    }
    return {
      certainty: candidates.length > 0 ? 'possible' : 'unknown',
      devices: candidates.slice(0, MAX_CANDIDATES).sort((a, b) => a - b),
      more: candidates.length > MAX_CANDIDATES,
      byClock: false
    }
  }

  /**
   * The origin according to readings and data blocks together.
   *
   * @param sharing those of `origin.devices` that were found to share data blocks with the device
   */
  refined(origin: Origin, sharing: number[]): Origin {
    if (sharing.length === 0) return origin
    if (origin.byClock) return { ...origin, certainty: 'certain' }
    // If there are more candidates than were examined, another one may share blocks as well.
    const certainty = sharing.length === 1 && !origin.more ? 'likely' : 'possible'
    return { ...origin, certainty, devices: sharing }
  }

  /** Another device with exactly the same mappings, because it has the very same root: the one with the lowest id. */
  twinOf({ id, root }: ThinDevice): number | undefined {
    const first = this.#firstWithRoot.get(root)
    return first === id ? this.#secondWithRoot.get(root) : first
  }
}
