/**
 * Looks into metadata and shows what is there: the one path of `inspect`, from the file to stdout. Here for thin pools; era devices have
 * show-era-inspection.ts.
 */
import { readMetadataKind } from '../devicemapper/metadata-kind.ts'
import type { ThinDevice } from '../devicemapper/thin/pool-metadata.ts'
import { interruptible } from './interruption.ts'
import { type Origin, Origins } from './origins.ts'
import { writeInspectionJson } from './output/inspection-json.ts'
import { writeInspectionTable } from './output/inspection-table.ts'
import { TextOutput } from './output/text-output.ts'
import { sharesBlocks } from './shared-blocks.ts'
import { openViews, type PoolViews } from './pool-views.ts'

/** After so much reading (a few seconds), devices still to come are no longer compared: their origins rest on the clock alone. */
const MAX_NODES_READ = 100_000

export interface InspectOptions {
  liveRoot?: boolean
  output: 'table' | 'json'
}

/** What is shown of a pool, whatever the format. */
export interface Inspection {
  views: PoolViews
  /** By ascending id; to be iterated once. */
  devices: AsyncIterable<InspectedDevice>
}

export interface InspectedDevice extends ThinDevice {
  origin: Origin
  /** Another device that maps exactly the same. */
  twin: number | undefined
}

/** @throws what reading metadata throws */
export async function showInspection(path: string, { liveRoot = false, output }: InspectOptions): Promise<void> {
  await interruptible(undefined, async (signal) => {
    const text = new TextOutput(process.stdout, signal)
    if ((await readMetadataKind(path)) === 'dm-era') {
      const { showEraInspection } = await import('./show-era-inspection.ts')
      return showEraInspection(path, liveRoot, output, text, signal)
    }
    const views = await openViews(path, liveRoot)
    try {
      const inspection = { views, devices: inspectedDevices(views, signal) }
      const write = output === 'json' ? writeInspectionJson : writeInspectionTable
      await write(inspection, text)
    } finally {
      await views.close()
    }
  })
}

/** Reads the devices twice: to tell one's origin, the clock readings of all of them must have been seen. */
async function* inspectedDevices({ metadata }: PoolViews, signal: AbortSignal): AsyncGenerator<InspectedDevice> {
  const origins = new Origins()
  for await (const device of metadata.devices(signal)) origins.add(device)
  origins.complete()
  for await (const device of metadata.devices(signal)) {
    const origin = origins.of(device)
    const sharing: number[] = []
    if (metadata.statistics.nodesRead < MAX_NODES_READ) {
      for (const candidate of origin.devices) {
        if (await sharesBlocks(metadata, device, candidate, signal)) sharing.push(candidate)
      }
    }
    yield { ...device, origin: origins.refined(origin, sharing), twin: origins.twinOf(device) }
  }
}
