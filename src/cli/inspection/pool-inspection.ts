/**
 * What `inspect` finds in a pool's metadata, before it is text.
 */
import type { ThinDevice } from '../../devicemapper/thin/pool-metadata.ts'
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { DeltamapperError } from '../../errors.ts'
import { type Origin, Origins } from './origins.ts'
import { openViews, type PoolViews } from './pool-views.ts'
import { checkTwin, sharesBlocks } from './shared-blocks.ts'

/**
 * After so much reading (a few seconds), further devices are no longer compared: their origins rest on the clock alone.
 */
const MAX_NODES_READ = 100_000

/** The inspection of a pool, for any format. */
export interface Inspection {
  views: PoolViews
  /** The state of the metadata snapshot, if one is held: also beside the live root, where it may be damaged. */
  held: ThinSuperblock | DeltamapperError | undefined
  /** By ascending id; to be iterated once. */
  devices: AsyncIterable<InspectedDevice>
}

export interface InspectedDevice extends ThinDevice {
  origin: Origin
  /** Another device with exactly the same mappings. */
  twin: number | undefined
}

/** @throws what reading metadata throws */
export async function inspectPool(path: string, views: PoolViews, signal: AbortSignal): Promise<Inspection> {
  const held = views.held ?? (views.live.heldRoot === 0 ? undefined : await heldBeside(path))
  return { views, held, devices: inspectedDevices(views, signal) }
}

/** The metadata snapshot beside the view that is read: examined for its age, or its damage. */
async function heldBeside(path: string): Promise<ThinSuperblock | DeltamapperError> {
  try {
    const views = await openViews(path, false)
    await views.close()
    return views.metadata.superblock
  } catch (error) {
    if (error instanceof DeltamapperError) return error
    throw error
  }
}

/**
 * Reads the devices twice: telling one's origin needs the clock readings of all of them.
 *
 * @throws DM_METADATA_DAMAGED for a damaged tree of a device, only after all devices were listed
 */
async function* inspectedDevices({ metadata }: PoolViews, signal: AbortSignal): AsyncGenerator<InspectedDevice> {
  const origins = new Origins()
  for await (const device of metadata.devices(signal)) origins.add(device)
  origins.complete()
  let damage: DeltamapperError | undefined
  const keep = (error: unknown) => {
    if (!(error instanceof DeltamapperError) || error.code !== 'DM_METADATA_DAMAGED') throw error
    damage ??= error
  }
  for await (const device of metadata.devices(signal)) {
    const origin = origins.of(device)
    const sharing: number[] = []
    if (metadata.statistics.nodesRead < MAX_NODES_READ) {
      for (const candidate of origin.devices) {
        const shares = await sharesBlocks(metadata, device, candidate, signal).catch(keep)
        if (shares) sharing.push(candidate)
      }
    }
    const twin = origins.twinOf(device)
    if (twin !== undefined) await checkTwin(metadata, device, twin, signal).catch(keep)
    yield { ...device, origin: origins.refined(origin, sharing), twin }
  }
  if (damage !== undefined) throw damage
}
