/**
 * Whether era metadata is still what it was when somebody looked before: the rules by which a history is refused rather than continued.
 *
 * Nothing in the metadata names it: the kernel blanks the superblock's UUID with each commit. What there is counts eras, upwards only
 * (dm-era-target.c, metadata_new_era), and the block size never changes (open_metadata). Metadata that is formatted anew begins at era 1, and
 * a table that was loaded before the suspension that it was meant for goes back by what was committed in between. Either shows as an era
 * below one that was seen before, if it is looked for each time the device was activated: later the count may have caught up.
 */
import { DeltamapperError } from '../../errors.ts'
import type { EraSuperblock } from './superblock.ts'

/** What is remembered of an era device from one look to the next. */
export interface EraHistory {
  /** The size in which writes are tracked, in sectors of 512 bytes. */
  readonly blockSectors: number
  /** The newest era that was ever seen to have begun. */
  readonly newestEra: number
  /** The fewest blocks that the device was ever seen to have: what lies beyond was cut off once, and its history with it. */
  readonly fewestBlocks: number
}

/**
 * What is to be remembered after another look.
 *
 * @param seen what was remembered until now; undefined at the first look
 * @param now the live superblock
 * @param path where it was read
 * @throws DM_ERA_NOT_REACHED when this is not the metadata that was seen before
 */
export function continuedHistory(seen: EraHistory | undefined, now: EraSuperblock, path: string): EraHistory {
  const { blockSectors, currentEra, blocks } = now
  if (seen === undefined) return { blockSectors, newestEra: currentEra, fewestBlocks: blocks }
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
  return { blockSectors, newestEra: currentEra, fewestBlocks: Math.min(blocks, seen.fewestBlocks) }
}

function broken(what: string): DeltamapperError {
  return new DeltamapperError('DM_ERA_NOT_REACHED', what, 'take a full backup; what was written meanwhile is not known')
}
