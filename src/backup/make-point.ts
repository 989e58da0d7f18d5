/**
 * Stores a snapshot as the chain's next point.
 *
 *   look for the base ─▶ plan ─▶ room? ─▶ qemu-img convert ─▶ layer as planned? digest, fsync ─▶ listed
 *        │ not proven                                              │ no
 *        └───────────▶ a full one, and why ◀───────────────────────┘
 *
 * An increment is right only onto a backup of the very base that its delta is from. So it is made only where the
 * chain's newest point is of a snapshot that still is there, unchanged.
 */
import { allOf } from '../all-of.ts'
import { DeltamapperError } from '../errors.ts'
import type { NbdBase, NbdSource } from '../nbd/source.ts'
import type { Chain } from './chain.ts'
import { CLUSTER_BYTES, type ClusterCounts } from './cluster-map.ts'
import { digestOf } from './digest.ts'
import { forEachStored, readLayer, swapped } from './layer.ts'
import type { Point } from './manifest.ts'
import { isOurName } from './snapshot-names.ts'
import { type CopyPlan, type OpenSnapshot, removeSocketsOf, ServedSnapshot } from './served-snapshot.ts'
import { atTarget } from './target-failure.ts'
import { WriteOut } from './write-out.ts'

export interface PointOptions {
  readonly chain: Chain
  /** The snapshot. */
  readonly handle: string
  readonly open: OpenSnapshot
  /** When it was taken. */
  readonly created: Date
  readonly tools: Point['tools']
  /** A full one, whatever there is. */
  readonly full?: boolean | undefined
  readonly compress?: boolean | undefined
  readonly signal?: AbortSignal | undefined
  /** Told how far the copy is, in bytes. */
  readonly onProgress?: (done: number, total: number) => void
}

export interface MadePoint {
  readonly point: Point
  /** Bytes of data that were read from the snapshot, and that it takes to hold what changed. */
  readonly readBytes: number
  readonly plannedBytes: number
}

/** @throws what opening and reading the snapshot throw, DM_CHAIN_…, DM_TOOL_… */
export async function makePoint(options: PointOptions): Promise<MadePoint> {
  const { chain, full = false } = options
  await removeSocketsOf(chain.mark)
  const newest = chain.newest
  let because = full ? 'a full one was asked for' : newest === undefined ? 'it is the first' : undefined
  if (newest !== undefined && because === undefined) {
    const made = await makeIncrement(newest, options)
    if (typeof made !== 'string') return made
    because = made
  } else if (newest !== undefined) await checkInPlace(chain, newest)
  return makeFull(because ?? 'it is the first', options)
}

/** The file that the next one is put onto has to be the one that was written. */
async function checkInPlace(chain: Chain, point: Point): Promise<void> {
  if (!(await chain.has(point.file))) throw swapped(chain, point.file, 'it is gone')
  const { sizeBytes, backing } = await readLayer(chain, point.file)
  if (sizeBytes !== point.size_bytes) throw swapped(chain, point.file, `it is of a volume of ${sizeBytes} bytes`)
  if (backing !== point.backing) throw swapped(chain, point.file, `it is onto ${backing ?? 'nothing'}`)
}

/** @returns why there can be none */
async function makeIncrement(newest: Point, options: PointOptions): Promise<MadePoint | string> {
  const base = newest.snapshot.handle
  let opened: ServedSnapshot | undefined
  try {
    const source = await openOnto(newest, options)
    opened = new ServedSnapshot(ontoPoint(source, newest), options.chain.mark)
    if (source.hasExternalOrigin) return 'it has an external origin, and nothing tells whether that was written to'
    const unproven = pairingFault(newest, source.bases[0])
    if (unproven !== undefined) return unproven
    const plan = await opened.plan(base, newest.size_bytes)
    const made = await copy(opened, plan, newest, options)
    return typeof made === 'string' ? `the increment ${made}: qemu-img did not store exactly what changed` : made
  } catch (error) {
    if (isAboutBase(error)) return `${error.message} (${error.code})`
    throw error
  } finally {
    await opened?.close()
  }
}

