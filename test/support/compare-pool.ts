/**
 * Asks the reader everything about a pool (each device, each ordered pair, at several sizes and offsets) and compares every answer with
 * the oracle's. The tests do it with a few pools, the soak run with many.
 */
import { isDeepStrictEqual } from 'node:util'

import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import type { PoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { collectExtents } from './collect-extents.ts'
import { deltaOf, recordedPairs, withoutOthers } from './compare-records.ts'
import { expectedAllocated, expectedDelta, fromStartingOffset, mappedEndBytes } from './expected.ts'
import type { Extent } from './expected.ts'
import { oracleOf } from './oracle.ts'
import type { Oracle } from './oracle.ts'
import { Random } from './random.ts'
import type { TestPool } from './random-pool.ts'

export interface Comparison {
  /** Ordered pairs of different devices. */
  readonly pairs: number
  /** Answers compared: one for each question, size and offset. */
  readonly answers: number
  readonly extents: number
}

/** What the reader says and what is so. */
export class Disagreement extends Error {
  override name = 'Disagreement'
}

/** The sizes and the offset of one question, in bytes; what is left out is for the reader to default. */
interface Variant {
  readonly sizeBytes?: number
  readonly baseSizeBytes?: number
  readonly startingOffset?: number
}

/** @throws Disagreement at the first answer that is not the oracle's, saying which question it was */
export async function comparePool(pool: TestPool, seed = 1): Promise<Comparison> {
  const random = new Random(seed)
  const oracle = await oracleOf(pool)
  const metadata = await openPoolMetadata(pool.path, { liveRoot: !pool.metadataSnapshot })
  let tally: Comparison = { pairs: 0, answers: 0, extents: 0 }
  try {
    await compareDevices(pool, metadata, oracle)
    for (const target of pool.deviceIds) {
      const allocated = await compareAllocated(pool, metadata, oracle, target, random)
      const deltas = await Promise.all(
        pool.deviceIds.map((base) => compareDelta(pool, metadata, oracle, base, target, random.fork()))
      )
      tally = [allocated, ...deltas].reduce(added, tally)
    }
    tally = added(tally, await compareRecords(pool, metadata, oracle, random))
  } finally {
    await metadata.close()
  }
  return tally
}

export function added(left: Comparison, right: Comparison): Comparison {
  return {
    pairs: left.pairs + right.pairs,
    answers: left.answers + right.answers,
    extents: left.extents + right.extents
  }
}

/** Removes the bases, and compares by their records with what the oracle said before. */
async function compareRecords(
  pool: TestPool,
  metadata: PoolMetadata,
  oracle: Oracle,
  random: Random
): Promise<Comparison> {
  const pairs = await recordedPairs(pool, metadata, oracle, random)
  let extents = 0
  for (const target of pool.deviceIds) {
    const after = await withoutOthers(pool, target)
    try {
      for (const pair of pairs.filter((each) => each.target === target)) {
        const actual = await deltaOf(pair, after)
        if (!isDeepStrictEqual(actual, pair.expected)) throw disagreement(pool, pair.question, actual, pair.expected)
        extents += actual.length
      }
    } finally {
      await after.close()
    }
  }
  for (const record of new Set(pairs.map((each) => each.record))) await record.close()
  return { pairs: 0, answers: pairs.length, extents }
}

async function compareDevices(pool: TestPool, metadata: PoolMetadata, oracle: Oracle): Promise<void> {
  const listed: unknown[] = []
  for await (const { id, details } of metadata.devices()) listed.push([id, plainDetails(details)])
  const expected = [...oracle.devices]
    .sort(([left], [right]) => left - right)
    .map(([id, device]) => [id, plainDetails(device)])
  if (!isDeepStrictEqual(listed, expected)) throw disagreement(pool, 'devices', listed, expected)
  for (const id of pool.deviceIds) {
    const details = plainDetails(await metadata.deviceDetails(id))
    const wanted = plainDetails(oracle.devices.get(id) as Details)
    if (!isDeepStrictEqual(details, wanted)) throw disagreement(pool, `details of ${id}`, details, wanted)
  }
}

interface Details {
  readonly mappedBlocks: number
  readonly transactionId: number | bigint
  readonly creationTime: number
  readonly snapshottedTime: number
}

function plainDetails({ mappedBlocks, transactionId, creationTime, snapshottedTime }: Details): unknown {
  return { mappedBlocks, transactionId: String(transactionId), creationTime, snapshottedTime }
}

async function compareAllocated(
  pool: TestPool,
  metadata: PoolMetadata,
  oracle: Oracle,
  deviceId: number,
  random: Random
): Promise<Comparison> {
  const mappings = oracle.devices.get(deviceId)?.mappings ?? []
  const { blockSizeBytes } = pool
  const end = mappedEndBytes(mappings, blockSizeBytes)
  let extents = 0
  const variants = [
    ...variantsFor(random, end, end, blockSizeBytes),
    ...known({ sizeBytes: pool.sizes?.get(deviceId) })
  ]
  for (const variant of variants) {
    const whole = expectedAllocated(mappings, { blockSizeBytes, ...variant })
    const expected = fromStartingOffset(whole, variant.startingOffset ?? 0, blockSizeBytes)
    const stream = await metadata.allocated({ deviceId, ...variant })
    const actual = await collectExtents(stream)
    const question = `allocated of device ${deviceId} ${JSON.stringify(variant)}`
    if (!isDeepStrictEqual(actual, expected)) throw disagreement(pool, question, actual, expected)
    if (stream.capacityBytes !== (variant.sizeBytes ?? end)) {
      throw disagreement(pool, `capacity: ${question}`, stream.capacityBytes, variant.sizeBytes ?? end)
    }
    extents += actual.length
  }
  return { pairs: 0, answers: variants.length, extents }
}

async function compareDelta(
  pool: TestPool,
  metadata: PoolMetadata,
  oracle: Oracle,
  baseId: number,
  targetId: number,
  random: Random
): Promise<Comparison> {
  const runs = await oracle.delta(baseId, targetId)
  const targetMappings = oracle.devices.get(targetId)?.mappings ?? []
  const { blockSizeBytes } = pool
  const targetEnd = mappedEndBytes(targetMappings, blockSizeBytes)
  const baseEnd = mappedEndBytes(oracle.devices.get(baseId)?.mappings ?? [], blockSizeBytes)
  let extents = 0
  const variants = [
    ...variantsFor(random, targetEnd, baseEnd, blockSizeBytes),
    ...known({ sizeBytes: pool.sizes?.get(targetId), baseSizeBytes: pool.sizes?.get(baseId) })
  ]
  for (const variant of variants) {
    const whole = expectedDelta(runs, targetMappings, { blockSizeBytes, ...variant })
    const expected = fromStartingOffset(whole, variant.startingOffset ?? 0, blockSizeBytes)
    const stream = await metadata.delta({ baseId, targetId, ...variant })
    const actual = await collectExtents(stream)
    const question = `delta from device ${baseId} to ${targetId} ${JSON.stringify(variant)}`
    if (!isDeepStrictEqual(actual, expected)) throw disagreement(pool, question, actual, expected)
    extents += actual.length
  }
  return { pairs: baseId === targetId ? 0 : 1, answers: variants.length, extents }
}

/**
 * The default sizes, and others that cut the target short, that the base is smaller or larger than, that are no multiple of a data block;
 * some of them from an offset on.
 */
function variantsFor(random: Random, targetEnd: number, baseEnd: number, blockSizeBytes: number): Variant[] {
  const most = Number.MAX_SAFE_INTEGER
  const beyond = (end: number) => Math.min(most, end + random.integer(0, 5 * blockSizeBytes))
  const within = (end: number) => random.integer(Math.min(1, end), end)
  const aligned = (bytes: number) => bytes - (bytes % blockSizeBytes)
  const sized: Variant[] = [
    { sizeBytes: beyond(targetEnd) },
    { sizeBytes: within(targetEnd) },
    { sizeBytes: beyond(targetEnd), baseSizeBytes: within(Math.max(targetEnd, 1)) },
    { sizeBytes: beyond(targetEnd), baseSizeBytes: aligned(within(targetEnd)) },
    { sizeBytes: within(targetEnd), baseSizeBytes: beyond(targetEnd) },
    { sizeBytes: within(targetEnd), baseSizeBytes: within(targetEnd) },
    { baseSizeBytes: baseEnd },
    { sizeBytes: beyond(Math.max(targetEnd, baseEnd)), baseSizeBytes: 0 }
  ]
  return [{}, ...random.shuffle(sized).slice(0, 4)].map((variant) => {
    const size = variant.sizeBytes ?? targetEnd
    return size > 0 && random.chance(0.25) ? { ...variant, startingOffset: random.integer(0, size - 1) } : variant
  })
}

/** The sizes that the pool's history tells, if it does. */
function known(sizes: Partial<Record<keyof Variant, number | undefined>>): Variant[] {
  const told = Object.entries(sizes).filter(([, bytes]) => bytes !== undefined)
  return told.length === 0 ? [] : [Object.fromEntries(told)]
}

function disagreement(pool: TestPool, question: string, actual: unknown, expected: unknown): Disagreement {
  return new Disagreement(
    `${pool.name}: ${question}\n  answered ${summary(actual, expected)}\n  expected ${summary(expected, actual)}`
  )
}

/** The first few items from where two lists differ. */
function summary(one: unknown, other: unknown): string {
  if (!Array.isArray(one) || !Array.isArray(other)) return String(one)
  const at = one.findIndex((item, index) => !isDeepStrictEqual(item, other[index]))
  const from = at < 0 ? Math.min(one.length, other.length) : at
  const shown = (one as Extent[]).slice(from, from + 4).map((item) => JSON.stringify(item))
  return `${one.length} items, from item ${from} on: ${shown.join(' ') || '(none)'}`
}
