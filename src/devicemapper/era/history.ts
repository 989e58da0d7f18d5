/**
 * Whether era metadata is still what it was at the last look: the rules by which a history is refused or continued.
 *
 * The metadata has no name of its own: the kernel blanks the superblock's UUID with each commit. But eras only count
 * upwards (dm-era-target.c, metadata_new_era), and the block size never changes (open_metadata). Newly formatted
 * metadata begins at era 1. A table that was loaded before its suspension loses what was committed in between. Both
 * show as an era below one that was seen before, if there is a look after each activation: later the count may have
 * caught up.
 *
 * An era begins with each table that is put in place, each resume, each checkpoint and each metadata snapshot, and with
 * nothing else (metadata_era_rollover). We know which of these were ours, so we know in which era the device must be.
 * In a later era, another process has suspended it, and may have given it another table meanwhile, under which writes
 * went unseen.
 */
import { DeltamapperError } from '../../errors.ts'
import type { EraSuperblock } from './superblock.ts'

/** What is remembered of an era device from one look to the next. */
export interface EraHistory {
  /** The size of a tracked block, in sectors of 512 bytes. */
  readonly blockSectors: number
  /** The era that was seen last. */
  readonly newestEra: number
  /** How many blocks the device had then. */
  readonly blocks: number
}

/**
 * What to remember after another look.
 *
 * @param seen what was remembered until now; undefined at the first look
 * @param now the live superblock
 * @param path where it was read
 * @param ownEras how many eras we may have begun since then; `any` if nobody could look
 * @throws DM_ERA_NOT_REACHED when this is not the metadata that was seen before; DM_ERA_HISTORY_LOST when another
 *   process has changed it
 */
export function continuedHistory(
  seen: EraHistory | undefined,
  now: EraSuperblock,
  path: string,
  ownEras: number | 'any' = 'any'
): EraHistory {
  const { blockSectors, currentEra, blocks } = now
  const remembered = { blockSectors, newestEra: currentEra, blocks }
  if (seen === undefined) return remembered
  if (blockSectors !== seen.blockSectors) {
    throw broken(
      `the blocks of ${path} have ${blockSectors} sectors, and had ${seen.blockSectors} before: it was formatted anew`
    )
  }
  if (currentEra < seen.newestEra) {
    const how =
      currentEra <= 1
        ? 'it was formatted anew'
        : 'it was formatted anew, restored, or a table was loaded before its suspension'
    throw broken(`${path} is in era ${currentEra}, and was in era ${seen.newestEra} before: ${how}`)
  }
  if (ownEras !== 'any' && currentEra > seen.newestEra + ownEras) {
    const due = seen.newestEra + ownEras
    throw lost(`${path} is in era ${currentEra}, and ${due} was due: another program has suspended the volume`)
  }
  if (blocks < seen.blocks) {
    throw lost(
      `${path} is of ${blocks} blocks, and was of ${seen.blocks} before: another program has made the volume smaller`
    )
  }
  return remembered
}

function broken(what: string): DeltamapperError {
  return new DeltamapperError('DM_ERA_NOT_REACHED', what, 'take a full backup; what was written meanwhile is not known')
}

function lost(what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_ERA_HISTORY_LOST',
    what,
    'take a full backup; what was written meanwhile is not known'
  )
}
