/**
 * Commits between any two reads of an answer: the pool's metadata is another from some read on, with its nodes anywhere.
 * What has left by then is right, and nothing that is wrong leaves.
 */
import { setImmediate } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import test from 'ava'
import { DeltamapperError } from '../../../src/errors.ts'
import type { OpenMedium } from '../../../src/devicemapper/metadata-medium.ts'
import { type Fingerprint, openPoolMetadata, type PoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import { writeMetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'

const METADATA_BYTES = 2 ** 21
const TRIALS = Number(process.env['LAB_COUNT'] ?? 60)

/** A device in memory, whose content `commit` replaces before the read of this number. */
class Device {
  content: Buffer
  reads = 0
  commitBefore = Infinity
  readonly #next: Buffer

  constructor(content: Buffer, next: Buffer) {
    this.content = content
    this.#next = next
  }

  readonly open: OpenMedium = async () => ({
    ...{ sizeBytes: this.content.length, device: { major: 254, minor: 1 }, isDirect: true, descriptor: -1 },
    readRuns: async (into, { count, starts, lengths, positions }) => {
      await setImmediate()
      for (let run = 0; run < count; run++) {
        if (this.reads++ === this.commitBefore) this.content = this.#next
        into.set(this.content.subarray(positions[run], positions[run] + lengths[run]), starts[run])
      }
      return undefined
    },
    readNow: () => 0,
    close: async () => undefined
  })
}

/** Base and target with some thousand changes, and the same pool after the target was written to or is gone. */
function poolAndNext(random: Random): { before: Buffer; after: Buffer; sizeBytes: number } {
  const shape = { leafEntries: 252, internalEntries: 252, split: 'anywhere' as const }
  const model = new PoolModel({ random, shape })
  const blocks = 3000
  model.createThin(0)
  for (let block = 0; block < blocks; block++) if (random.chance(0.8)) model.write(0, block)
  model.createSnapshot(1, 0)
  for (let i = 0; i < 400; i++) model.write(0, random.integer(0, blocks - 1))
  model.createSnapshot(2, 0)
  const image = () => {
    const { bytes } = writeMetadataImage(model, { random, placement: 'scattered', unusedBlocks: 50 })
    return Buffer.concat([bytes, Buffer.alloc(METADATA_BYTES)]).subarray(0, METADATA_BYTES)
  }
  const before = image()
  const changed = random.integer(1, 2)
  if (random.chance(0.3)) model.delete(changed)
  else for (let i = 0; i < random.integer(1, 50); i++) model.write(changed, random.integer(0, blocks - 1))
  return { before, after: image(), sizeBytes: blocks * model.blockSizeBytes }
}

type Extents = (readonly [offset: number, size: number])[]

/** The answer as a walker asks for it: one look at the devices, and a walk that begins with what it saw. */
async function delta(
  metadata: PoolMetadata,
  sizeBytes: number,
  received: Extents,
  onLooked = (): void => undefined
): Promise<void> {
  const [base, target] = [await metadata.pinned(1), await metadata.pinned(2)]
  onLooked()
  const fingerprints: { baseFingerprint: Fingerprint; fingerprint: Fingerprint } = {
    ...{ baseFingerprint: base.fingerprint, fingerprint: target.fingerprint }
  }
  const { batches } = await metadata.delta({ baseId: 1, targetId: 2, sizeBytes, ...fingerprints })
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) received.push([offsets[i], sizes[i]])
  }
}

test('whichever read a commit comes before, what has left is right, and the rest is an error', async (t) => {
  const outcomes: Record<string, number> = {}
  for (let trial = 0; trial < TRIALS; trial++) {
    const random = new Random(trial)
    const { before, after, sizeBytes } = poolAndNext(random)
    const still = new Device(before, after)
    const expected: Extents = []
    const metadata = await openPoolMetadata('pool', { open: still.open })
    let looked = 0
    await delta(metadata, sizeBytes, expected, () => (looked = still.reads))

    const device = new Device(before, after)
    device.commitBefore = random.integer(1, still.reads)
    const received: Extents = []
    let outcome = 'whole'
    try {
      await delta(await openPoolMetadata('pool', { open: device.open }), sizeBytes, received)
    } catch (error) {
      outcome = error instanceof DeltamapperError ? error.code : String(error)
    }
    const now: Extents = []
    await delta(await openPoolMetadata('pool', { open: new Device(after, after).open }), sizeBytes, now).catch(() => 0)
    // A commit during the looks is one before the answer: it is about what they found in the end.
    const isDuringLooks = device.commitBefore < looked
    if (outcome === 'whole' && isDuringLooks && isDeepStrictEqual(received, now)) outcome = 'whole, of the next'
    else if (outcome === 'whole') t.deepEqual(received, expected, `trial ${trial}, before read ${device.commitBefore}`)
    else t.deepEqual(received, expected.slice(0, received.length), `trial ${trial}, before read ${device.commitBefore}`)
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
  }
  t.log(outcomes)
  const { whole = 0, 'whole, of the next': next = 0, DM_SNAPSHOT_CHANGED: changed = 0 } = outcomes
  const { DM_DEVICE_NOT_FOUND: gone = 0 } = outcomes
  t.is(whole + next + changed + gone, TRIALS)
  t.true(changed > TRIALS / 3)
})
