/**
 * What the lives of a kernel with classic snapshots (cow-kernel-life.ts) leave to each other, in files of the host's:
 * what was done has to be there in the next life, what was only begun may be. What a snapshot held when it was taken is
 * in a file of its own.
 */
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import type { LifeSnapshot } from './cow-life.ts'

type Entry =
  | { kind: 'taking' | 'removing' | 'merging' | 'removed'; name: string }
  | { kind: 'taken'; name: string; snapshot: LifeSnapshot }
  | CowLifeChecked

/** What a life has found. */
export interface CowLifeChecked {
  readonly kind: 'checked'
  /** Whose answers were right, or refused as they have to be. */
  readonly pairs: number
  readonly refused: Readonly<Record<string, number>>
  /** A merge was under way when the kernel was killed. */
  readonly merging: boolean
}

interface Journalled {
  state: 'taking' | 'taken' | 'removing' | 'merging'
  snapshot: LifeSnapshot | undefined
}

export class CowKernelJournal {
  /** By name, in the order in which they were taken. */
  readonly snapshots = new Map<string, Journalled>()
  readonly checked: CowLifeChecked[] = []
  /** How many were begun in all. */
  taken = 0
  readonly #path: string

  constructor(path: string) {
    this.#path = path
    if (!existsSync(path)) return
    for (const line of readFileSync(path, 'utf8').trimEnd().split('\n')) {
      const entry = JSON.parse(line) as Entry
      if (entry.kind === 'taken') {
        const { name, snapshot } = entry
        // (They are files of the host's, and the lives are over when the report is made.)
        const backup = existsSync(this.#backup(name)) ? readFileSync(this.#backup(name)) : Buffer.alloc(0)
        this.#take({ ...entry, snapshot: { ...snapshot, backup } })
      } else this.#take(entry)
    }
  }

  /** On the host when this returns; a line is written by one call, so that a kill cuts none short. */
  say(entry: Entry): void {
    this.#take(entry)
    let line: unknown = entry
    if (entry.kind === 'taken') {
      const { backup, ...rest } = entry.snapshot
      writeFileSync(this.#backup(entry.name), backup)
      line = { ...entry, snapshot: rest }
    }
    appendFileSync(this.#path, `${JSON.stringify(line)}\n`)
  }

  #backup(name: string): string {
    return `${this.#path}-${name}`
  }

  #take(entry: Entry): void {
    if (entry.kind === 'checked') this.checked.push(entry)
    else if (entry.kind === 'removed') this.snapshots.delete(entry.name)
    else if (entry.kind === 'taking') {
      this.taken++
      this.snapshots.set(entry.name, { state: 'taking', snapshot: undefined })
    } else {
      const snapshot = entry.kind === 'taken' ? entry.snapshot : this.snapshots.get(entry.name)?.snapshot
      this.snapshots.set(entry.name, { state: entry.kind, snapshot })
    }
  }
}
