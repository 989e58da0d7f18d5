/**
 * What was served is remembered for as long as somebody may come back for it as a base, and not for ever.
 *
 * A forgotten base may not have been written to all the same, only that nothing proves any more that it was not trimmed: the log and `doctor`
 * say so, and `strictBases` refuses it. So the limit is far beyond any chain of backups; it keeps the file from growing for ever. It is a number,
 * because a machine that starts with a wrong clock would find everything too old at once.
 *
 * The history of era volumes takes more room, and how much is worth keeping is for whoever runs the node to say. A base that is forgotten
 * there is a full backup.
 */
import type { Logger } from 'pino'
import type { Catalog } from './catalog.ts'

const DAY_MS = 86_400_000

/** A quarter of a million of what was served (some 70 MB, on the disk and in memory), and of names of snapshots that are forgotten. */
export const retention = { keep: 250_000 } as const

/** How much history of era volumes is kept. */
export interface EraRetention {
  /** How long after it was taken a snapshot can be asked about, in milliseconds. */
  readonly keptMs: number
  /** How many of each volume. */
  readonly keep: number
}

/** Forgets snapshots of era volumes beyond that, and puts together what is left of them. @returns how many @throws what the catalog throws */
export async function forgetHistory(
  catalog: Catalog,
  { keptMs, keep }: EraRetention,
  now = Date.now()
): Promise<number> {
  const forgotten = await catalog.forgetEraSnapshots({ before: Math.max(0, now - keptMs), keep })
  while ((await catalog.compactEraHistory()) > 0);
  // Their names for far longer: whoever comes back with one by then may mean another.
  while ((await catalog.forgetEraNames(retention.keep)) > 0);
  return forgotten
}

/** Forgets the oldest of what was served. @returns how many records are gone @throws what the catalog throws */
export async function forgetOld(catalog: Catalog, { keep }: { keep: number } = retention): Promise<number> {
  let forgotten = 0
  for (let some; (some = await catalog.forgetServed(keep)) > 0; forgotten += some);
  for (let some; (some = await catalog.forgetClassic(keep)) > 0; forgotten += some);
  return forgotten
}

/** Does both now and once a day. @returns what ends it */
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
