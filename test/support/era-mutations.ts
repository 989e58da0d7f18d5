/**
 * The campaign of mutations.ts on era metadata.
 */
import { openEraMetadata } from '../../src/devicemapper/era/era-metadata.ts'
import { collectExtents } from './collect-extents.ts'
import { type EraImage, eraField, sealEraBlock, writeEraImage } from './era-image.ts'
import { EraModel, extentsOfBlocks } from './era-model.ts'
import { eraCheck, eraInvalidate, type EraTools } from './era-tools.ts'
import { blockOf, NodeFields } from './metadata-damage.ts'
import { BLOCK_BYTES } from './metadata-image.ts'
import type { Campaign, MutatedAnswer, MutatedQuestion, Mutation } from './mutations.ts'
import { mutateKeysOrCounts } from './node-mutations.ts'
import type { Random } from './random.ts'

const BLOCKS = 100_000
const BLOCK = 65536

interface EraQuestion extends MutatedQuestion {
  readonly liveRoot: boolean
  readonly sinceEra: number
  readonly sizeBytes: number | undefined
  readonly startingOffset: number
}

/**
 * A suspended device of four bitset blocks, so that all eras are archived, with digested and undigested ones and a metadata snapshot. Its nodes
 * are as full as era_check wants them, so that each tree is of one; taller ones are for era-damage.ts.
 */
function eraImage(random: Random): EraImage {
  const model = new EraModel(BLOCKS)
  for (let era = 1; era < 8; era++) {
    for (let i = 0; i < 40; i++) {
      const begin = random.integer(0, BLOCKS - 10)
      for (let block = begin; block < begin + random.integer(1, 9); block++) model.write(block)
    }
    if (era === 5) model.takeSnapshot()
    else model.checkpoint()
    if (era <= 2) model.digest()
    if (era === 3) model.digest(15_000)
  }
  model.suspend()
  const held = model.held
  return writeEraImage(model.view(), { random, placement: 'scattered', ...(held && { held }) })
}

function questionsOf(random: Random): EraQuestion[] {
  const questions: EraQuestion[] = []
  const add = (liveRoot: boolean, sinceEra: number, sizeBytes?: number, startingOffset = 0) => {
    const isCut = sizeBytes !== undefined || startingOffset > 0
    const name = `${liveRoot ? 'live' : 'held'} since ${sinceEra} ${sizeBytes ?? ''} from ${startingOffset}`
    questions.push({ name, isCut, liveRoot, sinceEra, sizeBytes, startingOffset })
  }
  add(true, 1)
  add(true, 3)
  add(true, 6)
  add(false, 2)
  add(false, 4)
  add(true, 1, random.integer(1, BLOCKS) * BLOCK)
  add(true, 1, undefined, random.integer(1, BLOCKS) * BLOCK)
  return questions
}

/** @param tools whose opinion counts */
export function eraCampaign(random: Random, tools: EraTools): Campaign<EraQuestion> {
  const image = eraImage(random)
  const questions = questionsOf(random)
  return {
    bytes: image.bytes,
    questions,
    mutate: (bytes, draw) => mutate(image, bytes, draw),
    ask: (path) => askAll(path, questions),
    check: (path) => eraCheck(tools, path),
    // 0.9.0 reads the live root only, and knows neither sizes nor offsets.
    oracle: async (path, { liveRoot, sinceEra, isCut }) => {
      if (!liveRoot || isCut) return undefined
      const blocks = await eraInvalidate(tools, path, sinceEra)
      const metadata = await openEraMetadata(path, { liveRoot })
      const { sizeBytes, superblock } = metadata
      await metadata.close()
      const inside = blocks.filter((block) => block < superblock.blocks)
      return extentsOfBlocks(inside, { blockBytes: superblock.blockBytes, sizeBytes })
    }
  }
}

async function askAll(path: string, questions: readonly EraQuestion[]): Promise<MutatedAnswer[]> {
  const answers: MutatedAnswer[] = []
  for (const { liveRoot, ...question } of questions) {
    try {
      const metadata = await openEraMetadata(path, { liveRoot })
      try {
        const stream = await metadata.written({ ...question, signal: AbortSignal.timeout(10_000) })
        answers.push(await collectExtents(stream))
      } finally {
        await metadata.close()
      }
    } catch (thrown) {
      answers.push({ thrown })
    }
  }
  return answers
}

