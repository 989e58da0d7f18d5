/**
 * `chain.json`: what a chain of backups of one volume consists of, beside its files. What is not in it is no point.
 *
 *   point      20261130T020000Z    20261201T020000Z    20261202T020000Z
 *   kind       full                increment           increment
 *   file       ….qcow2       ◀──── ….qcow2       ◀──── ….qcow2          each names the one before by its bare name
 *
 * It replaces the one before by a rename, after it is on disk. So it is the moment at which a point is there, or gone.
 */
import { z } from 'zod'
import { DeltamapperError } from '../errors.ts'

export const MANIFEST_NAME = 'chain.json'

/** Names of files in the chain's folder: no paths, and nothing that qemu-img takes for a protocol. */
const fileName = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]*\.qcow2$/, 'is no name of a file of ours')
const bytes = z.int().min(0)
const sha256 = z.string().regex(/^[0-9a-f]{64}$/, 'is no SHA-256')
const moment = z.iso.datetime()

const pointFields = z.strictObject({
  /** What `restore --point` names it. */
  point: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]*$/, 'is no name of a point'),
  created: moment,
  kind: z.enum(['full', 'increment']),
  /** Of the volume. */
  size_bytes: bytes,
  file: fileName,
  /** Length of the file. */
  stored_bytes: bytes,
  sha256,
  /** The file that it is an increment onto. */
  backing: fileName.optional(),
  /** The snapshot that was read, and what tells it from another of its name. */
  snapshot: z.strictObject({
    handle: z.string(),
    uuid: z.string().optional(),
    fingerprint: z.string().optional()
  }),
  /** Why it is not an increment. */
  full_because: z.string().optional(),
  tools: z.strictObject({ deltamapper: z.string(), qemu_img: z.string() })
})

export const manifestFields = z.strictObject({
  format: z.literal(1),
  volume: z.string(),
  /** Of this chain and of its copies. */
  chain: z.uuid(),
  /** Oldest first. */
  points: z.array(pointFields),
  /**
   * What a prune is about: the layers are committed into the base one by one, oldest first, and the base takes the name
   * of each in turn. Until then the oldest point is read through all of them.
   */
  merging: z.strictObject({ base: fileName, layers: z.array(fileName).min(1) }).optional(),
  /** Files of points that are gone, to be removed. */
  dropped: z.array(fileName).optional()
})

export type Manifest = z.infer<typeof manifestFields>
export type Point = z.infer<typeof pointFields>

/** @throws DM_CHAIN_INVALID where it is none, DM_CHAIN_FOREIGN where it is another volume's */
export function parseManifest(text: string, path: string, volume: string): Manifest {
  let content: unknown
  try {
    content = JSON.parse(text)
  } catch (cause) {
    throw invalidManifest(path, (cause as Error).message)
  }
  const parsed = manifestFields.safeParse(content)
  if (!parsed.success) throw invalidManifest(path, z.prettifyError(parsed.error).replaceAll(/\s+/g, ' '))
  const manifest = parsed.data
  if (manifest.volume !== volume) {
    throw new DeltamapperError(
      'DM_CHAIN_FOREIGN',
      `${path} is of the backups of ${manifest.volume}, and not of ${volume}`,
      `put the folder back where it was: DIR/${manifest.volume}; or back up into another DIR`
    )
  }
  const contradiction = contradictionIn(manifest)
  if (contradiction !== undefined) throw invalidManifest(path, contradiction)
  return manifest
}

/** Each point is full, or an increment onto the one before. */
function contradictionIn({ points, merging }: Manifest): string | undefined {
  for (const [i, { point, kind, file, backing }] of points.entries()) {
    if (points.findIndex((each) => each.point === point || each.file === file) !== i) return `${point} is there twice`
    if ((kind === 'full') !== (backing === undefined)) return `${point} is ${kind} and has ${backing ?? 'no'} backing`
    const below = i > 0 ? points[i - 1].file : undefined
    if (backing !== undefined && i > 0 && backing !== below) return `${point} is not onto the point before`
    if (backing !== undefined && i === 0 && merging === undefined) return `${point} is onto a point that is not there`
  }
  return undefined
}

function invalidManifest(path: string, what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_CHAIN_INVALID',
    `${path} is not a manifest that this version understands: ${what}`,
    'put back the one that the backup wrote; its files can be restored with `qemu-img convert` without it'
  )
}