/** @throws DM_CHAIN_FOREIGN where it is known to be a snapshot of something else: a person may name any */
async function openTarget(bases: readonly string[], { chain, handle, open }: PointOptions): Promise<NbdSource> {
  const source = await open(handle, bases)
  const { origins = [] } = source
  if (origins.length === 0 || origins.includes(chain.volume)) return source
  await source.close()
  throw new DeltamapperError(
    'DM_CHAIN_FOREIGN',
    `${handle} is a snapshot of ${origins.join(', of ')}, and not of ${chain.volume}`,
    `back up ${origins.at(-1)}, or name a snapshot of ${chain.volume}`
  )
}

/** Opens the snapshot while it is looked whether the point that it is to be put onto is in place. */
async function openOnto(newest: Point, options: PointOptions): Promise<NbdSource> {
  const { chain } = options
  const opening = openTarget([newest.snapshot.handle], options)
  try {
    const [source] = await allOf([opening, checkInPlace(chain, newest)])
    return source
  } catch (error) {
    await opening.then(
      (source) => source.close(),
      () => undefined
    )
    throw error
  }
}

/** What says that there is no increment, and not that there is no backup. (A full one hears of it again.) */
function isAboutBase(error: unknown): error is DeltamapperError {
  if (!(error instanceof DeltamapperError) || /^DM_(CHAIN|TOOL)_/.test(error.code)) return false
  return ['FAILED_PRECONDITION', 'NOT_FOUND', 'INVALID_ARGUMENT', 'DATA_LOSS'].includes(error.status)
}

/** Of a base that is gone nobody knows the size any more, but for the point that was made of it. */
function ontoPoint(source: NbdSource, { size_bytes: pointBytes }: Point): NbdSource {
  return { ...source, bases: source.bases.map((base) => ({ ...base, sizeBytes: base.sizeBytes ?? pointBytes })) }
}

/**
 * What speaks against an increment from the base as it is now, or does not speak for it.
 *
 * Of one that is gone, the answer says whether what changed since is known still. It goes by the name, and a name of
 * ours was never another snapshot's; a person uses a name twice.
 */
function pairingFault({ point, snapshot, size_bytes: bytes }: Point, base: NbdBase): string | undefined {
  const { identity: now, sizeBytes } = base
  const { uuid, fingerprint } = snapshot
  const made = `${snapshot.handle}, which point ${point} was made of,`
  if (now === 'gone') {
    return isOurName(snapshot.handle) ? undefined : `${made} is gone, and its name may have been used twice`
  }
  if (sizeBytes !== undefined && sizeBytes !== bytes) return `${made} has ${sizeBytes} bytes now, and had ${bytes}`
  if (!now || (uuid === undefined && fingerprint === undefined)) return `nothing proves that ${made} is what it was`
  if (uuid !== undefined && uuid !== now.uuid) return `${made} is another snapshot`
  if (fingerprint !== undefined && fingerprint !== now.fingerprint) return `${made} is not what it was`
  return undefined
}

async function makeFull(because: string, options: PointOptions): Promise<MadePoint> {
  const opened = new ServedSnapshot(await openTarget([], options), options.chain.mark)
  try {
    const made = await copy(opened, await opened.plan(undefined), undefined, options, because)
    if (typeof made !== 'string') return made
    throw new TypeError('a full backup is held against nothing')
  } finally {
    await opened.close()
  }
}

/** @returns what is wrong with the layer where it is not what was planned: then it is thrown away */
async function copy(
  opened: ServedSnapshot,
  plan: CopyPlan,
  onto: Point | undefined,
  options: PointOptions,
  because?: string
): Promise<MadePoint | string> {
  const { chain, handle, created, tools } = options
  const counts = plan.clusters.counts()
  await checkRoom(chain, counts, options)
  const name = pointName(chain, created)
  const file = `${name}.qcow2`
  const part = chain.partOf(file)
  try {
    await chain.makePart(file)
    if (onto && counts.may === 0) await createEmpty(opened, onto, part, options)
    else await convert(opened, plan, onto, part, options)
    // The disk is what the end of a backup waits for, so the rest is done meanwhile: most of the file is in memory yet.
    const [complaint, layer, { sha256, bytes }] = await allOf([
      onto ? complaintOf(chain, part, plan) : Promise.resolve(undefined),
      readLayer(chain, part),
      atTarget(chain.folder, () => digestOf(chain.path(part), options)),
      chain.syncFile(part)
    ])
    if (complaint !== undefined) {
      await chain.remove(part)
      return complaint
    }
    const { sizeBytes, identity } = opened.source
    if (layer.sizeBytes !== sizeBytes || layer.backing !== onto?.file) {
      throw swapped(chain, part, 'qemu-img wrote something else')
    }
    const point: Point = {
      ...{ point: name, created: created.toISOString(), kind: onto ? 'increment' : 'full', size_bytes: sizeBytes },
      ...{ file, stored_bytes: bytes, sha256, ...(onto && { backing: onto.file }) },
      snapshot: { handle, ...identity },
      ...(because !== undefined && { full_because: because }),
      tools
    }
    await chain.add(point)
    return { point, readBytes: opened.servedBytes, plannedBytes: plan.dataBytes }
  } catch (error) {
    // Where the folder is gone, there is nothing to remove; and what is listed by now stays.
    if (!chain.points.some((each) => each.file === file)) await chain.remove(part).catch(() => undefined)
    throw error
  }
}