function mutate(image: EraImage, bytes: Buffer, random: Random): Mutation {
  const kind = random.pick(['node', 'node', 'node', 'array', 'array', 'superblock'] as const)
  if (kind === 'superblock') return mutateSuperblock(image, bytes, random)
  const block = random.pick(blocksOf(image, kind))
  if (kind === 'array') return mutateArray(image, bytes, block, random)
  const fields = new NodeFields(blockOf(bytes, block))
  const change = (what: string, unnoticed: Mutation['unnoticed'], others: number[] = []): Mutation => {
    for (const each of [block, ...others]) sealEraBlock(blockOf(bytes, each), 'node')
    return { name: `node ${block}: ${what}`, blocks: [block, ...others], unnoticed }
  }
  const { entries, valueSize, maxEntries } = fields
  if (entries === 0 || random.chance(0.5)) {
    const what = mutateKeysOrCounts(fields, random)
    return change(
      what,
      what.startsWith('entry 0 is taken out') ? 'oldest' : what.includes('entries at most') ? 'room' : undefined
    )
  }
  const at = random.integer(0, entries - 1)
  const place = (i: number, most = maxEntries) => 32 + 8 * most + valueSize * i
  const content = blockOf(bytes, block)
  if (valueSize === 12 && random.chance(0.4)) {
    const bits = random.pick([0, 1, 32_576, BLOCKS - 1, BLOCKS + 1, random.integer(0, 2 * BLOCKS)])
    content.writeUInt32LE(bits, place(at))
    return change(`${bits} bits in entry ${at}`, undefined)
  }
  const root = valueSize === 12 ? 4 : 0
  const alike = blocksOf(image, 'node').filter((each) => {
    const theirs = new NodeFields(blockOf(bytes, each))
    return theirs.valueSize === valueSize && theirs.internal === fields.internal && theirs.entries > 0
  })
  if (random.chance(0.6)) {
    const other = random.pick([block, ...alike])
    const theirs = new NodeFields(blockOf(bytes, other))
    const i = random.integer(0, theirs.entries - 1)
    const there = 32 + 8 * theirs.maxEntries + valueSize * i + root
    const mine = content.readBigUInt64LE(place(at) + root)
    content.writeBigUInt64LE(blockOf(bytes, other).readBigUInt64LE(there), place(at) + root)
    blockOf(bytes, other).writeBigUInt64LE(mine, there)
    return change(`pointer ${at} swapped with pointer ${i} of ${other}`, 'pointer', [other])
  }
  const to = random.integer(0, bytes.length / BLOCK_BYTES)
  content.writeBigUInt64LE(BigInt(to), place(at) + root)
  return change(`pointer ${at} leads to ${to}`, 'pointer')
}

function mutateArray(image: EraImage, bytes: Buffer, block: number, random: Random): Mutation {
  const content = blockOf(bytes, block)
  const done = (what: string, unnoticed: Mutation['unnoticed']): Mutation => {
    sealEraBlock(content, 'array')
    return { name: `array block ${block}: ${what}`, blocks: [block], unnoticed }
  }
  if (random.chance(0.3)) {
    const offset = random.pick([4, 8, 12, 16])
    const value = random.pick([0, 1, 4, 8, 509, 1018, content.readUInt32LE(offset) + random.pick([-1, 1])])
    content.writeUInt32LE(value >>> 0, offset)
    return done(`${value} at ${offset}`, undefined)
  }
  if (random.chance(0.2)) {
    const other = random.pick(blocksOf(image, 'array'))
    blockOf(bytes, other).copy(content)
    content.writeBigUInt64LE(BigInt(block), 16)
    return done(`the content of ${other}`, 'content')
  }
  const at = 24 + 4 * random.integer(0, 1017)
  const value = random.pick([0, 1, 5, 2 ** 31, random.uint32()])
  content.writeUInt32LE(value, at)
  return done(`${value} at ${at}`, 'content')
}

function mutateSuperblock(image: EraImage, bytes: Buffer, random: Random): Mutation {
  const block = random.pick([0, image.snapshot])
  const content = blockOf(bytes, block)
  const done = (what: string, unnoticed: Mutation['unnoticed']): Mutation => {
    sealEraBlock(content, 'superblock')
    return { name: `superblock ${block}: ${what}`, blocks: [block], unnoticed }
  }
  if (random.chance(0.5)) {
    const field = random.pick(['currentRoot', 'writesetTreeRoot', 'eraArrayRoot', 'metadataSnapshot'] as const)
    const to = random.pick([0, block, random.integer(0, bytes.length / BLOCK_BYTES), ...blocksOf(image, 'node')])
    content.writeBigUInt64LE(BigInt(to), eraField[field])
    return done(`${field} is ${to}`, 'pointer')
  }
  const field = random.pick([
    'blockSectors',
    'blocks',
    'currentEra',
    'currentBits',
    'version',
    'metadataBlockSize'
  ] as const)
  const value = random.pick([
    0,
    1,
    8,
    128,
    256,
    BLOCKS,
    content.readUInt32LE(eraField[field]) + random.pick([-1, 1, 7])
  ])
  content.writeUInt32LE(value >>> 0, eraField[field])
  return done(`${field} is ${value}`, undefined)
}

function blocksOf({ kinds }: EraImage, kind: 'node' | 'array'): number[] {
  return [...kinds].flatMap(([block, each]) => (each === kind ? [block] : []))
}
