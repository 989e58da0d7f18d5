/**
 * A snapshot to export, wherever it is: what it has allocated, what differs from its bases, its bytes, and whether it
 * still is what it was.
 */
import { invalid } from '../errors.ts'
import { ALLOCATION, dirtyBitmap } from './contexts.ts'
import type { Export, ExportData } from './export.ts'
import { DIRTY, HOLE, MAX_STRING_BYTES, ZERO } from './protocol.ts'
import { type ExtentQuestion, StatusMap } from './status-map.ts'

/** What tells a snapshot from another of its name, and from what becomes of it. */
export interface SnapshotIdentity {
  /** LVM's, or the id in the agent's catalog, which is never used again. */
  readonly uuid?: string
  /** Of its mappings: whoever writes to it or trims it gives it another. */
  readonly fingerprint?: string
}

export interface NbdBase {
  readonly name: string
  /** `gone` where it is certain that nothing has its name; left out where nothing is known of it. */
  readonly identity?: SnapshotIdentity | 'gone' | undefined
  /** In bytes; undefined where nobody knows any more. */
  readonly sizeBytes: number | undefined
  readonly delta: ExtentQuestion
}

export interface NbdSource {
  readonly target: string
  /** Left out where nothing is known of it. */
  readonly identity?: SnapshotIdentity | undefined
  /** Handles of what it is a snapshot of, directly and indirectly. Left out where nothing is known of that. */
  readonly origins?: readonly string[] | undefined
  readonly sizeBytes: number
  /** An external origin shows wherever nothing is mapped, and nothing tells whether that was written to. */
  readonly hasExternalOrigin?: boolean | undefined
  /** Of a data block; undefined where it is not known. */
  readonly blockBytes: number | undefined
  readonly allocated: ExtentQuestion
  readonly bases: readonly NbdBase[]
  readonly data: ExportData
  /** Throws when the snapshot is not what it was when this was opened. */
  look(): Promise<void>
  close(): Promise<void>
}

/** What an export is about, and what its ranges sum up to. */
export interface Offer {
  readonly export: Export
  /** The base that it is seen from; undefined for the snapshot itself. */
  readonly base: string | undefined
}

/** Preferred request sizes have to be powers of two. */
const [LEAST_PREFERRED, MOST_PREFERRED] = [4096, 4 * 2 ** 20]

/**
 * The exports of a source: the snapshot, and for each base the increment from there.
 *
 * @throws DM_ARGUMENT_INVALID where a name is too long for the protocol
 */
export function offers(source: NbdSource): Offer[] {
  const { target, sizeBytes, blockBytes = 4096, allocated, bases, data } = source
  const isPower = Number.isInteger(Math.log2(blockBytes))
  const preferredBytes = isPower ? Math.min(Math.max(blockBytes, LEAST_PREFERRED), MOST_PREFERRED) : LEAST_PREFERRED
  const common = { sizeBytes, preferredBytes, data }
  const dirty = new Map(
    bases.map(({ name, delta }) => [
      name,
      new StatusMap({ sizeBytes, questions: [delta], state: ([changed]) => (changed ? DIRTY : 0) })
    ])
  )
  const allocation = new StatusMap({ sizeBytes, questions: [allocated], state: ([has]) => (has ? 0 : HOLE | ZERO) })
  const bitmaps = [...dirty].map(([name, map]) => [dirtyBitmap(name), map] as const)
  const whole: Offer = {
    base: undefined,
    export: {
      name: target,
      description: `snapshot ${target}`,
      contexts: new Map([[ALLOCATION, allocation], ...bitmaps]),
      ...common
    }
  }
  const increments = bases.map((base): Offer => {
    const bitmap = dirty.get(base.name)
    return {
      base: base.name,
      export: {
        name: `${base.name}..${target}`,
        description: `what changed from ${base.name} to ${target}: HOLE without ZERO is what did not`,
        contexts: new Map([
          [ALLOCATION, incrementView(source, base)],
          ...(bitmap ? [[dirtyBitmap(base.name), bitmap] as const] : [])
        ]),
        ...common
      }
    }
  })
  const all = [whole, ...increments]
  for (const each of all) {
    for (const name of [each.export.name, ...each.export.contexts.keys()]) checkName(name)
  }
  return all
}

/**
 * What makes `qemu-img convert -B` an incremental backup program: it leaves to the backing file what is HOLE and not
 * ZERO.
 *
 * - changed and allocated: 0, to be read
 * - changed and not allocated: HOLE and ZERO, to be zeroed
 * - unchanged: HOLE, to be left alone. Not beyond the base's end, where a backup of the base holds nothing: an
 *   increment that leaves that alone would let a chain bring older data back.
 *
 * Where nobody knows the base's end any more, what is not allocated is zeroed. What is allocated beyond the end has
 * changed by every answer (delta.ts, in devicemapper/thin and in devicemapper/cow).
 */
function incrementView({ sizeBytes, allocated }: NbdSource, { sizeBytes: baseBytes, delta }: NbdBase): StatusMap {
  return new StatusMap({
    sizeBytes,
    questions: [delta, allocated],
    // What did not change below the base's end is left alone, whether it is allocated or not.
    needsNext: ([changed], offset) => changed || offset >= (baseBytes ?? 0),
    boundary: baseBytes,
    state: ([changed, has], offset) => {
      if (!has) return changed || offset >= (baseBytes ?? 0) ? HOLE | ZERO : HOLE
      return changed || offset >= (baseBytes ?? Infinity) ? 0 : HOLE
    }
  })
}

function checkName(name: string): void {
  if (Buffer.byteLength(name) <= MAX_STRING_BYTES) return
  throw invalid('a name of an export would be too long for NBD', 'use shorter names')
}
