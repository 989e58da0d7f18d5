/**
 * Reads metadata and shows its content: the one path of `inspect`, from the file to stdout. Here for thin pools; era
 * devices have show-era-inspection.ts, stores of classic snapshots show-cow-inspection.ts.
 */
import { readMetadataKind } from '../../devicemapper/metadata-kind.ts'
import { isBaseRecord } from '../../devicemapper/thin/base-record/format.ts'
import { interruptible } from '../command-line/interruption.ts'
import { writeInspectionJson } from '../output/inspection-json.ts'
import { writeInspectionTable } from '../output/inspection-table.ts'
import { TextOutput } from '../output/text-output.ts'
import { inspectPool } from '../inspection/pool-inspection.ts'
import { openViews } from '../inspection/pool-views.ts'

export interface InspectOptions {
  liveRoot?: boolean
  output: 'table' | 'json'
}

/** @throws what reading metadata throws */
export async function showInspection(path: string, { liveRoot = false, output }: InspectOptions): Promise<void> {
  await interruptible(undefined, async (signal) => {
    const text = new TextOutput(process.stdout, signal)
    if (await isBaseRecord(path)) {
      const { showBaseRecord } = await import('./show-base-record.ts')
      return showBaseRecord(path, output, text, signal)
    }
    const kind = await readMetadataKind(path)
    if (kind === 'dm-snapshot') {
      const { showCowInspection } = await import('./show-cow-inspection.ts')
      return showCowInspection(path, output, text, signal)
    }
    if (kind === 'dm-era') {
      const { showEraInspection } = await import('./show-era-inspection.ts')
      return showEraInspection(path, liveRoot, output, text, signal)
    }
    const views = await openViews(path, liveRoot)
    try {
      const write = output === 'json' ? writeInspectionJson : writeInspectionTable
      await write(await inspectPool(path, views, signal), text)
    } finally {
      await views.close()
    }
  })
}
