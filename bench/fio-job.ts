/**
 * The job that a device is put under load with, inside the kernel lab: fio writes 4 KiB at random places of it, four writes at once, and asks
 * for a commit now and then, as a file system's journal does.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { parseArgs } from 'node:util'

/** Writes that are followed by an `fdatasync`. */
export const WRITES_PER_SYNC = 64
/** Writes that are under way together. */
export const QUEUE_DEPTH = 4

/** Where fio is (`ensureFio`). */
export interface Fio {
  readonly path: string
  readonly libraries: string
}

export interface WriteFigures {
  readonly writesPerSecond: number
  /** What a write took, in milliseconds: its mean, what 99 of 100 stay below, and the longest. */
  readonly meanMs: number
  readonly p99Ms: number
  readonly worstMs: number
}

interface FioReport {
  jobs: { write: { iops: number; clat_ns: { mean: number; max: number; percentile: Record<string, number> } } }[]
}

/** What a script is told that lab-load.ts starts: turns of each kind, and how many seconds one takes. */
export function loadArguments(): { fio: Fio; rounds: number; seconds: number } {
  const options = Object.fromEntries(
    ['fio', 'libraries', 'rounds', 'seconds'].map((name) => [name, { type: 'string', default: '' } as const])
  )
  const { fio, libraries, rounds, seconds } = parseArgs({ options }).values
  return { fio: { path: fio, libraries }, rounds: Number(rounds), seconds: Number(seconds) }
}

/** Runs the job for so many seconds. */
export async function writeAtRandom(device: string, seconds: number, fio: Fio): Promise<WriteFigures> {
  const job = ['--name=load', `--filename=${device}`, '--rw=randwrite', '--bs=4k', '--direct=1']
  const queue = ['--ioengine=libaio', `--iodepth=${QUEUE_DEPTH}`, `--fdatasync=${WRITES_PER_SYNC}`]
  const pace = ['--time_based', `--runtime=${seconds}`]
  const form = ['--output-format=json', '--randrepeat=1']
  const LD_LIBRARY_PATH = `${fio.libraries}:${process.env.LD_LIBRARY_PATH}`
  const child = spawn(fio.path, [...job, ...queue, ...pace, ...form], {
    env: { ...process.env, LD_LIBRARY_PATH },
    stdio: ['ignore', 'pipe', 'inherit']
  })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => (text += chunk))
  const [status] = (await once(child, 'close')) as [number | null]
  if (status !== 0) throw new Error(`fio ended with status ${status}: ${text}`)
  // Warnings may stand in front of it.
  const { jobs } = JSON.parse(text.slice(text.indexOf('{'))) as FioReport
  const { iops, clat_ns: took } = jobs[0].write
  return {
    writesPerSecond: iops,
    meanMs: took.mean / 1e6,
    p99Ms: took.percentile['99.000000'] / 1e6,
    worstMs: took.max / 1e6
  }
}
