/**
 * The state of other processes, from /proc: whether a killed process is really gone, and which ones wait for
 * device-mapper. A container with its own PID namespace sees only its own processes. Seeing what others have open takes
 * CAP_SYS_PTRACE.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

/** The device node of device-mapper's control interface. */
const CONTROL = '/dev/mapper/control'

interface RunningProcess {
  readonly pid: number
  readonly name: string
  /** One letter, as in proc(5): `D` waits in the kernel, where no signal reaches it; `Z` and `X` have ended. */
  readonly state: string
  readonly group: number
}

/** Whether a process of this group is left. Zombies do not count. */
export function groupRuns(group: number): boolean {
  return processes().some((each) => each.group === group && !/[ZX]/.test(each.state))
}

/** A process that waits in the kernel. */
export interface WaitingProcess {
  readonly pid: number
  readonly name: string
  /** Equal as long as the process has not run since. */
  readonly wait: string
}

/**
 * Processes that wait in the kernel with device-mapper open: for the status of a suspended device, if there is one. It
 * makes no pause in between.
 */
export function waitingForDeviceMapper(): WaitingProcess[] {
  return processes().flatMap(({ pid, name, state }) => {
    if (state !== 'D') return []
    const folder = `/proc/${pid}/fd`
    const files = tried(() => readdirSync(folder)) ?? []
    if (!files.some((each) => tried(() => readlinkSync(`${folder}/${each}`)) === CONTROL)) return []
    // A process that has run meanwhile has another count of context switches.
    const status = tried(() => readFileSync(`/proc/${pid}/status`, 'utf8')) ?? ''
    const switches = [...status.matchAll(/^(?:non)?voluntary_ctxt_switches:\s*(\d+)$/gm)].map(([, count]) => count)
    return [{ pid, name, wait: `${pid} ${switches.join(' ')}` }]
  })
}

/** A line of /proc/PID/stat: proc(5). Undefined for any other text. */
export function parseProcess(line: string): RunningProcess | undefined {
  // A name may contain anything, including brackets and spaces.
  const [, pid, name = '', state = '', group] = /^(\d+) \((.*)\) (\S) -?\d+ (-?\d+) /s.exec(line) ?? []
  return pid === undefined ? undefined : { pid: Number(pid), name, state, group: Number(group) }
}

function processes(): RunningProcess[] {
  const pids = readdirSync('/proc').filter((each) => /^\d+$/.test(each))
  return pids.flatMap((pid) => parseProcess(tried(() => readFileSync(`/proc/${pid}/stat`, 'utf8')) ?? '') ?? [])
}

/** Undefined if the process has ended meanwhile, or is not visible. */
function tried<T>(look: () => T): T | undefined {
  try {
    return look()
  } catch {
    return undefined
  }
}
