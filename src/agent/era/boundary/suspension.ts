/**
 * One suspension of a tracked volume. A watchdog owns it from beginning to end, so that the agent may die. If the
 * watchdog dies or does not answer, the agent itself ends the suspension.
 */
import type { DeviceMapper } from '../../../../native/device-mapper.ts'
import { dropInactiveTable } from '../../../devicemapper/inactive-table.ts'
import { DeltamapperError } from '../../../errors.ts'
import type { TrackedDevice } from '../device/tracked-device.ts'
import type { BoundaryMachine, WatchdogOf } from './boundary-machine.ts'

/** How often the agent tries to resume, and how long it waits in between, in milliseconds. */
const MOST_TRIES = 5
const RETRY_MS = 500

export interface SuspensionParts {
  readonly deviceMapper: DeviceMapper
  readonly machine: BoundaryMachine
}

export class Suspension {
  readonly #parts: SuspensionParts
  readonly #tracked: TrackedDevice
  readonly #watchdog: WatchdogOf

  private constructor(parts: SuspensionParts, tracked: TrackedDevice, watchdog: WatchdogOf) {
    this.#parts = parts
    this.#tracked = tracked
    this.#watchdog = watchdog
  }

  /** Prepares one. Nothing is suspended yet. @param deadlineMs when it ends at the latest @throws DM_CALL_STUCK */
  static async prepare(parts: SuspensionParts, tracked: TrackedDevice, deadlineMs: number): Promise<Suspension> {
    const { era, guard } = tracked
    return new Suspension(parts, tracked, await parts.machine.startWatchdog({ device: era, guard, deadlineMs }))
  }

  /** Aborted when the watchdog has died: from then on only the agent can end the suspension. */
  get lost(): AbortSignal {
    return this.#watchdog.lost
  }

  /** @returns how long it took, in milliseconds @throws what suspending throws; call `end` then, too */
  suspend(): Promise<number> {
    return this.#watchdog.suspend()
  }

  /**
   * @returns how long it was suspended, in milliseconds, and whether it lasted until now @throws DM_CALL_STUCK; call
   *   `end` then, too
   */
  resume(): Promise<{ ms: number; held: boolean }> {
    return this.#watchdog.resume()
  }

  /** Resumes the volume, unless that is done already. @throws DM_CALL_STUCK when it may be suspended, or become so */
  async end(): Promise<void> {
    const resumed = await this.#watchdog.resume().then(
      () => true,
      () => false
    )
    if (resumed) {
      await this.#watchdog.end()
      return
    }
    const gone = this.#watchdog.kill()
    await this.#resume()
    if (await gone) {
      // Its last call may have come through only now.
      await this.#resume()
      return
    }
    throw new DeltamapperError(
      'DM_CALL_STUCK',
      `the call that suspends ${this.#tracked.volume.name} hangs in the kernel, and may still succeed`,
      'see what the device waits for; the next call for this volume resumes it'
    )
  }

  async #resume(): Promise<void> {
    for (let tries = 1; ; tries++) {
      try {
        await resumeTracked(this.#parts, this.#tracked)
        return
      } catch (error) {
        if (tries === MOST_TRIES) throw error
      }
      await this.#parts.machine.clock.sleep(RETRY_MS)
    }
  }
}

/**
 * Cleans up after an interrupted suspension: drops tables that were loaded but not activated, and resumes the devices.
 *
 * @throws DM_CALL_STUCK when they are still suspended
 */
export async function resumeTracked({ deviceMapper, machine }: SuspensionParts, tracked: TrackedDevice): Promise<void> {
  const guard = await deviceMapper.info(tracked.guard)
  await dropInactiveTable(deviceMapper, tracked.guard, machine.clock)
  if (guard?.suspended) await deviceMapper.resume(tracked.guard)
  if (guard?.hasLiveTable) await machine.refuseDiscards(guard)
  const era = await deviceMapper.info(tracked.era)
  if (!era?.hasLiveTable) return
  await dropInactiveTable(deviceMapper, tracked.era, machine.clock)
  // Even if it does not show as suspended: a call whose caller has died may be about to suspend it.
  await deviceMapper.resume(tracked.era)
  if (!(await tracked.info())?.suspended) return
  throw new DeltamapperError(
    'DM_CALL_STUCK',
    `${era.name} is suspended again as soon as it is resumed`,
    `find out by whom; \`dmsetup resume ${era.name}\``
  )
}
