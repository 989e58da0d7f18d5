/**
 * An inspection as text for people: the pool, then a line for each device.
 */
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { DeltamapperError } from '../../errors.ts'
import type { Inspection } from '../inspection/pool-inspection.ts'
import { oneLine } from '../command-line/failure.ts'
import type { Origin } from '../inspection/origins.ts'
import { describeAge, type PoolViews } from '../inspection/pool-views.ts'
import { counted, humanSize } from '../command-line/quantities.ts'
import type { TextOutput } from './text-output.ts'
import { METADATA_BLOCK_BYTES, SECTOR_BYTES } from '../../units.ts'

/** Possible origins that are named; JSON has more of them. */
const NAMED_ORIGINS = 4

/**
 * Heading and width of each column; the last one is as wide as it needs to be. Lines fit a terminal of 80 columns, but
 * for ids and counts beyond seven digits and several possible origins.
 */
const columns: [string, number][] = [
  ['ID', 7],
  ['BLOCKS', 9],
  ['MAPPED', 11],
  ['TRANSACTION', 12],
  ['CREATED', 8],
  ['SNAPSHOTTED', 12],
  ['SAME AS', 8]
]

export async function writeInspectionTable({ views, held, devices }: Inspection, output: TextOutput): Promise<void> {
  for (const [name, value] of poolFacts(views, held)) output.text(`${name.padEnd(18)}${value}\n`)

  output.text(`\n${row(columns.map(([heading]) => heading))}  SNAPSHOT OF\n`)
  const blockBytes = views.live.dataBlockBytes
  let count = 0
  try {
    for await (const { id, details, origin, twin } of devices) {
      const { mappedBlocks, transactionId, creationTime, snapshottedTime } = details
      const mapped = humanSize(mappedBlocks * blockBytes)
      const cells = [id, mappedBlocks, mapped, transactionId, creationTime, snapshottedTime, twin ?? '-']
      output.text(`${row(cells.map(String))}  ${describeOrigin(origin)}\n`)
      count++
      if (output.isFull) await output.flush()
    }
  } finally {
    // Also the devices that were found before damage.
    await output.flush()
  }
  output.text(`${counted(count, 'device')}; complete\n`)
  await output.flush()
}

function poolFacts({ metadata, live }: PoolViews, held: Inspection['held']): [string, string][] {
  const metadataBytes = humanSize(live.metadataBlocks * METADATA_BLOCK_BYTES)
  return [
    ['metadata', oneLine(metadata.path)],
    ['metadata size', `${counted(live.metadataBlocks, 'block')} of 4 KiB (${metadataBytes})`],
    ['data block size', `${humanSize(live.dataBlockBytes)} (${live.dataBlockBytes / SECTOR_BYTES} sectors)`],
    ['pool time', `${live.time} (snapshots taken so far)`],
    ['transaction', String(live.transactionId)],
    ['needs check', live.needsCheck ? 'yes: the pool found an error; run thin_check, then thin_repair' : 'no'],
    ['root blocks', `mappings ${live.mappingRoot}, device details ${live.detailsRoot}`],
    ['metadata snapshot', held ? `held at block ${live.heldRoot}, ${describeHeld(held, live)}` : 'none held'],
    [
      'devices below',
      metadata.view === 'live' ? 'of the live pool' : 'of the metadata snapshot (--live-root: of the live pool)'
    ]
  ]
}

function describeHeld(held: NonNullable<Inspection['held']>, live: ThinSuperblock): string {
  return held instanceof DeltamapperError ? `and cannot be used: ${oneLine(held.message)}` : describeAge(live, held)
}

function row(cells: string[]): string {
  return cells.map((cell, i) => cell.padStart(columns[i][1])).join('')
}

function describeOrigin({ certainty, devices, more }: Origin): string {
  const names =
    devices.slice(0, NAMED_ORIGINS).join(', ') + (more || devices.length > NAMED_ORIGINS ? ' or others' : '')
  switch (certainty) {
    case 'certain':
      return devices.length === 0 ? 'none' : names
    case 'likely':
      return `${names} (likely)`
    case 'possible':
      return `${devices.length > 1 ? 'one of ' : ''}${names} (possibly)`
    case 'unknown':
      return 'unknown'
  }
}
