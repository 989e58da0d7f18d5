/**
 * A recorded pool: a folder with the metadata image of a pool, and `pool.json` with the facts that thin metadata lacks:
 * names, sizes, and the volume of each snapshot. For demonstrations, tests, support and forensics.
 */
import { access, constants } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { fieldsOf, misspeltFields } from '../../config-issues.ts'
import { DeltamapperError } from '../../errors.ts'
import { MAX_DEVICES } from '../../devicemapper/thin/device-details.ts'
import { readOrdinaryFile } from '../../ordinary-file.ts'
import { systemRemedy } from '../../system-errors.ts'
import { isHandleName } from '../../handle.ts'
import type { Snapshot, SnapshotSource } from '../walks/snapshot.ts'

const name = z.string().refine(isHandleName, 'is no name: letters, digits and + _ . - only')
const thinId = z
  .int()
  .min(0)
  .max(MAX_DEVICES - 1)
const sizeBytes = z.int().min(0)

/**
 * `pool.json`, format 1. Sizes in bytes. Other fields are for people (a description, the SHA-256 of a snapshot's
 * content).
 */
export const poolDescription = z.object({
  format: z.literal(1),
  data_block_size_bytes: z.int().min(1),
  /** Read the live root even if the image has a metadata snapshot. */
  live_root: z.boolean().optional(),
  volumes: z.array(z.object({ name })),
  snapshots: z.array(z.object({ name, volume: name, thin_id: thinId, size_bytes: sizeBytes }))
})

export interface RecordedPool extends SnapshotSource {
  /** Of its snapshots, without the pool's. */
  readonly names: readonly string[]
}

/**
 * Loads a recorded pool's description. Its metadata image is opened anew for every question.
 *
 * @param source the first part of its snapshots' handles
 * @throws DM_RECORDED_POOL_INVALID
 */
export async function loadRecordedPool(source: string, folder: string): Promise<RecordedPool> {
  const [file, metadataPath] = [join(folder, 'pool.json'), join(folder, 'metadata.img')]
  const description = await describedIn(file)
  const volumes = new Set(description.volumes.map((volume) => volume.name))
  const snapshots = new Map<string, Snapshot>()
  for (const { name, volume, thin_id, size_bytes } of description.snapshots) {
    if (snapshots.has(name)) throw invalid(file, `two snapshots are called ${name}`)
    if (!volumes.has(volume)) throw invalid(file, `snapshot ${name} is of volume ${volume}, which is not listed`)
    snapshots.set(name, {
      kind: 'thin',
      handle: `${source}/${name}`,
      volume: `${source}/${volume}`,
      volumeName: `${source}/${volume}`,
      thinId: thin_id,
      blockBytes: description.data_block_size_bytes,
      ...(description.live_root === true && { liveRoot: true }),
      sizeBytes: size_bytes,
      metadataPath
    })
  }
  // The image must exist now: an incomplete copy is found at start, not by the first client.
  await access(metadataPath, constants.R_OK).catch((cause: Error) => {
    throw invalid(file, `beside it there is no metadata image that can be read: ${cause.message}`, cause)
  })
  return { snapshot: async (name) => snapshots.get(name), names: [...snapshots.keys()] }
}

async function describedIn(file: string): Promise<z.output<typeof poolDescription>> {
  let text
  let description
  try {
    text = (await readOrdinaryFile(file)).toString('utf8')
    JSON.parse(text)
    description = fieldsOf(text, poolDescription)
  } catch (cause) {
    throw invalid(file, (cause as Error).message.replaceAll(/\s+/g, ' '), cause)
  }
  // Other fields are for people, and a misspelt one of ours would have no effect.
  const [misspelt] = misspeltFields(text, poolDescription)
  if (misspelt !== undefined) throw invalid(file, misspelt)
  return description
}

function invalid(file: string, what: string, cause?: unknown): DeltamapperError {
  return new DeltamapperError(
    'DM_RECORDED_POOL_INVALID',
    `${file} does not describe a recorded pool: ${what}`,
    systemRemedy(cause) ?? 'see "Recorded pools" in docs/reference.md for its form',
    { cause }
  )
}
