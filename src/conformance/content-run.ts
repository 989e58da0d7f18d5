/**
 * The content rules at work: volumes are made, written by a history, and kept as snapshots; what the driver then says
 * is held against what was really written. Everything that is made is removed, whatever happens.
 */
import { open, readFile } from 'node:fs/promises'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { invalid } from '../errors.ts'
import type { Asker } from './asker.ts'
import { CONTENT } from './content.ts'
import type { ContentRecord } from './content-record.ts'
import { deviceBytes } from './device.ts'
import { type Change, firstLoad, histories, someWrites, type Written } from './histories.ts'
import { missing, type Range, rangesOf, totalBytes, union } from './ranges.ts'
import { isOk, type StreamCall } from './run.ts'
import { ended } from './rule.ts'
import { Cleanup, type Storage } from './storage.ts'
import { SECTOR_BYTES } from '../units.ts'

/** Ranges that were lost, as many as are kept. */
const LOST_KEPT = 100

/** What is compared: a snapshot, and what its volume held when it was taken. */
interface Taken {
  readonly id: string
  readonly content: Buffer
}

export interface ContentRun {
  /** Bytes of each volume. */
  readonly sizeBytes: number
  /** Names; all unless given. */
  readonly histories?: readonly string[] | undefined
  /** Told of what could not be removed. */
  readonly onLeftBehind: (what: string) => void
}

/** @throws DM_ARGUMENT_INVALID for a history that there is not; the signal's reason */
export async function runContent(
  asker: Asker,
  storage: Storage,
  { sizeBytes, histories: chosen, onLeftBehind }: ContentRun
): Promise<void> {
  const cleanup = new Cleanup(storage)
  const clean = async () => (await cleanup.run()).forEach(onLeftBehind)
  asker.rule = CONTENT
  const laboratory = new Laboratory(asker, storage, cleanup, sizeBytes)
  const all = [...Object.keys(histories), ...Object.keys(laboratory.others)]
  const unknown = chosen?.find((name) => !all.includes(name))
  if (unknown !== undefined) {
    throw invalid(`there is no history ${unknown}`, `name some of ${all.join(', ')}`)
  }
  try {
    for (const name of chosen ?? all) {
      asker.signal.throwIfAborted()
      if (asker.millisecondsLeft < 1000) laboratory.failed(name, 'no time was left for it')
      else await laboratory.history(name)
      await clean()
    }
  } finally {
    await clean()
  }
}

/** What a record has to say of a history that has come to nothing. */
const nothing = { deviceBytes: 0, capacityBytes: null, changedBytes: 0, reportedBytes: 0, lost: [] }

class Laboratory {
  readonly #asker: Asker
  readonly #storage: Storage
  readonly #cleanup: Cleanup
  readonly #sizeBytes: number
  readonly #prefix: string
  #made = 0

  constructor(asker: Asker, storage: Storage, cleanup: Cleanup, sizeBytes: number) {
    this.#asker = asker
    this.#storage = storage
    this.#cleanup = cleanup
    this.#sizeBytes = sizeBytes
    // Of this run alone: two may go on side by side.
    this.#prefix = `conf-${process.pid.toString(36)}-${Date.now().toString(36)}`
  }

  /** Histories that are more than a change. */
  readonly others: Readonly<Record<string, (name: string) => Promise<void>>> = {
    'three-snapshots': async (name) => {
      const { volume, base, device } = await this.#loaded()
      const middle = await this.#changed(volume, device, someWrites)
      const target = await this.#changed(volume, device, someWrites)
      for (const [from, to] of [
        [base, middle],
        [middle, target],
        [base, target]
      ] as const) {
        await this.#compare(name, from, to)
      }
    },
    grown: async (name) => {
      const { grow } = this.#storage
      if (grow === undefined) return this.#skipped(name, 'volumes cannot be made larger')
      const { volume, base, device } = await this.#loaded()
      await grow(volume, this.#sizeBytes * 2)
      await this.#compare(name, base, await this.#changed(volume, device, someWrites))
    },
    'restored-base': async (name) => {
      const { base: origin } = await this.#loaded()
      const { volume, device } = await this.#restored(origin)
      const base = await this.#taken(volume, device)
      await this.#compare(name, base, await this.#changed(volume, device, someWrites))
    },
    'restored-in-use': async (name) => {
      const { volume, base, device } = await this.#loaded()
      const target = await this.#changed(volume, device, someWrites)
      const restored = await this.#restored(target)
      await this.#while(restored.device, () => this.#compare(name, base, target))
    },
    'source-in-use': async (name) => {
      const { volume, base, device } = await this.#loaded()
      const target = await this.#changed(volume, device, someWrites)
      await this.#while(device, () => this.#compare(name, base, target))
    },
    'base-deleted': async (name) => {
      const { volume, base, device } = await this.#loaded()
      const target = await this.#changed(volume, device, someWrites)
      await this.#storage.deleteSnapshot(base.id)
      this.#cleanup.gone(base.id)
      const call = await this.#asker.stream('base deleted', { base: base.id, target: target.id })
      if (isOk(call.end)) this.#record(name, base, target, call, target.content.length)
    }
  }

  /**
   * One history, from an empty volume to its verdict. What goes wrong with volumes and snapshots is recorded,
   * and ends the history only.
   */
  async history(name: string): Promise<void> {
    try {
      const change = histories[name]
      if (change === undefined) return await this.others[name](name)
      const { volume, base, device } = await this.#loaded()
      const target = await this.#changed(volume, device, change)
      await this.#compare(name, base, target)
    } catch (error) {
      this.#asker.signal.throwIfAborted()
      this.failed(name, (error as Error).message)
    }
  }

  failed(history: string, failure: string): void {
    for (const base of [null, '']) this.#add({ kind: 'content', history, base, target: '', ...nothing, failure })
  }

  #skipped(history: string, skipped: string): void {
    this.#add({ kind: 'content', history, base: '', target: '', ...nothing, failure: null, skipped })
  }

