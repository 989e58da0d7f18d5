/**
 * Whether era metadata is still what it was when somebody looked before: the rules by which a history is refused rather than continued.
 *
 * Nothing in the metadata names it: the kernel blanks the superblock's UUID with each commit. What there is counts eras, upwards only
 * (dm-era-target.c, metadata_new_era), and the block size never changes (open_metadata). Metadata that is formatted anew begins at era 1, and
 * a table that was loaded before the suspension that it was meant for goes back by what was committed in between. Either shows as an era
 * below one that was seen before, if it is looked for each time the device was activated: later the count may have caught up.
 *
 * An era begins with each table that is put in place, each resume, each checkpoint and each metadata snapshot, and with nothing else
 * (metadata_era_rollover). Whoever knows which of these were its own knows in which era the device is; one that is further on was suspended by
 * somebody else, who may have given it another table meanwhile, through which writes went unseen.
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
 * What is to be remembered after another look.
 *
 * @param seen what was remembered until now; undefined at the first look
 * @param now the live superblock
 * @param path where it was read
 * @param ownEras how many eras may have begun since then by what we did ourselves; `any` where nobody could look
 * @throws DM_ERA_NOT_REACHED when this is not the metadata that was seen before; DM_ERA_HISTORY_LOST when somebody else had a hand in it
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
    throw lost(`${path} is in era ${currentEra}, and ${due} was due: somebody else has suspended the volume`)
  }
  if (blocks < seen.blocks) {
    throw lost(
      `${path} is of ${blocks} blocks, and was of ${seen.blocks} before: somebody else has made the volume smaller`
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
