/**
 * What a boundary asks of its machine, besides what is asked about a tracked device: where it is mounted, who
 * resumes it, and the process that ends a suspension if the agent does not.
 */
import type { DeviceInfo } from '../../../../native/device-mapper.ts'
import { thisMachine, type TrackedMachine } from '../device/machine.ts'
import { mountPoints } from './mounted.ts'
import { countResumes } from './resumes.ts'
import { Watchdog, type WatchdogStart } from './watchdog.ts'

export type WatchdogOf = Pick<Watchdog, 'lost' | 'suspend' | 'resume' | 'end' | 'kill'>

export interface BoundaryMachine extends TrackedMachine {
  readonly mountPoints: (device: DeviceInfo) => Promise<string[]>
  readonly countResumes: typeof countResumes
  readonly startWatchdog: (start: WatchdogStart) => Promise<WatchdogOf>
}

export const thisBoundaryMachine: BoundaryMachine = {
  ...thisMachine,
  mountPoints,
  countResumes,
  startWatchdog: (start) => Watchdog.start(start)
}
