/**
 * Served records are kept as long as a client may come back with the snapshot as base, but not for ever.
 *
 * A forgotten base may still be untouched, but nothing proves any more that it was not trimmed: the log and `doctor`
 * say so, and `strictBases` refuses it. So the limit is far beyond any chain of backups. It only keeps the file from
 * growing for ever. It is a number, not a time, because a machine that starts with a wrong clock would find everything
 * too old at once.
 *
 * The history of tracked volumes takes more room, so the operator decides how much to keep. There, a forgotten base
 * costs a full backup.
 */
import type { Logger } from 'pino'
import type { Catalog } from './catalog.ts'

const DAY_MS = 86_400_000

/**
 * A quarter of a million served records (some 70 MB, on disk and in memory), and as many names of forgotten snapshots.
 */
export const retention = { keep: 250_000 } as const

/** How much history of tracked volumes is kept. */
export interface EraRetention {
  /** How long after it was taken a snapshot can be asked about, in milliseconds. */
  readonly keptMs: number
  /** How many of each volume. */
  readonly keep: number
}

/**
 * Forgets snapshots of tracked volumes beyond that, and merges their bitmaps. @returns how many @throws what the
 * catalog throws
 */
export async function forgetHistory(
  catalog: Catalog,
  { keptMs, keep }: EraRetention,
  now = Date.now()
): Promise<number> {
  const forgotten = await catalog.eraSnapshots.forget({ before: Math.max(0, now - keptMs), keep })
  while ((await catalog.eraSnapshots.compact()) > 0);
  // Their names are kept far longer: a client that comes back with one may mean another snapshot.
  while ((await catalog.eraSnapshots.forgetNames(retention.keep)) > 0);
  return forgotten
}

/** Forgets the oldest served records. @returns how many @throws what the catalog throws */
export async function forgetOld(catalog: Catalog, { keep }: { keep: number } = retention): Promise<number> {
  let forgotten = 0
  for (let some; (some = await catalog.served.forget(keep)) > 0; forgotten += some);
  for (let some; (some = await catalog.classicSnapshots.forget(keep)) > 0; forgotten += some);
  return forgotten
}

/** Does both now and once a day. @returns a function that ends it */
export function keepForgetting(catalog: Catalog, logger: Logger, era: EraRetention): () => void {
  const forget = () => {
    forgetHistory(catalog, era).then(
      (forgotten) => {
        if (forgotten > 0) logger.info({ forgotten }, 'forgot snapshots of tracked volumes')
      },
      (error: unknown) => logger.warn({ err: error }, 'could not forget snapshots of tracked volumes')
    )
    forgetOld(catalog).then(
      (forgotten) => {
        if (forgotten > 0) logger.info({ forgotten }, 'forgot what was served long ago')
      },
      (error: unknown) => logger.warn({ err: error }, 'could not forget what was served long ago')
    )
  }
  forget()
  const timer = setInterval(forget, DAY_MS)
  timer.unref()
  return () => {
    clearInterval(timer)
  }
}
