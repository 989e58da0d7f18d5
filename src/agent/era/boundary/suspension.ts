/**
 * One suspension of a tracked volume. It belongs to a watchdog from begin to end, so that the agent can die; where it is the watchdog that
 * dies, or answers no more, the agent ends it with its own hand.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { DeviceMapper } from '../../../../native/device-mapper.ts'
import { refuseDiscards } from '../../../devicemapper/block-queue.ts'
import { dropInactiveTable } from '../../../devicemapper/inactive-table.ts'
import { DeltamapperError } from '../../../errors.ts'
import type { TrackedDevice } from '../device/tracked-device.ts'
import { Watchdog } from './watchdog.ts'

/** How often the agent tries to resume, and for how long it waits in between, in milliseconds. */
const MOST_TRIES = 5
const RETRY_MS = 500

export class Suspension {
  readonly #deviceMapper: DeviceMapper
  readonly #tracked: TrackedDevice
  readonly #watchdog: Watchdog

  private constructor(deviceMapper: DeviceMapper, tracked: TrackedDevice, watchdog: Watchdog) {
    this.#deviceMapper = deviceMapper
    this.#tracked = tracked
    this.#watchdog = watchdog
  }

  /** Prepares one. Nothing is suspended yet. @param deadlineMs when it ends at the latest @throws DM_CALL_STUCK */
  static async prepare(deviceMapper: DeviceMapper, tracked: TrackedDevice, deadlineMs: number): Promise<Suspension> {
    const { era, guard } = tracked
    return new Suspension(deviceMapper, tracked, await Watchdog.start({ device: era, guard, deadlineMs }))
  }

  /** Aborted when the watchdog has died: from then on nobody but the agent ends the suspension. */
  get lost(): AbortSignal {
    return this.#watchdog.lost
  }

  /** @returns how long it took, in milliseconds @throws what suspending throws; `end` it then, too */
  suspend(): Promise<number> {
    return this.#watchdog.suspend()
  }

  /** @returns for how long it was suspended, in milliseconds, and whether until now @throws DM_CALL_STUCK; `end` it then, too */
  resume(): Promise<{ ms: number; held: boolean }> {
    return this.#watchdog.resume()
  }

  /** Resumes the volume, if that has not been done, whoever has to. @throws DM_CALL_STUCK when it may be suspended, or become so */
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
      `what is to suspend ${this.#tracked.volume.name} hangs in the kernel, and may still do so`,
      'see what the device waits for; the next call for this volume resumes it'
    )
  }

  async #resume(): Promise<void> {
    for (let tries = 1; ; tries++) {
      try {
        await resumeTracked(this.#deviceMapper, this.#tracked)
        return
      } catch (error) {
        if (tries === MOST_TRIES) throw error
      }
      await sleep(RETRY_MS)
    }
  }
}

/**
 * Takes what a suspension that was cut short has left on the devices. A table that was loaded and not put in place is dropped.
 *
 * @throws DM_CALL_STUCK when they are suspended all the same
 */
export async function resumeTracked(deviceMapper: DeviceMapper, tracked: TrackedDevice): Promise<void> {
  const guard = await deviceMapper.info(tracked.guard)
  await dropInactiveTable(deviceMapper, tracked.guard)
  if (guard?.suspended) await deviceMapper.resume(tracked.guard)
  if (guard?.hasLiveTable) await refuseDiscards(guard)
  const era = await deviceMapper.info(tracked.era)
  if (!era?.hasLiveTable) return
  await dropInactiveTable(deviceMapper, tracked.era)
  // Even where it does not show as suspended: it may be about to be, by a call whose caller has died.
  await deviceMapper.resume(tracked.era)
  if (!(await tracked.info())?.suspended) return
  throw new DeltamapperError(
    'DM_CALL_STUCK',
    `${era.name} is suspended again as soon as it is resumed`,
    `find out by whom; \`dmsetup resume ${era.name}\``
  )
}
