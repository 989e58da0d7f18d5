/**
 * A process within a limit of memory, as a container's: a memory cgroup (of either version) where one can be made, else what /proc says of its
 * resident memory, looked at often.
 */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const LOOK_EVERY_MS = 100

/** Bytes of memory that a process holds; undefined when it is gone. */
export function residentBytes(pid: number): number | undefined {
  try {
    return 1024 * Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1])
  } catch {
    return undefined
  }
}

export class MemoryLimit {
  /** How the limit is kept. */
  readonly means: string
  readonly #pid: number
  readonly #bytes: number
  readonly #group: string | undefined
  readonly #timer: NodeJS.Timeout
  #peak = 0

  /** @param bytes the process is killed where it needs more */
  constructor(pid: number, bytes: number) {
    this.#pid = pid
    this.#bytes = bytes
    this.#group = makeGroup(pid, bytes)
    this.means = this.#group
      ? `a memory cgroup, ${this.#group}`
      : 'resident memory as /proc says: no cgroup can be made here'
    this.#timer = setInterval(() => this.#look(), LOOK_EVERY_MS)
  }

  /** The most that it has held, in bytes. */
  get peak(): number {
    return this.#peak
  }

  get held(): number {
    return residentBytes(this.#pid) ?? 0
  }

  /** Once the process has ended. */
  end(): void {
    clearInterval(this.#timer)
    if (this.#group !== undefined) rmdirSync(this.#group)
  }

  #look(): void {
    this.#peak = Math.max(this.#peak, this.held)
    if (this.#group === undefined && this.held > this.#bytes) process.kill(this.#pid, 'SIGKILL')
  }
}

function makeGroup(pid: number, bytes: number): string | undefined {
  for (const [root, limit] of [
    ['/sys/fs/cgroup/memory', 'memory.limit_in_bytes'],
    ['/sys/fs/cgroup', 'memory.max']
  ]) {
    const group = join(root, `deltamapper-hostile-${pid}`)
    try {
      mkdirSync(group)
    } catch {
      continue
    }
    try {
      if (!existsSync(join(group, limit))) throw new Error('no memory controller')
      writeFileSync(join(group, limit), String(bytes))
      writeFileSync(join(group, 'cgroup.procs'), String(pid))
      return group
    } catch {
      try {
        rmdirSync(group)
      } catch {
        // Of a file system that is no cgroup's, for one.
      }
    }
  }
  return undefined
}
