/**
 * What the answers should be, worked out from thin_delta's and thin_dump's output and from nothing of src/.
 *
 * The rules: a delta is all that is different, in one of the two only, and everything the target maps from
 * floor(base size / block size) on; byte ranges are merged, ascending, and clamped to the target's size. With a starting offset, what ends
 * at or before it is left out, and what begins before the start of its data block is cut there.
 */
import type { DeltaRun, MappingRun } from './thin-tools.ts'

/** Bytes `[offset, offset + size)`. */
export type Extent = readonly [offset: number, size: number]

export interface Sizing {
  readonly blockSizeBytes: number
  /** The target's size; by default the end of its highest mapping. */
  readonly sizeBytes?: number | undefined
  /** The base's size; by default the target's. */
  readonly baseSizeBytes?: number | undefined
}

type BlockRange = readonly [begin: number, end: number]

/** The end of the highest mapping, in bytes; 0 for a device that maps nothing. */
export function mappedEndBytes(mappings: readonly MappingRun[], blockSizeBytes: number): number {
  return mappings.reduce((end, { begin, length }) => Math.max(end, begin + length), 0) * blockSizeBytes
}

export function expectedAllocated(mappings: readonly MappingRun[], sizing: Sizing): Extent[] {
  const size = sizing.sizeBytes ?? mappedEndBytes(mappings, sizing.blockSizeBytes)
  return toExtents(
    mappings.map(({ begin, length }) => [begin, begin + length]),
    sizing.blockSizeBytes,
    size
  )
}

export function expectedDelta(
  runs: readonly DeltaRun[],
  targetMappings: readonly MappingRun[],
  sizing: Sizing
): Extent[] {
  const { blockSizeBytes } = sizing
  const size = sizing.sizeBytes ?? mappedEndBytes(targetMappings, blockSizeBytes)
  const baseSize = sizing.baseSizeBytes ?? size
  // A base as large as the target leaves nothing beyond it, also where that size ends within a data block.
  const firstBlockBeyondBase = baseSize < size ? Math.floor(baseSize / blockSizeBytes) : Infinity
  const ranges: BlockRange[] = []
  for (const { kind, begin, length } of runs) if (kind !== 'same') ranges.push([begin, begin + length])
  for (const { begin, length } of targetMappings) {
    const from = Math.max(begin, firstBlockBeyondBase)
    if (from < begin + length) ranges.push([from, begin + length])
  }
  return toExtents(ranges, blockSizeBytes, size)
}

export function fromStartingOffset(extents: readonly Extent[], offset: number, blockSizeBytes: number): Extent[] {
  const from = offset - (offset % blockSizeBytes)
  return extents
    .filter(([begin, size]) => begin + size > offset)
    .map(([begin, size]) => (begin < from ? [from, begin + size - from] : [begin, size]))
}

/** What `right` has and `left` has not, and so on: thin_delta's comparison, for mappings that it refuses to read. */
export function compareMappings(left: readonly MappingRun[], right: readonly MappingRun[]): DeltaRun[] {
  const blocksOf = (mappings: readonly MappingRun[]) => {
    const blocks = new Map<number, number>()
    for (const { begin, dataBegin, length } of mappings) {
      for (let index = 0; index < length; index++) blocks.set(begin + index, dataBegin + index)
    }
    return blocks
  }
  const leftBlocks = blocksOf(left)
  const rightBlocks = blocksOf(right)
  const runs: DeltaRun[] = []
  for (const begin of [...new Set([...leftBlocks.keys(), ...rightBlocks.keys()])].sort((one, other) => one - other)) {
    const leftBlock = leftBlocks.get(begin)
    const rightBlock = rightBlocks.get(begin)
    const kind =
      leftBlock === undefined
        ? 'right_only'
        : rightBlock === undefined
          ? 'left_only'
          : leftBlock === rightBlock
            ? 'same'
            : 'different'
    const last = runs.at(-1)
    if (last !== undefined && last.kind === kind && last.begin + last.length === begin) {
      runs[runs.length - 1] = { ...last, length: last.length + 1 }
    } else runs.push({ kind, begin, length: 1 })
  }
  return runs
}

function toExtents(ranges: readonly BlockRange[], blockSizeBytes: number, sizeBytes: number): Extent[] {
  const merged: [number, number][] = []
  for (const [begin, end] of [...ranges].sort(([left], [right]) => left - right)) {
    const last = merged.at(-1)
    if (last !== undefined && begin <= last[1]) last[1] = Math.max(last[1], end)
    else merged.push([begin, end])
  }
  const extents: Extent[] = []
  for (const [begin, end] of merged) {
    const from = begin * blockSizeBytes
    const to = Math.min(end * blockSizeBytes, sizeBytes)
    if (from < to) extents.push([from, to - from])
  }
  return extents
}
