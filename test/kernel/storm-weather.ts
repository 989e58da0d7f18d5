/**
 * The storm: a thread that writes to a volume, takes and deletes snapshots of it, and does everything to some snapshots of its own
 * (written to, discarded in, deleted, replaced under the same thin id) that nobody should do to one that is being read. It says what
 * it does and when, so that an answer can be held against everything that it may have seen.
 */
import { once } from 'node:events'
import { closeSync, constants, fsyncSync, openSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { Random } from '../support/random.ts'
import { discard } from './discard.ts'
import { alignedBuffer, sectorBytes } from './dmsetup.ts'

export interface StormOptions {
  readonly seed: number
  readonly pool: string
  /** The volume that is written to: a device of this name and size, with `blocks` blocks. */
  readonly volume: string
  readonly volumeId: number
  readonly blocks: number
  readonly blockBytes: number
  /** Thin ids of snapshots that stay as they are, which the storm's own ones are taken of. */
  readonly stable: readonly number[]
  /** Thin ids of the storm's own snapshots: one each, again and again. */
  readonly slots: readonly number[]
}

/** What became of a slot: another snapshot, a block that was touched, or nothing there. */
export type Happening =
  | { readonly kind: 'created'; readonly name: string; readonly of: number }
  | { readonly kind: 'written' | 'discarded'; readonly block: number }
  | { readonly kind: 'deleted' }

/** Said when it begins (with what it will be) and when the pool has committed it. Nanoseconds of the machine's monotonic clock. */
export interface SlotEvent {
  readonly slot: number
  readonly phase: 'begins' | 'done'
  readonly at: bigint
  readonly happening: Happening
}

export interface StormCounts {
  writes: number
  flushes: number
  discards: number
  snapshots: number
  deletions: number
  /** Times that a foreign metadata snapshot was taken. */
  reservations: number
}

type ToStorm = 'stop' | { readonly ping: number }
type FromStorm =
  | { readonly kind: 'slot'; readonly event: SlotEvent }
  | { readonly kind: 'pong'; readonly ping: number; readonly counts: StormCounts; readonly held: boolean }
  | { readonly kind: 'failed'; readonly why: string }

export class Storm {
  readonly #worker: Worker
  readonly #gone: Promise<unknown>
  #pings = 0
  #ponged = 0
  /** Whoever waits for news; several walks do at once. */
  #waiting: (() => void)[] = []
  #failure: string | undefined
  counts: StormCounts = { writes: 0, flushes: 0, discards: 0, snapshots: 0, deletions: 0, reservations: 0 }
  /** Whether somebody held a metadata snapshot when it was last asked. */
  held = false

  /** @param onSlotEvent told of everything in order; `settle` says when everything up to now has been told */
  constructor(options: StormOptions, onSlotEvent: (event: SlotEvent) => void) {
    this.#worker = new Worker(new URL(import.meta.url), { workerData: options })
    this.#gone = once(this.#worker, 'exit')
    this.#worker.on('message', (message: FromStorm) => {
      if (message.kind === 'slot') onSlotEvent(message.event)
      else if (message.kind === 'failed') this.#failure = message.why
      else {
        this.#ponged = message.ping
        this.counts = message.counts
        this.held = message.held
      }
      this.#wake()
    })
    this.#worker.on('error', (error) => {
      this.#failure = String(error)
      this.#wake()
    })
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve()
  }

  /** Resolves once everything that the storm began before now has been told. */
  async settle(): Promise<void> {
    const ping = ++this.#pings
    this.#worker.postMessage({ ping } satisfies ToStorm)
    while (this.#ponged < ping && this.#failure === undefined) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
    }
    if (this.#failure !== undefined) throw new Error(`the storm failed: ${this.#failure}`)
  }

  /** Ends it in the middle of whatever it does. */
  async abandon(): Promise<void> {
    await this.#worker.terminate()
  }

  /** Everything of its own is gone when this resolves. */
  async stop(): Promise<void> {
    await this.settle()
    this.#worker.postMessage('stop' satisfies ToStorm)
    await this.#gone
    if (this.#failure !== undefined) throw new Error(`the storm failed: ${this.#failure}`)
  }
}

if (!isMainThread && parentPort) await rage(parentPort, workerData as StormOptions)

async function rage(port: NonNullable<typeof parentPort>, options: StormOptions): Promise<void> {
  const { pool, volumeId, blocks, blockBytes, stable, slots } = options
  const random = new Random(options.seed)
  const say = (message: FromStorm) => port.postMessage(message)
  const counts: StormCounts = { writes: 0, flushes: 0, discards: 0, snapshots: 0, deletions: 0, reservations: 0 }
  const deviceMapper = new DeviceMapper({ patienceMs: 10_000 })
  const tell = (text: string) => deviceMapper.message(pool, text)
  const open = (name: string) => openSync(`/dev/mapper/${name}`, constants.O_RDWR | constants.O_DIRECT)
  const sector = alignedBuffer(sectorBytes)
  const volume = open(options.volume)
  /** What is in each slot: a device that is open. */
  const living = new Map<number, { name: string; file: number }>()
  /** Thin ids of snapshots that are only there to be deleted. */
  const passing: number[] = []
  let nextPassing = 1_000_000
  let names = 0
  let held = false
  let stopping = false
  port.on('message', (message: ToStorm) => {
    if (message === 'stop') stopping = true
    else say({ kind: 'pong', ping: message.ping, counts: { ...counts }, held })
  })

  const happens = async (slot: number, happening: Happening, act: () => Promise<void> | void) => {
    say({ kind: 'slot', event: { slot, phase: 'begins', at: process.hrtime.bigint(), happening } })
    await act()
    say({ kind: 'slot', event: { slot, phase: 'done', at: process.hrtime.bigint(), happening } })
  }
  const create = async (slot: number) => {
    const [name, of] = [`storm-${slot}-${++names}`, random.integer(0, stable.length - 1)]
    await happens(slot, { kind: 'created', name, of }, async () => {
      await tell(`create_snap ${slot} ${stable[of]}`)
      counts.snapshots++
      const lengthSectors = (blocks * blockBytes) / sectorBytes
      const row = { startSector: 0, lengthSectors, targetType: 'thin', params: `/dev/mapper/${pool} ${slot}` }
      await deviceMapper.create(name, { table: [row] })
      living.set(slot, { name, file: open(name) })
    })
  }
  const remove = async (slot: number) => {
    const { name, file } = living.get(slot)!
    await happens(slot, { kind: 'deleted' }, async () => {
      closeSync(file)
      living.delete(slot)
      // (Between fork and exec, a process that is just being started has a copy of every open file of this one's.)
      await deviceMapper.remove(name, { retry: true })
      await tell(`delete ${slot}`)
      counts.deletions++
    })
  }
  const touch = async (slot: number, kind: 'written' | 'discarded') => {
    const { file } = living.get(slot)!
    const block = random.integer(0, blocks - 1)
    await happens(slot, { kind, block }, () => {
      if (kind === 'written') writeSync(file, sector, 0, sectorBytes, block * blockBytes)
      else discard(file, block * blockBytes, blockBytes)
      fsyncSync(file)
      counts[kind === 'written' ? 'writes' : 'discards']++
      counts.flushes++
    })
  }

  try {
    for (const slot of slots) await create(slot)
    while (!stopping) {
      const slot = random.pick(slots)
      const dice = random.fraction()
      if (dice < 0.4) {
        const from = random.integer(0, blocks - 1)
        for (let i = random.integer(1, 12); i > 0; i--) {
          const block = random.chance(0.5) ? random.integer(0, blocks - 1) : (from + i) % blocks
          if (random.chance(0.15)) discard(volume, block * blockBytes, blockBytes)
          else writeSync(volume, sector, 0, sectorBytes, block * blockBytes)
          counts.writes++
        }
        fsyncSync(volume)
        counts.flushes++
      } else if (dice < 0.6) {
        const id = nextPassing++
        await tell(`create_snap ${id} ${random.chance(0.8) ? volumeId : random.pick(stable)}`)
        counts.snapshots++
        passing.push(id)
        if (passing.length > 4) {
          await tell(`delete ${passing.shift()}`)
          counts.deletions++
        }
      } else if (dice < 0.63) {
        await tell(held ? 'release_metadata_snap' : 'reserve_metadata_snap')
        held = !held
        if (held) counts.reservations++
      } else if (!living.has(slot)) await create(slot)
      else if (dice < 0.8) {
        await remove(slot)
        if (random.chance(0.8)) await create(slot)
      } else if (dice < 0.93) await touch(slot, 'discarded')
      else if (dice < 0.96) await touch(slot, 'written')
      // Walks get their turn, and what is done is seen in all its stages.
      await sleep(random.integer(0, 8))
    }
    for (const slot of [...living.keys()]) await remove(slot)
    for (const id of passing) await tell(`delete ${id}`)
    if (held) await tell('release_metadata_snap')
  } catch (error) {
    say({ kind: 'failed', why: error instanceof Error ? (error.stack ?? error.message) : String(error) })
  } finally {
    for (const { file } of living.values()) closeSync(file)
    closeSync(volume)
    await deviceMapper.close()
    port.close()
  }
}
