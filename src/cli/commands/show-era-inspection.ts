/** Reads an era device's metadata and shows its content. */
import { openEraMetadata } from '../../devicemapper/era/era-metadata.ts'
import { writeEraInspectionJson } from '../output/era-inspection-json.ts'
import { writeEraInspectionTable } from '../output/era-inspection-table.ts'
import { inspectEra } from '../inspection/era-inspection.ts'
import type { TextOutput } from '../output/text-output.ts'

/** @throws what reading metadata throws */
export async function showEraInspection(
  path: string,
  liveRoot: boolean,
  format: 'table' | 'json',
  output: TextOutput,
  signal: AbortSignal
): Promise<void> {
  const metadata = await openEraMetadata(path, { liveRoot })
  try {
    const inspection = await inspectEra(path, metadata, signal)
    await (format === 'json' ? writeEraInspectionJson : writeEraInspectionTable)(inspection, output)
  } finally {
    await metadata.close()
  }
}
