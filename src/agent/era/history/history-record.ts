/**
 * Adds a boundary to the history of a tracked volume. It reads what was written since the boundary before, and stores
 * that with the snapshot, before the snapshot is reported as taken.
 *
 *     resume ─▶ metadata snapshot (ends the era that has just begun)
 *                 ─▶ blocks of [last boundary, this one) ─▶ catalog, in pieces
 *                      ─▶ snapshot and intent, in one transaction
 *
 * Writes that happen meanwhile belong to a later era, whose writeset in that metadata snapshot is separate: they are
 * left out. Recording also works long after the boundary. It may then contain more than was written, never less.
 */
import { once } from 'node:events'
import { extname } from 'node:path'
import { Worker } from 'node:worker_threads'
import type { Logger } from 'pino'
import type { DeviceMapper } from '../../../../native/device-mapper.ts'
import { defect, DeltamapperError } from '../../../errors.ts'
import type { Catalog } from '../../catalog/catalog.ts'
import type { EraSnapshot } from '../../catalog/era-snapshots.ts'
import type { EraVolume } from '../../catalog/era-volumes.ts'
import type { EraHistoryRecorder, TakenEraSnapshot } from '../boundary/boundary.ts'
import { EraSlots, type InVolumesTurn } from './era-slot.ts'
import type { HistoryReading } from './history-reading.ts'
import type { FromHistoryReader } from './history-record-worker.ts'
import type { TrackedMachine } from '../device/machine.ts'
import type { WrittenChunk } from '../../catalog/store/written-chunks.ts'
import { fromPortable } from '../../../portable-error.ts'

export interface EraHistoryParts {
  readonly catalog: Catalog
  readonly deviceMapper: DeviceMapper
  readonly logger: Logger
  /** How long one request to a metadata device may take, in milliseconds. */
  readonly readDeadlineMs?: number | undefined
  /** Where metadata is read, and slots are held; this machine by default. */
  readonly machine?: TrackedMachine
  /** What reads the writes of some eras; by default, a thread for each reading. */
  readonly read?: ReadHistory
}

/**
 * @param handOver takes chunks, and resolves when there is room for more
 * @returns whether they have only those eras' writes
 */
export type ReadHistory = (
  reading: HistoryReading,
  handOver: (chunks: readonly WrittenChunk[]) => Promise<void>
) => Promise<boolean>

/**
 * The reader needs little memory. A reader that needs more than this has a defect, and the limit ends the thread
 * instead of the agent. MiB.
 */
const HEAP_MIB = 256

export class EraHistoryRecords implements EraHistoryRecorder {
  readonly #parts: EraHistoryParts
  readonly #slots: EraSlots
  readonly #read: ReadHistory

  constructor(parts: EraHistoryParts) {
    this.#parts = parts
    this.#slots = new EraSlots(parts)
    this.#read = parts.read ?? readInThread
  }

  /** Recovers metadata snapshots that an earlier agent left, each under its volume's lock. Never rejects. */
  async recover(inTurn: InVolumesTurn): Promise<void> {
    await this.#slots.recover(inTurn)
  }

  /**
   * Waits until the writes since the last snapshot could be recorded. The caller must hold the volume's lock.
   *
   * @throws what `EraSlots.ready` throws
   */
  async ready(volume: EraVolume): Promise<void> {
    const { boundaryEra } = await this.#parts.catalog.eraSnapshots.beginHistory(volume.name)
    // For the first snapshot, nothing is recorded.
    if (boundaryEra !== undefined) await this.#slots.ready(volume)
  }

  /**
   * Records a snapshot. The caller must hold the volume's lock, and its intent must be in the catalog.
   *
   * @throws DM_HISTORY_BROKEN when the history ended since the snapshot was taken, or its eras go back; what holding
   *   and reading a metadata snapshot and the catalog throw. Then nothing is recorded, and the intent is unchanged
   */
  async record(taken: TakenEraSnapshot): Promise<EraSnapshot> {
    const { catalog, logger } = this.#parts
    const { volume, name, boundaryEra } = taken
    const began = performance.now()
    const since = await catalog.eraSnapshots.beginHistory(volume.name)
    if (since.line !== volume.line) {
      throw new DeltamapperError(
        'DM_HISTORY_BROKEN',
        `the history of ${volume.name} was voided while snapshot ${name} was taken`,
        'take another snapshot, and a full backup of it'
      )
    }
    const nothing = since.boundaryEra === undefined || since.boundaryEra >= boundaryEra
    const isExact = nothing || (await this.#store(taken, since.boundaryEra))
    const snapshot = await catalog.eraSnapshots.record(volume.name, taken, since, isExact)
    const ms = Math.round(performance.now() - began)
    logger.info(
      { volume: volume.name, snapshot: name, exact: snapshot.exact, ms },
      'what was written since the last snapshot is on record'
    )
    return snapshot
  }

  /** @returns whether the stored bitmaps contain only what was written in these eras */
  async #store({ volume, name, boundaryEra }: TakenEraSnapshot, sinceEra: number): Promise<boolean> {
    const { readDeadlineMs } = this.#parts
    const { blockSectors } = volume
    return this.#slots.hold(volume, `snapshot ${volume.name}/${name}`, (held) =>
      this.#read({ ...held, sinceEra, untilEra: boundaryEra - 1, blockSectors, readDeadlineMs }, (chunks) =>
        this.#parts.catalog.eraSnapshots.stageWrites(volume.name, chunks)
      )
    )
  }
}

const readInThread: ReadHistory = async (reading, handOver) => {
  // The sources run as .ts, the published package as .js.
  const file = new URL(`./history-record-worker${extname(import.meta.filename)}`, import.meta.url)
  const worker = new Worker(file, {
    name: 'era-history',
    workerData: reading,
    // The process's own options (how to read its input, a test runner's hooks) are not for the thread.
    execArgv: [],
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB }
  })
  try {
    for (;;) {
      const message = await nextMessage(worker)
      if (message.kind === 'end') return message.isExact
      if (message.kind === 'error') throw fromPortable(message.error)
      await handOver(message.chunks)
      worker.postMessage('more')
    }
  } finally {
    await worker.terminate()
  }
}

/** @throws the error that ended the thread */
async function nextMessage(worker: Worker): Promise<FromHistoryReader> {
  const over = new AbortController()
  const { signal } = over
  try {
    const message = once(worker, 'message', { signal }) as Promise<[FromHistoryReader]>
    const ended = once(worker, 'exit', { signal }).then((): never => {
      throw defect("the thread that reads a tracked volume's history ended")
    })
    return (await Promise.race([message, ended]))[0]
  } finally {
    // (A promise that nobody waits for any more may reject unnoticed.)
    over.abort()
  }
}
