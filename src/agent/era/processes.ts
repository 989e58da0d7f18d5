/**
 * What other processes are at, as /proc tells: whether one that was killed is really gone, and who waits for device-mapper. As far as they
 * can be seen from here: in a container with processes of its own, that is those of the container; and what others have open takes
 * CAP_SYS_PTRACE.
 */
import { readdir, readFile, readlink } from 'node:fs/promises'

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
export async function groupRuns(group: number): Promise<boolean> {
  return (await processes()).some((each) => each.group === group && !/[ZX]/.test(each.state))
}

/** Those that wait in the kernel, with device-mapper open: for a status of a suspended device, if there is one. */
export async function waitingForDeviceMapper(): Promise<RunningProcess[]> {
  const waiting = (await processes()).filter(({ state }) => state === 'D')
  const open = await Promise.all(
    waiting.map(async ({ pid }) => {
      const folder = `/proc/${pid}/fd`
      const files = await readdir(folder).catch(() => [])
      const targets = await Promise.all(files.map((each) => readlink(`${folder}/${each}`).catch(() => '')))
      return targets.includes(CONTROL)
    })
  )
  return waiting.filter((_, i) => open[i])
}

/** A line of /proc/PID/stat: proc(5). Undefined for any other text. */
export function parseProcess(line: string): RunningProcess | undefined {
  // A name may hold anything, brackets and spaces too.
  const [, pid, name = '', state = '', group] = /^(\d+) \((.*)\) (\S) -?\d+ (-?\d+) /s.exec(line) ?? []
  return pid === undefined ? undefined : { pid: Number(pid), name, state, group: Number(group) }
}

async function processes(): Promise<RunningProcess[]> {
  const pids = (await readdir('/proc')).filter((each) => /^\d+$/.test(each))
  // Those that end meanwhile have none.
  const lines = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')))
  return lines.flatMap((line) => parseProcess(line) ?? [])
}
