/**
 * What other processes are at, as /proc tells: whether one that was killed is really gone, and who waits for device-mapper. As far as they
 * can be seen from here: in a container with processes of its own, that is those of the container; and what others have open takes
 * CAP_SYS_PTRACE.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

/** Where device-mapper is asked. */
const CONTROL = '/dev/mapper/control'

interface RunningProcess {
  readonly pid: number
  readonly name: string
  /** One letter, as in proc(5): `D` waits in the kernel, and no signal reaches it; `Z` and `X` are no more. */
  readonly state: string
  readonly group: number
}

/** Whether a process of this group is left. Those that nobody has asked for their exit status are not. */
export function groupRuns(group: number): boolean {
  return processes().some((each) => each.group === group && !/[ZX]/.test(each.state))
}

/** A process that waits in the kernel. */
export interface WaitingProcess {
  readonly pid: number
  readonly name: string
  /** The same as long as it has not stopped waiting for what it waits for. */
  readonly wait: string
}

/** Those that wait in the kernel, with device-mapper open: for a status of a suspended device, if there is one. Without a pause in between. */
export function waitingForDeviceMapper(): WaitingProcess[] {
  return processes().flatMap(({ pid, name, state }) => {
    if (state !== 'D') return []
    const folder = `/proc/${pid}/fd`
    const files = tried(() => readdirSync(folder)) ?? []
    if (!files.some((each) => tried(() => readlinkSync(`${folder}/${each}`)) === CONTROL)) return []
    // Whoever has run meanwhile was switched to.
    const status = tried(() => readFileSync(`/proc/${pid}/status`, 'utf8')) ?? ''
    const switches = [...status.matchAll(/^(?:non)?voluntary_ctxt_switches:\s*(\d+)$/gm)].map(([, count]) => count)
    return [{ pid, name, wait: `${pid} ${switches.join(' ')}` }]
  })
}

/** A line of /proc/PID/stat: proc(5). Undefined for any other text. */
export function parseProcess(line: string): RunningProcess | undefined {
  // A name may hold anything, brackets and spaces too.
  const [, pid, name = '', state = '', group] = /^(\d+) \((.*)\) (\S) -?\d+ (-?\d+) /s.exec(line) ?? []
  return pid === undefined ? undefined : { pid: Number(pid), name, state, group: Number(group) }
}

function processes(): RunningProcess[] {
  const pids = readdirSync('/proc').filter((each) => /^\d+$/.test(each))
  return pids.flatMap((pid) => parseProcess(tried(() => readFileSync(`/proc/${pid}/stat`, 'utf8')) ?? '') ?? [])
}

/** Undefined for what has ended meanwhile, or is not to be seen. */
function tried<T>(look: () => T): T | undefined {
  try {
    return look()
  } catch {
    return undefined
  }
}
