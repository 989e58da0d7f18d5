/**
 * Whoever makes volumes and snapshots for the content rules: hooks of the driver's author (hooks.ts), or the driver
 * itself through CSI (csi-storage.ts).
 */

export interface Storage {
  /** A volume of that size, empty, as a device or file that can be written. @returns its path */
  create(volume: string, sizeBytes: number): Promise<string>
  /** @returns the snapshot's id */
  snapshot(volume: string, snapshot: string): Promise<string>
  /** A volume made from a snapshot. @returns its path */
  restore(snapshotId: string, volume: string): Promise<string>
  deleteSnapshot(snapshotId: string): Promise<void>
  deleteVolume(volume: string): Promise<void>
  /** Undefined where volumes cannot be discarded. */
  readonly discard?: ((device: string, offsetBytes: number, lengthBytes: number) => Promise<void>) | undefined
  /** Undefined where volumes cannot grow. */
  readonly grow?: ((volume: string, sizeBytes: number) => Promise<void>) | undefined
}

/** Remembers what was made, and removes it again, last first. */
export class Cleanup {
  readonly #storage: Storage
  readonly #left: { readonly kind: 'volume' | 'snapshot'; readonly id: string }[] = []

  constructor(storage: Storage) {
    this.#storage = storage
  }

  made(kind: 'volume' | 'snapshot', id: string): void {
    this.#left.push({ kind, id })
  }

  gone(id: string): void {
    const at = this.#left.findIndex((each) => each.id === id)
    if (at >= 0) this.#left.splice(at, 1)
  }

  /** @returns what could not be removed, and why */
  async run(): Promise<string[]> {
    const failures: string[] = []
    for (const { kind, id } of this.#left.splice(0).reverse()) {
      try {
        await (kind === 'volume' ? this.#storage.deleteVolume(id) : this.#storage.deleteSnapshot(id))
      } catch (error) {
        failures.push(`${kind} ${id}: ${(error as Error).message}`)
      }
    }
    return failures
  }
}
