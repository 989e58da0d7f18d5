/**
 * How often a device has been resumed, by anybody. The kernel announces each resume of a suspended device with an event
 * (do_resume in dm-ioctl.c). While the agent has a volume suspended, tables can be exchanged and put back, and the eras
 * that begin then look like the agent's own. The number of resumes does not.
 */
import type { DeviceNumber } from '../../../../native/device-mapper.ts'
import { type KernelEvent, KernelEvents } from '../../../../native/kernel-events.ts'
import { DeltamapperError } from '../../../errors.ts'
import { systemRemedy } from '../../../system-errors.ts'

/** The kernel keeps so many events and no more, so they are fetched this often. Milliseconds. */
const FETCH_MS = 50

/** Why a history ends, in words, where somebody else resumed the volume during the agent's own change. */
export const RESUMED_BY_OTHERS = 'another program resumed it, or gave it a table, while the agent had it suspended'

export interface Resumes {
  /** How often a device was resumed since counting began; Infinity where the kernel had to drop announcements. */
  of: (device: DeviceNumber) => number
  /** `of` goes on to say what it was. */
  close: () => void
}

/** Counts from now on, for every device. @throws DM_PERMISSION where the kernel's events cannot be had */
export function countResumes(): Resumes {
  const events = kernelEvents()
  const counts = new Map<string, number>()
  let isClosed = false
  let isWhole = true
  const fetch = () => {
    if (isClosed) return
    const came = events.read()
    isWhole &&= came !== undefined
    for (const each of came?.filter(isResume) ?? []) {
      const number = `${each.get('MAJOR')}:${each.get('MINOR')}`
      counts.set(number, (counts.get(number) ?? 0) + 1)
    }
  }
  const timer = setInterval(fetch, FETCH_MS).unref()
  return {
    of: ({ major, minor }) => {
      fetch()
      return isWhole ? (counts.get(`${major}:${minor}`) ?? 0) : Infinity
    },
    close: () => {
      if (isClosed) return
      fetch()
      isClosed = true
      clearInterval(timer)
      events.close()
    }
  }
}

/**
 * Whether an event announces that a device was resumed. `udevadm trigger` (SYNTH_UUID) and a table that makes a device
 * read-only or writable (DISK_RO) cause events of their own. Renaming a device looks like a resume.
 */
export function isResume(event: KernelEvent): boolean {
  return (
    event.get('ACTION') === 'change' &&
    event.get('SUBSYSTEM') === 'block' &&
    !event.has('SYNTH_UUID') &&
    !event.has('DISK_RO')
  )
}

function kernelEvents(): KernelEvents {
  try {
    return new KernelEvents()
  } catch (cause) {
    throw new DeltamapperError(
      'DM_PERMISSION',
      `the kernel's events about devices cannot be had (${(cause as Error).message}): it would not show if another program changed the volume`,
      systemRemedy(cause, "the kernel's events") ??
        'allow sockets of the family AF_NETLINK (RestrictAddressFamilies= of the unit, seccomp of the container)',
      { cause }
    )
  }
}
