/**
 * Spoiled XML, read three ways: quickly and in pieces, plainly, and naively. The tests do it with some documents, the soak run with many.
 */
import { isDeepStrictEqual } from 'node:util'
import fc from 'fast-check'
import { XmlInvalid, type XmlOptions } from '../../src/devicemapper/xml-stream.ts'
import { naiveDelta, naiveDump, naiveEraDump, naiveInvalidate, type Node, Refusal } from './naive-xml.ts'
import { Random } from './random.ts'
import { randomCuts, readDelta, readDump, readEraDump, readInvalidate, streamOf } from './read-xml.ts'
import { asAnybodyMight, asPrinted } from './spell-xml.ts'
import { spoiled } from './spoil-xml.ts'
import { deltaDocument, dumpDocument, eraDumpDocument, invalidateDocument } from './xml-documents.ts'

export interface TriedDialect {
  tool: string
  read: (bytes: AsyncIterable<Uint8Array>, options?: XmlOptions) => Promise<unknown>
  naive: (bytes: Uint8Array) => unknown
  document: fc.Arbitrary<Node>
}

export const triedDialects: readonly TriedDialect[] = [
  { tool: 'thin_delta', read: readDelta, naive: naiveDelta, document: deltaDocument },
  { tool: 'thin_dump', read: readDump, naive: naiveDump, document: dumpDocument },
  { tool: 'era_invalidate', read: readInvalidate, naive: naiveInvalidate, document: invalidateDocument },
  { tool: 'era_dump', read: readEraDump, naive: naiveEraDump, document: eraDumpDocument }
]

export interface SpoiledTally {
  refused: number
  accepted: number
}

/** Reads `trials` spoiled spellings of a document. @throws Error where two ways of reading disagree, with the document */
export async function trySpoiled(
  dialect: TriedDialect,
  root: Node,
  random: Random,
  trials: number
): Promise<SpoiledTally> {
  const printed = Buffer.from(random.chance(0.7) ? asPrinted(root) : asAnybodyMight(root, random, 0.1))
  const tally = { refused: 0, accepted: 0 }
  for (let trial = 0; trial < trials; trial++) {
    tally[await tryBytes(dialect, spoiled(printed, random), random)]++
  }
  return tally
}

/** Reads these bytes in every way. */
export async function tryBytes({ tool, read, naive }: TriedDialect, bytes: Uint8Array, random: Random) {
  const quick = await outcome(read(streamOf(bytes, randomCuts(random, bytes.length))))
  const plain = await outcome(read(streamOf(bytes), { quick: false }))
  const expected = naively(naive, bytes)
  const refused = 'refused' in quick
  const agree = isDeepStrictEqual(quick, plain) && isDeepStrictEqual(refused ? { refused: true } : quick, expected)
  if (agree) return refused ? 'refused' : 'accepted'
  const verdicts = JSON.stringify({ quick, plain, expected }, (_, value: unknown) =>
    typeof value === 'bigint' ? String(value) : value
  )
  throw new Error(`${tool}: ${verdicts} of\n${JSON.stringify(Buffer.from(bytes).toString('latin1'))}`)
}

/** What was read, or where it was refused. Anything thrown that is no XmlInvalid is a defect. */
export async function outcome(reading: Promise<unknown>): Promise<object> {
  try {
    return (await reading) as object
  } catch (error) {
    if (error instanceof XmlInvalid) return { refused: error.position }
    throw error
  }
}

function naively(naive: TriedDialect['naive'], bytes: Uint8Array): unknown {
  try {
    return naive(bytes)
  } catch (error) {
    if (error instanceof Refusal) return { refused: true }
    throw error
  }
}

/** Some hundred spoiled documents of each dialect, made from a seed. */
export async function trySpoiledDocuments(seed: number): Promise<SpoiledTally> {
  const tally = { refused: 0, accepted: 0 }
  const random = new Random(seed)
  for (const dialect of triedDialects) {
    for (const root of fc.sample(dialect.document, { seed, numRuns: 40 })) {
      const { refused, accepted } = await trySpoiled(dialect, root, random, 12)
      tally.refused += refused
      tally.accepted += accepted
    }
  }
  return tally
}
