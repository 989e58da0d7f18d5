/**
 * Somebody who works on files: makes, extends, overwrites, cuts, renames and removes them, syncs some, and has the file system trimmed now and
 * then. A process of its own, which waits while the file system is frozen, and goes on.
 *
 * Says how often it did what, as JSON, when it is told to end.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync
} from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Random } from '../support/random.ts'
import { run } from './dmsetup.ts'

const MOST_FILES = 60
const MOST_BYTES = 300_000
/** Between two things that it does, in milliseconds: the lab has one processor. */
const PAUSE_MS = 25

export type FileWorkloadCounts = Record<'made' | 'written' | 'cut' | 'renamed' | 'removed' | 'synced' | 'trims', number>

export class FileWorkload {
  readonly #child: ChildProcess
  #said = ''

  private constructor(child: ChildProcess) {
    this.#child = child
    child.stdout?.setEncoding('utf8').on('data', (text: string) => (this.#said += text))
  }

  /** Starts it in a folder of a mounted file system; resolves once it is at work. */
  static async start(folder: string, mountPoint: string, seed: number): Promise<FileWorkload> {
    const words = [fileURLToPath(import.meta.url), folder, mountPoint, String(seed)]
    const child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'] })
    const workload = new FileWorkload(child)
    await Promise.race([once(child.stdout, 'data'), once(child, 'exit')])
    return workload
  }

  /** Ends it. @throws when it had ended by itself: nobody was to be refused a write */
  async end(): Promise<FileWorkloadCounts> {
    const { exitCode, signalCode } = this.#child
    if (exitCode !== null || signalCode !== null)
      throw new Error(`the workload ended by itself (${exitCode ?? signalCode})`)
    const exit = once(this.#child, 'close')
    this.#child.kill('SIGTERM')
    const [status] = (await exit) as [number | null]
    if (status !== 0) throw new Error(`the workload ended with status ${String(status)}`)
    return JSON.parse(this.#said.trim().split('\n').at(-1) ?? '') as FileWorkloadCounts
  }

  /** For whoever has no more time. */
  kill(): void {
    this.#child.kill('SIGKILL')
  }
}

async function work(folder: string, mountPoint: string, random: Random): Promise<never> {
  const counts: FileWorkloadCounts = { made: 0, written: 0, cut: 0, renamed: 0, removed: 0, synced: 0, trims: 0 }
  process.on('SIGTERM', () => {
    console.log(JSON.stringify(counts))
    process.exit(0)
  })
  const buffer = Buffer.alloc(MOST_BYTES)
  mkdirSync(folder, { recursive: true })
  const files = readdirSync(folder)
  let made = files.reduce((most, each) => Math.max(most, Number(each.split('-')[1]) + 1), 0)
  const change = (name: string, what: (file: number) => void) => {
    const file = openSync(join(folder, name), 'r+')
    what(file)
    if (random.chance(0.3)) {
      fsyncSync(file)
      counts.synced++
    }
    closeSync(file)
  }
  const write = (name: string, from: number) => {
    const length = random.pick([100, 4096, random.integer(4, MOST_BYTES / 2)])
    for (let at = 0; at < length; at += 512) buffer.writeUInt32LE(random.uint32(), at)
    change(name, (file) => writeSync(file, buffer, 0, length, from))
    counts.written++
  }
  console.log('busy')
  for (let turn = 1; ; turn++) {
    const what = random.pick(['make', 'append', 'overwrite', 'cut', 'rename', 'remove'] as const)
    const name = files.length === 0 ? undefined : random.pick(files)
    if (name === undefined || (what === 'make' && files.length < MOST_FILES)) {
      const fresh = `file-${made++}`
      closeSync(openSync(join(folder, fresh), 'wx'))
      files.push(fresh)
      write(fresh, 0)
      counts.made++
    } else {
      const { size } = statSync(join(folder, name))
      if (what === 'append' && size < MOST_BYTES) write(name, size)
      else if (what === 'overwrite') write(name, random.integer(0, size))
      else if (what === 'cut') {
        change(name, (file) => ftruncateSync(file, random.integer(0, size)))
        counts.cut++
      } else if (what === 'rename') {
        const other = `file-${made++}`
        renameSync(join(folder, name), join(folder, other))
        files[files.indexOf(name)] = other
        counts.renamed++
      } else {
        unlinkSync(join(folder, name))
        files.splice(files.indexOf(name), 1)
        counts.removed++
      }
    }
    if (turn % 100 === 0) {
      trim(mountPoint)
      counts.trims++
    }
    await sleep(PAUSE_MS)
  }
}

/** @throws when it is not refused */
function trim(mountPoint: string): void {
  try {
    run('fstrim', [mountPoint])
  } catch (error) {
    if (/not supported/.test((error as Error).message)) return
    throw error
  }
  throw new Error(`${mountPoint} was trimmed`)
}

if (import.meta.main) {
  const [folder = '', mountPoint = '', seed = ''] = process.argv.slice(2)
  await work(folder, mountPoint, new Random(Number(seed)))
}
