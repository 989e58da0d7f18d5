/**
 * Reads a chain: whether its files are those that were written, and whether the newest point is what its snapshot
 * holds, while that is there.
 */
import { DeltamapperError } from '../errors.ts'
import type { Chain } from './chain.ts'
import { digestOf } from './digest.ts'
import { readLayer, swapped } from './layer.ts'
import type { Point } from './manifest.ts'
import { type OpenSnapshot, ServedSnapshot } from './served-snapshot.ts'
import { atTarget } from './target-failure.ts'

export interface VerifyOptions {
  readonly signal?: AbortSignal | undefined
  readonly onBytes?: (bytes: number) => void
}

/** What was found of a point. */
export interface Verified {
  readonly point: Point
  /** Undefined where its file is what was written. */
  readonly fault: DeltamapperError | undefined
  /** Whether its content was compared with the snapshot. */
  readonly compared: boolean
}

/**
 * Holds a point's file against its digest.
 *
 * @throws DM_CHAIN_SWAPPED where it is gone or another's, DM_CHAIN_DAMAGED where its bytes are not what was written
 */
export async function checkDigest(chain: Chain, point: Point, options: VerifyOptions = {}): Promise<void> {
  const name = await chain.nameOf(point.file)
  if (!(await chain.has(name))) throw swapped(chain, point.file, 'it is gone')
  // The oldest one has no digest before its merge is done.
  if (chain.manifest.merging?.layers.at(-1) === point.file) return
  const { sha256, bytes } = await atTarget(chain.folder, () => digestOf(chain.path(name), options))
  if (sha256 === point.sha256) return
  if (bytes !== point.stored_bytes) throw swapped(chain, name, `it has ${bytes} bytes, and not ${point.stored_bytes}`)
  const { sizeBytes, backing } = await readLayer(chain, name)
  if (sizeBytes !== point.size_bytes || backing !== point.backing) {
    throw swapped(chain, name, `it is of a volume of ${sizeBytes} bytes, onto ${backing ?? 'nothing'}`)
  }
  throw new DeltamapperError(
    'DM_CHAIN_DAMAGED',
    `${chain.path(name)} is not what was written: its SHA-256 is another`,
    `look at the disk; put the file back from a copy, or move ${chain.folder} away and take a full backup`
  )
}

/** All points of a chain, oldest first. @throws what is wrong with the place, not with a file; the signal's reason */
export async function verifyChain(chain: Chain, open: OpenSnapshot, options: VerifyOptions): Promise<Verified[]> {
  const found: Verified[] = []
  for (const point of chain.points) {
    const fault = await checkDigest(chain, point, options).then(
      () => undefined,
      (error: unknown) => {
        if (error instanceof DeltamapperError && /^DM_CHAIN_(SWAPPED|DAMAGED)$/.test(error.code)) return error
        throw error
      }
    )
    found.push({ point, fault, compared: false })
  }
  const newest = found.at(-1)
  if (newest === undefined || found.some(({ fault }) => fault !== undefined)) return found
  const compared = await compareWithSnapshot(chain, newest.point, open, options)
  found[found.length - 1] = { point: newest.point, ...compared }
  return found
}

async function compareWithSnapshot(
  chain: Chain,
  point: Point,
  open: OpenSnapshot,
  { signal }: VerifyOptions
): Promise<Pick<Verified, 'fault' | 'compared'>> {
  const opened = await openIfThere(point, open)
  if (!opened) return { fault: undefined, compared: false }
  try {
    const uri = await opened.uri(undefined)
    const words = ['compare', '-q', '-f', 'raw', '-F', 'qcow2', uri, await chain.nameOf(point.file)]
    const { status } = await chain.run('qemu-img', words, { signal, statuses: [0, 1] })
    opened.checkServed()
    return { compared: true, fault: status === 0 ? undefined : differs(chain, point) }
  } finally {
    await opened.close()
  }
}

/** Undefined where the snapshot is gone, or cannot be had here, or is another by now, or nothing would tell. */
async function openIfThere({ snapshot }: Point, open: OpenSnapshot): Promise<ServedSnapshot | undefined> {
  if (snapshot.uuid === undefined && snapshot.fingerprint === undefined) return undefined
  const source = await open(snapshot.handle, []).catch((error: unknown) => {
    const isAway = error instanceof DeltamapperError && ['NOT_FOUND', 'UNAVAILABLE'].includes(error.status)
    if (!isAway) throw error
    return undefined
  })
  if (!source) return undefined
  const { uuid, fingerprint } = source.identity ?? {}
  if (uuid === snapshot.uuid && fingerprint === snapshot.fingerprint) return new ServedSnapshot(source, 'verify')
  await source.close()
  return undefined
}

function differs(chain: Chain, { point, snapshot }: Point): DeltamapperError {
  return new DeltamapperError(
    'DM_CHAIN_DAMAGED',
    `point ${point} in ${chain.folder} does not hold what its snapshot ${snapshot.handle} holds`,
    'take a full backup (backup --full), and report this: increments are held against their deltas'
  )
}