const LAYER_OPTIONS = ['-o', `compat=1.1,cluster_size=${CLUSTER_BYTES}`]

/** Nothing changed, so there is nothing to be served: the file only says what it is onto. */
async function createEmpty(opened: ServedSnapshot, onto: Point, part: string, { chain, signal }: PointOptions) {
  const { sizeBytes } = opened.source
  const words = ['create', '-q', '-f', 'qcow2', ...LAYER_OPTIONS, '-b', onto.file, '-F', 'qcow2', part]
  await chain.run('qemu-img', [...words, String(sizeBytes)], { signal })
  await opened.source.look()
}

async function convert(
  opened: ServedSnapshot,
  plan: CopyPlan,
  onto: Point | undefined,
  part: string,
  { chain, compress = false, signal, onProgress }: PointOptions
): Promise<void> {
  const uri = await opened.uri(onto && opened.source.bases[0].name)
  const words = ['convert', '-f', 'raw', '-O', 'qcow2', ...LAYER_OPTIONS]
  if (compress) {
    words.push('-c')
    plan.clusters.allowLast()
  }
  if (onto) words.push('-B', onto.file, '-F', 'qcow2')
  const timer = setInterval(() => onProgress?.(opened.servedBytes, plan.dataBytes), 200)
  const writeOut = new WriteOut(chain.path(part))
  try {
    await allOf([
      chain.run('qemu-img', [...words, uri, part], { signal }).finally(() => writeOut.stop()),
      atTarget(chain.folder, () => writeOut.ended)
    ])
  } catch (error) {
    opened.checkServed()
    throw error
  } finally {
    clearInterval(timer)
  }
  opened.checkServed()
}

async function complaintOf(chain: Chain, part: string, { clusters }: CopyPlan): Promise<string | undefined> {
  await forEachStored(chain, part, (begin, end) => clusters.found(begin, end))
  return clusters.complaint()
}

/** Header, first tables, and the manifest. */
const SPARE_CLUSTERS = 8

/** What qcow2 takes beside the data: tables, and a count of 2 bytes for each cluster. */
async function checkRoom(chain: Chain, counts: ClusterCounts, { compress }: PointOptions): Promise<void> {
  const tables = Math.ceil((counts.may * 2) / CLUSTER_BYTES) + counts.tables + SPARE_CLUSTERS
  // How small compression makes them is known only afterwards.
  const needed = (tables + (compress ? 0 : counts.must)) * CLUSTER_BYTES
  const free = await chain.freeBytes()
  if (needed <= free) return
  throw new DeltamapperError(
    'DM_CHAIN_NO_SPACE',
    `${chain.folder} has ${free} bytes free, and this backup needs up to ${needed}`,
    'make room there, keep fewer points (backup prune), or say --compress; the chain is as it was'
  )
}

/** By the second, in Coordinated Universal Time; qemu-img would take a colon for the end of a protocol's name. */
function pointName(chain: Chain, created: Date): string {
  const name = `${created.toISOString().slice(0, 19).replaceAll(/[-:]/g, '')}Z`
  const taken = new Set(chain.points.map(({ point }) => point))
  for (let i = 1; ; i++) {
    const candidate = i === 1 ? name : `${name}-${i}`
    if (!taken.has(candidate)) return candidate
  }
}
