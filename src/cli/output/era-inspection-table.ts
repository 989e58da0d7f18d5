/** An inspection of an era device as text for people: the device, then a line for each era that is not yet digested. */
import { DeltamapperError } from '../../errors.ts'
import { describeEraAge } from '../inspection/era-views.ts'
import { oneLine } from '../command-line/failure.ts'
import { counted, exactSize, humanSize } from '../command-line/quantities.ts'
import { digestedUpTo, type EraInspection } from '../inspection/era-inspection.ts'
import type { TextOutput } from './text-output.ts'

export async function writeEraInspectionTable(inspection: EraInspection, output: TextOutput): Promise<void> {
  for (const [name, value] of deviceFacts(inspection)) output.text(`${name.padEnd(18)}${value}\n`)
  const { metadata, writesets } = inspection
  output.text(`\n${'ERA'.padStart(10)}${'BLOCKS THEN'.padStart(13)}${'ROOT BLOCK'.padStart(12)}\n`)
  for (const { era, bits, root } of writesets) {
    const current = era === metadata.superblock.currentWriteset?.era ? '  so far' : ''
    output.text(`${String(era).padStart(10)}${String(bits).padStart(13)}${String(root).padStart(12)}${current}\n`)
    if (output.isFull) await output.flush()
  }
  output.text(`${counted(writesets.length, 'writeset')}; complete\n`)
  await output.flush()
}

function deviceFacts(inspection: EraInspection): [string, string][] {
  const { metadata, held } = inspection
  const { live, view } = metadata
  const digested = digestedUpTo(inspection)
  return [
    ['metadata', `${oneLine(metadata.path)}, of an era device`],
    ['block size', `${exactSize(live.blockBytes)} (${live.blockSectors} sectors)`],
    ['device', `${counted(live.blocks, 'block')} (${humanSize(live.blocks * live.blockBytes)} at most)`],
    [
      'era',
      live.currentWriteset ? String(live.currentEra) : `${live.currentEra}, which is over: suspended or inactive`
    ],
    ['root blocks', `writesets ${live.writesetTreeRoot}, era array ${live.eraArrayRoot}`],
    ['metadata snapshot', held ? `at block ${live.metadataSnapshot}, ${describeHeld(held, live.currentEra)}` : 'none'],
    ['digested', digested === 0 ? 'no era yet' : `up to era ${digested}`],
    [
      'writesets below',
      view === 'live' ? 'of the live root' : 'of the metadata snapshot (--live-root: of the live root)'
    ]
  ]
}

function describeHeld(held: NonNullable<EraInspection['held']>, currentEra: number): string {
  if (held instanceof DeltamapperError) return `and cannot be used: ${oneLine(held.message)}`
  return describeEraAge(currentEra, held.currentEra)
}
