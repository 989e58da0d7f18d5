/**
 * Keeps only the newest points of a chain, by `qemu-img commit`.
 *
 *   full ◀── inc1 ◀── inc2 ◀── inc3        keep 2
 *   ┌──────┴───────────┘        the oldest point to keep is read through three files: merging = full, [inc1, inc2]
 *   │ 1. cut `full` to the size of inc1, and commit inc1 into it: whoever reads through inc1 sees the same
 *   │ 2. rename `full` to inc1: it replaces the layer that it has taken in, and inc2 is onto the same name as before
 *   │ 3. the same with inc2
 *   inc2 (now full) ◀── inc3
 *
 * What is dropped leaves the manifest first. After that each step can be cut off and done again, and the oldest point
 * that is kept can be read at every moment. No file that is onto another is rewritten, so that its digest stays.
 *
 * The older file is cut to the layer's size *before* anything is put onto it. Otherwise its old end would come back
 * where a volume shrank and grew again. What lies behind the new end is zeroed before, for two reasons: qemu-img leaves
 * it in the last cluster (seen with qemu 7.2 and 10.0); and it makes the file shorter before it takes the clusters that
 * were there out of the tables. Killed in between, it leaves a file that `qemu-img check` calls corrupt, and nobody
 * could finish the merge. (Seen with qemu 7.2, 10.0 and 11.1; block/qcow2.c, qcow2_co_truncate.)
 */
import { DeltamapperError } from '../errors.ts'
import type { Chain } from './chain.ts'
import { digestOf } from './digest.ts'
import { readLayer, swapped } from './layer.ts'
import type { Point } from './manifest.ts'
import { atTarget } from './target-failure.ts'
import { checkDigest } from './verify.ts'

export interface PruneOptions {
  readonly signal?: AbortSignal | undefined
  /** Told what is done now, as a clause for people. */
  readonly onStep?: (what: string) => void
}

/**
 * @param keep how many points stay, 1 or more
 * @returns the points that are gone
 * @throws DM_CHAIN_…, DM_TOOL_…; the signal's reason
 */
export async function prune(chain: Chain, keep: number, options: PruneOptions = {}): Promise<Point[]> {
  await finishPrune(chain, options)
  const dropped = chain.points.slice(0, Math.max(0, chain.points.length - keep))
  if (dropped.length === 0) return []
  const kept = chain.points.slice(dropped.length)
  // Files below a full one are of no use to what is kept.
  const begin = chain.points.findLastIndex(({ kind }, i) => kind === 'full' && i <= dropped.length)
  const useless = chain.points.slice(0, begin)
  const [base, ...layers] = chain.points.slice(begin, dropped.length + 1)
  // What is merged gets a digest of its own: damage must not become rightful.
  if (layers.length > 0) for (const point of [base, ...layers]) await checkDigest(chain, point, options)
  await chain.save({
    points: kept,
    dropped: useless.map(({ file }) => file),
    ...(layers.length > 0 && { merging: { base: base.file, layers: layers.map(({ file }) => file) } })
  })
  await finishPrune(chain, options)
  return dropped
}

/** Does what the manifest says is to be done still, from wherever it was cut off. @throws as prune */
export async function finishPrune(chain: Chain, options: PruneOptions = {}): Promise<void> {
  const { dropped } = chain.manifest
  if (dropped) {
    for (const file of dropped) await chain.remove(file)
    await chain.save({ dropped: undefined })
  }
  for (;;) {
    const { merging, points } = chain.manifest
    if (!merging) return
    const { base } = merging
    const [layer, ...rest] = merging.layers
    options.onStep?.(`${layer} is merged into ${base}`)
    // The rename may be done, and not on record.
    if (!(await isMerged(chain, base, layer))) {
      await mergeLayer(chain, base, layer, options)
      await chain.rename(base, layer)
    }
    if (rest.length > 0) {
      await chain.save({ merging: { base: layer, layers: rest } })
      continue
    }
    options.onStep?.(`the digest of ${layer} is made`)
    const { sha256, bytes } = await atTarget(chain.folder, () => digestOf(chain.path(layer), options))
    const [oldest, ...others] = points
    const merged: Point = { ...oldest, kind: 'full', backing: undefined, sha256, stored_bytes: bytes }
    await chain.save({ points: [merged, ...others], merging: undefined })
  }
}

async function isMerged(chain: Chain, base: string, layer: string): Promise<boolean> {
  if (!(await chain.has(layer))) throw swapped(chain, layer, 'it is gone')
  if (await chain.has(base)) return false
  const { backing } = await readLayer(chain, layer)
  if (backing === undefined) return true
  throw swapped(chain, base, 'it is gone')
}

async function mergeLayer(chain: Chain, base: string, layer: string, { signal }: PruneOptions): Promise<void> {
  // A tool that was killed can leave clusters that nothing uses; they do no harm, and are given back.
  await chain.run('qemu-img', ['check', '-q', '-f', 'qcow2', '-r', 'leaks', base], { signal, statuses: [0, 3] })
  const { sizeBytes } = await readLayer(chain, layer)
  const { sizeBytes: baseBytes } = await readLayer(chain, base)
  if (baseBytes > sizeBytes) {
    await chain.run('qemu-io', ['-f', 'qcow2', ...zeroing(sizeBytes, baseBytes), base], { signal })
    await chain.run('qemu-img', ['resize', '-q', '-f', 'qcow2', '--shrink', base, String(sizeBytes)], { signal })
  }
  await chain.run('qemu-img', ['commit', '-q', '-d', '-f', 'qcow2', layer], { signal })
  const after = await readLayer(chain, base)
  if (after.sizeBytes !== sizeBytes || after.backing !== undefined) {
    throw new DeltamapperError(
      'DM_TOOL_FAILED',
      `\`qemu-img commit\` left ${base} with ${after.sizeBytes} bytes, where ${layer} has ${sizeBytes}`,
      'report it with the version of qemu-img; the points that are kept can be restored'
    )
  }
  await chain.syncFile(base)
}

/** The most that qemu-io zeroes at once, in bytes. (It takes less than 2 GiB.) */
const ZEROED_AT_ONCE = 2 ** 30

/** Words for qemu-io: bytes `[begin, end)` become zeros that take no room (`-u`), and are on disk when it ends. */
function zeroing(begin: number, end: number): string[] {
  const words: string[] = []
  for (let at = begin; at < end; at += ZEROED_AT_ONCE) {
    words.push('-c', `write -z -u ${at} ${Math.min(ZEROED_AT_ONCE, end - at)}`)
  }
  return words
}
