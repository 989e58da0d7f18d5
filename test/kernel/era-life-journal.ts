/**
 * What the lives of a kernel in which a volume is tracked (era-life.ts) leave to each other, in files of the host's: which snapshots there have
 * to be, and what was in them.
 */
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs'
import { readJournal } from './kernel-life-journal.ts'

type Entry =
  /** The volume is tracked, or its history has begun anew for a reason. */
  | { kind: 'line'; line: string }
  | { kind: 'taking' | 'taken' | 'lost' | 'removing' | 'removed'; name: string }
  /** What was in it is in a file of its own. */
  | { kind: 'content'; name: string }
  | EraLifeChecked

/** What a life has found. */
export interface EraLifeChecked {
  readonly kind: 'checked'
  readonly life: number
  /** Answers that had everything that differs, and how many blocks those were. */
  readonly answers: number
  readonly differing: number
  /** Answers that were refused, because the history is void in between. */
  readonly refused: number
  /** Whether the last life left something unfinished, and a metadata snapshot that only a person could drop. */
  readonly settled: boolean
  readonly ambiguous: boolean
}

export interface JournalledEraSnapshot {
  readonly line: string
  /** The kernel was killed while it was being taken: it is there, or not. */
  unsure: boolean
  /** What is below is there, may be, or is not. */
  below: 'there' | 'unsure' | 'gone'
  /** What was in it, block by block; undefined as long as nobody has looked. */
  content: readonly string[] | undefined
}

export class EraLifeJournal {
  /** Undefined before anything is tracked. */
  line: string | undefined
  /** By name, in the order in which they were taken. */
  readonly snapshots = new Map<string, JournalledEraSnapshot>()
  readonly checked: EraLifeChecked[] = []
  /** Snapshots that were begun, and were lost with a kernel. */
  lost = 0
  readonly #path: string

  constructor(path: string) {
    this.#path = path
    for (const entry of readJournal<Entry>(path)) this.#take(entry)
  }

  /** On the host when this returns; a line is written by one call, so that a kill cuts none short. */
  say(entry: Exclude<Entry, { kind: 'content' }>): void {
    this.#take(entry)
    this.#append(entry)
  }

  sayContent(name: string, content: readonly string[]): void {
    writeFileSync(this.#contentOf(name), JSON.stringify(content))
    this.#append({ kind: 'content', name })
    this.#snapshot(name).content = content
  }

  #append(entry: Entry): void {
    appendFileSync(this.#path, `${JSON.stringify(entry)}\n`)
  }

  #take(entry: Entry): void {
    switch (entry.kind) {
      case 'line':
        this.line = entry.line
        break
      case 'taking':
        this.snapshots.set(entry.name, { line: this.line ?? '', unsure: true, below: 'there', content: undefined })
        break
      case 'taken':
        this.#snapshot(entry.name).unsure = false
        break
      case 'lost':
        this.snapshots.delete(entry.name)
        this.lost++
        break
      case 'content':
        this.#snapshot(entry.name).content = JSON.parse(readFileSync(this.#contentOf(entry.name), 'utf8')) as string[]
        break
      case 'removing':
        this.#snapshot(entry.name).below = 'unsure'
        break
      case 'removed':
        this.#snapshot(entry.name).below = 'gone'
        break
      case 'checked':
        this.checked.push(entry)
    }
  }

  #snapshot(name: string): JournalledEraSnapshot {
    const snapshot = this.snapshots.get(name)
    if (!snapshot) throw new Error(`there is no snapshot ${name}`)
    return snapshot
  }

  #contentOf(name: string): string {
    return `${this.#path}.${name}`
  }
}
