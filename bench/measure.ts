/**
 * Timing and memory, the same way for everyone: medians of several runs, taken in turn so that a slow moment of the machine hits both
 * sides of a comparison.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'

/** The middle one; of an even number, the lower of the two. */
export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.ceil(values.length / 2) - 1]
}

/** One run of a program, from before it was started until it was gone. */
export interface ProcessRun {
  milliseconds: number
  /** Peak resident memory in MiB, as the kernel last told before the process ended. */
  peakMiB: number
  /** MiB that it had the kernel read from the disk. */
  readMiB: number
}

/** Runs a program whose output does not matter; throws unless it ends with status 0. @param stderr ignored where it only makes remarks */
export async function timeProcess(
  program: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  stderr: 'inherit' | 'ignore' = 'inherit'
): Promise<ProcessRun> {
  const began = performance.now()
  const child = spawn(program, args, { env, stdio: ['ignore', 'ignore', stderr] })
  const run = { milliseconds: 0, peakMiB: 0, readMiB: 0 }
  const look = () => {
    if (child.pid === undefined) return
    run.peakMiB = Math.max(run.peakMiB, peakMemoryMiB(child.pid))
    run.readMiB = Math.max(run.readMiB, bytesFromDisk(child.pid) / 2 ** 20)
  }
  const timer = setInterval(look, 10)
  const [status] = (await once(child, 'exit')) as [number | null]
  run.milliseconds = performance.now() - began
  clearInterval(timer)
  if (status !== 0) throw new Error(`${program} ended with status ${status}`)
  return run
}

/** One run of a program and of all that it has started and waited for. */
export interface TreeRun {
  milliseconds: number
  /** Processor time, user and system. */
  cpuMilliseconds: number
}

/** As bash's `time` has it. Throws unless the program ends with status 0. */
export async function timeTree(program: string, args: readonly string[], env: NodeJS.ProcessEnv): Promise<TreeRun> {
  const script = 'TIMEFORMAT="%3R %3U %3S"; time "$@" 2>&3'
  const stdio = ['ignore', 'ignore', 'pipe', 2] as const
  const child = spawn('bash', ['-c', script, 'bash', program, ...args], { env, stdio: [...stdio] })
  let text = ''
  child.stderr?.setEncoding('utf8').on('data', (chunk: string) => (text += chunk))
  const [status] = (await once(child, 'close')) as [number | null]
  if (status !== 0) throw new Error(`${program} ended with status ${status}: ${text}`)
  const [real = 0, user = 0, system = 0] = text.trim().split(' ').map(Number)
  return { milliseconds: real * 1000, cpuMilliseconds: (user + system) * 1000 }
}

/** Peak resident memory of a process in MiB (proc(5), VmHWM); 0 when it is gone. */
export function peakMemoryMiB(pid: number): number {
  return Number(/^VmHWM:\s+([0-9]+) kB$/m.exec(readProc(pid, 'status'))?.[1] ?? 0) / 1024
}

/** Processor time that a process has had so far, in seconds (proc(5), stat, utime and stime, in ticks of 10 ms). */
export function cpuSeconds(pid: number): number {
  const fields = readProc(pid, 'stat').split(') ')[1]?.split(' ') ?? []
  return (Number(fields[11]) + Number(fields[12])) / 100
}

/** The same in milliseconds, of the threads that it has now, and exact (proc(5), schedstat; Documentation/scheduler/sched-stats.rst). */
export function cpuMilliseconds(pid: number): number {
  const threads = readdirSync(`/proc/${pid}/task`)
  return threads.reduce((sum, thread) => sum + Number(readProc(pid, `task/${thread}/schedstat`).split(' ')[0]), 0) / 1e6
}

/** Resident memory of a process in MiB (proc(5), VmRSS); 0 when it is gone. */
export function residentMiB(pid: number): number {
  return Number(/^VmRSS:\s+([0-9]+) kB$/m.exec(readProc(pid, 'status'))?.[1] ?? 0) / 1024
}

function bytesFromDisk(pid: number): number {
  return Number(/^read_bytes: ([0-9]+)$/m.exec(readProc(pid, 'io'))?.[1] ?? 0)
}

function readProc(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8')
  } catch {
    return ''
  }
}
