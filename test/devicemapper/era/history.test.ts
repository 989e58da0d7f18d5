import test from 'ava'

import { continuedHistory } from '../../../src/devicemapper/era/history.ts'
import type { EraSuperblock } from '../../../src/devicemapper/era/superblock.ts'
import type { DeltamapperError } from '../../../src/errors.ts'

function superblock(currentEra: number, blocks = 100, blockSectors = 128): EraSuperblock {
  return {
    blockSectors,
    blockBytes: blockSectors * 512,
    blocks,
    currentEra,
    currentWriteset: undefined,
    writesetTreeRoot: 1,
    eraArrayRoot: 2,
    metadataSnapshot: 0
  }
}

const PATH = '/dev/mapper/era-metadata'

test('eras count upwards, and as many as are due', (t) => {
  let seen = continuedHistory(undefined, superblock(5), PATH)
  t.deepEqual(seen, { blockSectors: 128, newestEra: 5, blocks: 100 })
  seen = continuedHistory(seen, superblock(5), PATH, 0)
  seen = continuedHistory(seen, superblock(7, 120), PATH, 3)
  t.deepEqual(seen, { blockSectors: 128, newestEra: 7, blocks: 120 })
  seen = continuedHistory(seen, superblock(90, 120), PATH)
  const error = t.throws<DeltamapperError>(() => continuedHistory(seen, superblock(92, 120), PATH, 1))
  t.is(error?.code, 'DM_ERA_HISTORY_LOST')
  t.regex(error?.message ?? '', /is in era 92, and 91 was due: another program has suspended the volume/)
})

test('what became smaller since the last look is not what it was, also after it has grown', (t) => {
  let seen = continuedHistory(undefined, superblock(5, 80), PATH)
  seen = continuedHistory(seen, superblock(6, 120), PATH, 1)
  const error = t.throws<DeltamapperError>(() => continuedHistory(seen, superblock(7, 100), PATH, 1))
  t.is(error?.code, 'DM_ERA_HISTORY_LOST')
  t.regex(error?.message ?? '', /of 100 blocks, and was of 120 before/)
})

test('an era below one that was seen before, or another block size, is another history', (t) => {
  const seen = continuedHistory(undefined, superblock(5), PATH)
  for (const [now, says] of [
    [superblock(4), /is in era 4, and was in era 5 before: .* a table was loaded/],
    [superblock(1), /is in era 1, .* formatted anew$/],
    [superblock(0, 0), /is in era 0, .* formatted anew$/],
    [superblock(6, 100, 256), /256 sectors, and had 128 before/]
  ] as const) {
    const error = t.throws<DeltamapperError>(() => continuedHistory(seen, now, PATH))
    t.is(error?.code, 'DM_ERA_NOT_REACHED')
    t.is(error?.status, 'FAILED_PRECONDITION')
    t.regex(error?.message ?? '', says)
    t.regex(error?.remedy ?? '', /full backup/)
  }
})