  #name(): string {
    return `${this.#prefix}-${++this.#made}`
  }

  /** A volume with something in it, and its first snapshot. */
  async #loaded(): Promise<{ volume: string; device: string; base: Taken }> {
    const volume = this.#name()
    this.#cleanup.made('volume', volume)
    const device = await this.#storage.create(volume, this.#sizeBytes)
    return { volume, device, base: await this.#changed(volume, device, firstLoad) }
  }

  async #restored({ id }: Taken): Promise<{ volume: string; device: string }> {
    const volume = this.#name()
    this.#cleanup.made('volume', volume)
    return { volume, device: await this.#storage.restore(id, volume) }
  }

  async #changed(volume: string, device: string, change: Change): Promise<Taken> {
    this.#asker.signal.throwIfAborted()
    await this.#writing(device, change)
    return this.#taken(volume, device)
  }

  async #writing(device: string, change: Change): Promise<void> {
    await using file = await open(device, 'r+')
    const { discard } = this.#storage
    const written: Written = {
      file,
      random: this.#asker.random,
      sizeBytes: await deviceBytes(device),
      discard: discard && ((offset, length) => discard(device, offset, length))
    }
    await change(written)
    await file.sync()
  }

  async #taken(volume: string, device: string): Promise<Taken> {
    const content = await readFile(device)
    const id = await this.#storage.snapshot(volume, this.#name())
    this.#cleanup.made('snapshot', id)
    return { id, content }
  }

  /** Writes and reads a device all the while. @throws what kept it from that: then it was not in use */
  async #while(device: string, work: () => Promise<void>): Promise<void> {
    let over = false
    const busy = (async () => {
      while (!over) {
        await this.#writing(device, someWrites)
        await readFile(device)
        await nextTurn()
      }
    })()
    // Handled from the start: it may fail long before the work is done.
    const ended = busy.catch(() => undefined)
    try {
      await work()
    } finally {
      over = true
      await ended
    }
    await busy
  }

  /** Restores the target, and holds both answers against what was written. */
  async #compare(history: string, base: Taken, target: Taken): Promise<void> {
    const { volume, device } = await this.#restored(target)
    const restored = await readFile(device)
    const bytes = await deviceBytes(device)
    await this.#storage.deleteVolume(volume)
    this.#cleanup.gone(volume)
    const same = restored.equals(target.content)
    const failure = same ? null : 'the restored volume is not what the snapshot was taken of'
    const zeroes = { id: '', content: Buffer.alloc(0) }
    this.#record(history, zeroes, target, await this.#ask(null, target), bytes, failure)
    this.#record(history, base, target, await this.#ask(base, target), bytes, failure)
  }

  /** Asked again where the driver says that it is busy. */
  async #ask(base: Taken | null, target: Taken): Promise<StreamCall> {
    const question = { base: base?.id ?? null, target: target.id }
    const call = await this.#asker.stream('content', question)
    const busy = call.end.how === 'status' && [10, 14].includes(call.end.code)
    return busy ? this.#asker.stream('content', question) : call
  }

  #record(
    history: string,
    base: Taken,
    target: Taken,
    { answer, end }: StreamCall,
    bytes: number,
    failure: string | null = null
  ): void {
    const changed = differences(base.content, target.content)
    const reported = union(rangesOf(answer.named))
    const lost = isOk(end) ? missing(changed, reported) : []
    this.#add({
      kind: 'content',
      history,
      base: base.id === '' ? null : base.id,
      target: target.id,
      deviceBytes: bytes,
      capacityBytes: answer.capacityBytes,
      changedBytes: totalBytes(changed),
      reportedBytes: totalBytes(reported),
      lost: lost.slice(0, LOST_KEPT).flat(),
      failure: isOk(end) ? failure : ended(end)
    })
  }

  #add(record: ContentRecord): void {
    this.#asker.run.calls.push({ ...record, rule: CONTENT, label: record.history, milliseconds: 0 })
  }
}

/** Sectors in which two contents differ, as ranges of bytes; behind the end of the shorter one there are zeroes. */
function differences(base: Buffer, target: Buffer): Range[] {
  const ranges: [number, number][] = []
  const zeroes = Buffer.alloc(SECTOR_BYTES)
  for (let at = 0; at < target.length; at += SECTOR_BYTES) {
    const before = at < base.length ? base.subarray(at, at + SECTOR_BYTES) : zeroes
    if (before.equals(target.subarray(at, at + SECTOR_BYTES))) continue
    const last = ranges.at(-1)
    if (last?.[1] === at) last[1] = at + SECTOR_BYTES
    else ranges.push([at, at + SECTOR_BYTES])
  }
  return ranges
}
