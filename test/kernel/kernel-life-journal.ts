/**
 * What the lives of a kernel that is killed again and again (kernel-life.ts) leave to each other, in a file of the host's: what was done
 * has to be there in the next life, what was only begun may be.
 */
import { appendFileSync, existsSync, readFileSync } from 'node:fs'
import type { LeaseRecord } from '../../src/agent/catalog/lease.ts'
import type { RawThin } from './raw-pool.ts'

export type PoolName = 'raw' | 'own'

/** What a catalog says of the lease of a pool. */
export type LeaseFound = LeaseRecord['state'] | 'none'

export type JournalEntry =
  /** From the first life: where somebody else's metadata snapshot lies, and a checksum of its block. */
  | { kind: 'set up'; foreignRoot: string; foreignContent: string }
  | { kind: 'taking'; pool: PoolName; name: string; thinId: number; content: [block: number, write: number][] }
  | { kind: 'taken' | 'removing' | 'removed'; pool: PoolName; name: string }
  /** A message of an answer about it has arrived. */
  | { kind: 'served'; handle: string }
  | LifeChecked

/** What a life has found. */
export interface LifeChecked {
  kind: 'checked'
  life: number
  /** Answers that were right. */
  answers: number
  lease: LeaseFound
  /** Whether the kernel held a metadata snapshot, before the agent was started. */
  heldBefore: boolean
  /** Whether that one could not be told from somebody else's, and was left to a person. */
  ambiguous: boolean
}

export interface JournalledSnapshot extends RawThin {
  /** The kernel was killed while it was being taken or removed: it is there, or not. */
  unsure: boolean
}

/** Of any of the journals of lives. (A line is written by one call, so that a kill cuts none short.) */
export function readJournal<Entry = JournalEntry>(path: string): Entry[] {
  if (!existsSync(path)) return []
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n')
  return lines.map((line) => JSON.parse(line) as Entry)
}

export class Journal {
  setUp: Extract<JournalEntry, { kind: 'set up' }> | undefined
  readonly served = new Set<string>()
  readonly #path: string
  readonly #volumeBlocks: number
  readonly #snapshots = { raw: new Map<string, JournalledSnapshot>(), own: new Map<string, JournalledSnapshot>() }

  constructor(path: string, volumeBlocks: number) {
    this.#path = path
    this.#volumeBlocks = volumeBlocks
    for (const entry of readJournal(path)) this.#take(entry)
  }

  /** On the host when this returns. */
  say(entry: JournalEntry): void {
    this.#take(entry)
    appendFileSync(this.#path, `${JSON.stringify(entry)}\n`)
  }

  /** Its snapshots by name, oldest first. */
  of(pool: PoolName): ReadonlyMap<string, JournalledSnapshot> {
    return this.#snapshots[pool]
  }

  #take(entry: JournalEntry): void {
    switch (entry.kind) {
      case 'set up':
        this.setUp = entry
        break
      case 'taking': {
        const { pool, name, thinId, content } = entry
        const what = { thinId, blocks: this.#volumeBlocks, content: new Map(content), isSnapshot: true }
        this.#snapshots[pool].set(name, { ...what, unsure: true })
        break
      }
      case 'taken':
      case 'removing':
        this.#snapshots[entry.pool].get(entry.name)!.unsure = entry.kind === 'removing'
        break
      case 'removed':
        this.#snapshots[entry.pool].delete(entry.name)
        break
      case 'served':
        this.served.add(entry.handle)
        break
      case 'checked':
        break
    }
  }
}
