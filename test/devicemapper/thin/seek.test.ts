/**
 * A stream may be left and taken up again anywhere. The rule: with a starting offset S, extents that end at or before S are not returned;
 * S is rounded down to the start of its data block, and an extent that begins before that is cut there. So whatever the pieces, together
 * they are the whole stream.
 */
import { rm } from 'node:fs/promises'

import test from 'ava'
import fc from 'fast-check'

import { DeltamapperError } from '../../../src/errors.ts'
import { openPoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import type { PoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import type { ExtentStream } from '../../../src/devicemapper/extents.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { fromStartingOffset } from '../../support/expected.ts'
import type { Extent } from '../../support/expected.ts'
import { flavours, writtenPool } from '../../support/random-pool.ts'
import type { TestPool } from '../../support/random-pool.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const RUNS = 60

/** A question about a random pool, to be asked with different offsets. */
interface Asked {
  readonly pool: TestPool
  readonly sizeBytes: number
  readonly from: (startingOffset: number) => Promise<ExtentStream>
}

/** Where in a range something lies, from its start (0) to its end (1). */
const place = fc.nat({ max: 1_000_000 }).map((millionths) => millionths / 1_000_000)

const choice = fc.record({
  seed: fc.nat({ max: 100_000 }),
  flavour: fc.constantFrom(...flavours.filter((each) => each !== 'many devices')),
  base: place,
  target: place,
  size: place,
  baseSize: fc.option(place)
})

test('an answer from any offset on is the whole one cut there', async (t) => {
  await fc.assert(
    fc.asyncProperty(choice, fc.array(place, { minLength: 1, maxLength: 8 }), async (chosen, offsets) => {
      await asking(chosen, async ({ pool, sizeBytes, from }) => {
        const whole = await collectExtents(await from(0))
        for (const offset of offsets.map((each) => Math.floor(each * (sizeBytes - 1)))) {
          const stream = await from(offset)
          t.is(stream.capacityBytes, sizeBytes)
          t.deepEqual(
            await collectExtents(stream),
            fromStartingOffset(whole, offset, pool.blockSizeBytes),
            `${pool.name}, offset ${offset}`
          )
        }
      })
    }),
    { numRuns: RUNS, includeErrorInReport: true }
  )
})

test('taken up again after any number of extents, the pieces are the whole stream', async (t) => {
  await fc.assert(
    fc.asyncProperty(choice, fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }), async (chosen, lengths) => {
      await asking(chosen, async ({ pool, from }) => {
        const whole = await collectExtents(await from(0))
        const pieces: Extent[] = []
        let offset = 0
        for (let round = 0; ; round++) {
          const most = lengths[round % lengths.length]
          const piece = await collectExtents(await from(offset), most)
          pieces.push(...piece)
          if (piece.length < most) break
          const [begin, size] = piece[piece.length - 1]
          t.true(begin + size > offset, 'each piece goes on')
          offset = begin + size
        }
        t.deepEqual(pieces, whole, pool.name)
      })
    }),
    { numRuns: RUNS, includeErrorInReport: true }
  )
})

test('cut anywhere, the union of the pieces is the whole stream', async (t) => {
  await fc.assert(
    fc.asyncProperty(choice, fc.array(place, { maxLength: 6 }), async (chosen, places) => {
      await asking(chosen, async ({ pool, sizeBytes, from }) => {
        const whole = await collectExtents(await from(0))
        const cuts = [0, ...places.map((each) => Math.floor(each * (sizeBytes - 1))).sort((one, other) => one - other)]
        const pieces: Extent[] = []
        for (const [index, cut] of cuts.entries()) {
          const end = cuts[index + 1] ?? sizeBytes
          for (const [begin, size] of await collectExtents(await from(cut))) {
            if (begin < end) pieces.push([begin, Math.min(begin + size, end) - begin])
          }
        }
        t.deepEqual(union(pieces), whole, pool.name)
      })
    }),
    { numRuns: RUNS, includeErrorInReport: true }
  )
})

test('at the very end nothing is left, and beyond it is out of range', async (t) => {
  await asking(
    { seed: 7, flavour: 'dense', base: 0, target: 1, size: 1, baseSize: null },
    async ({ sizeBytes, from }) => {
      t.deepEqual(await collectExtents(await from(sizeBytes)), [])
      for (const offset of [sizeBytes + 1, -1]) {
        const error = await t.throwsAsync(from(offset), { instanceOf: DeltamapperError })
        t.is(error?.code, 'DM_OFFSET_OUT_OF_RANGE')
      }
    }
  )
})

type Choice = typeof choice extends fc.Arbitrary<infer T> ? T : never

/** Makes the pool, opens it, hands over the question, and cleans up. */
async function asking(chosen: Choice, use: (asked: Asked) => Promise<void>): Promise<void> {
  const pool = await writtenPool(chosen.seed, folder, chosen.flavour)
  const metadata = await openPoolMetadata(pool.path, { liveRoot: !pool.metadataSnapshot })
  try {
    const [baseId, targetId] = [chosen.base, chosen.target].map((each) => pickAt(pool.deviceIds, each))
    const end = await mappedEnd(metadata, targetId)
    const most = Math.min(Number.MAX_SAFE_INTEGER, end + 3 * pool.blockSizeBytes)
    const sizeBytes = 1 + Math.floor(chosen.size * (most - 1))
    // Where base and target come out the same, everything the device maps is asked for.
    const sizes = {
      sizeBytes,
      baseSizeBytes: chosen.baseSize === null ? undefined : Math.floor(chosen.baseSize * most)
    }
    const from = (startingOffset: number) =>
      baseId === targetId
        ? metadata.allocated({ deviceId: targetId, sizeBytes, startingOffset })
        : metadata.delta({ baseId, targetId, ...sizes, startingOffset })
    await use({ pool, sizeBytes, from })
  } finally {
    await metadata.close()
    await rm(pool.path)
  }
}

async function mappedEnd(metadata: PoolMetadata, deviceId: number): Promise<number> {
  return (await metadata.allocated({ deviceId })).capacityBytes
}

function pickAt<T>(items: readonly T[], at: number): T {
  return items[Math.min(items.length - 1, Math.floor(at * items.length))]
}

/** Ascending pieces, joined where they touch or overlap. */
function union(pieces: readonly Extent[]): Extent[] {
  const joined: [number, number][] = []
  for (const [begin, size] of pieces) {
    const last = joined.at(-1)
    if (last !== undefined && begin <= last[0] + last[1]) last[1] = Math.max(last[1], begin + size - last[0])
    else joined.push([begin, size])
  }
  return joined
}
