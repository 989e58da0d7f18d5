/**
 * What era metadata is asked while it is damaged, and everything that can be wrong with it.
 */
import { openEraMetadata } from '../../src/devicemapper/era/era-metadata.ts'
import { collectExtents } from './collect-extents.ts'
import { type Answer, DamageTrial } from './damage-trial.ts'
import { eraField, type EraImage, sealEraBlock, writeEraImage } from './era-image.ts'
import { EraModel, extentsOfBlocks } from './era-model.ts'
import { blockOf, type Damage, NodeFields } from './metadata-damage.ts'
import { BLOCK_BYTES } from './metadata-image.ts'
import type { Random } from './random.ts'
import { StrictEraReader } from './strict-era-reader.ts'

const U32_MAX = 2 ** 32 - 1
const U64_MAX = 2n ** 64n - 1n

/** A device of two bitset blocks with trees of several levels, digested and undigested eras, and a metadata snapshot. */
export function smallEraDevice(random: Random): EraImage {
  const model = new EraModel(34_000)
  const write = (count: number) => {
    for (let i = 0; i < count; i++) {
      const begin = random.integer(0, 33_990)
      for (let block = begin; block < begin + random.integer(1, 9); block++) model.write(block)
    }
  }
  for (let era = 1; era < 8; era++) {
    write(20)
    if (era === 6) model.takeSnapshot()
    else model.checkpoint()
    if (era <= 2) model.digest()
    if (era === 3) model.digest(15_000)
  }
  write(20)
  return writeEraImage(model.view(), {
    random,
    nodeEntries: 3,
    placement: 'scattered',
    unusedBlocks: 5,
    ...(model.held ? { held: model.held } : {})
  })
}

interface Question {
  readonly liveRoot: boolean
  readonly sinceEra: number
}

/** The whole, writesets alone, and the last era that the view knows. */
const questions: readonly Question[] = [
  { liveRoot: false, sinceEra: 2 },
  { liveRoot: false, sinceEra: 6 },
  { liveRoot: true, sinceEra: 1 },
  { liveRoot: true, sinceEra: 8 }
]

/** @param path where the image is written, damaged, and asked */
export async function beginEraTrial(image: EraImage, path: string): Promise<DamageTrial<EraImage, Question>> {
  return DamageTrial.begin(image, path, { questions, askAll, strictAnswer })
}

/** What is thrown is an answer too; so is no answer at all within the time. */
async function askAll(path: string, asked: readonly Question[]): Promise<Answer[]> {
  const answers: Answer[] = []
  for (const question of asked) answers.push(await ask(path, question).catch((thrown: unknown) => ({ thrown })))
  return answers
}

async function ask(path: string, { liveRoot, sinceEra }: Question): Promise<Answer> {
  const metadata = await openEraMetadata(path, { liveRoot })
  try {
    const signal = AbortSignal.timeout(20_000)
    return { text: JSON.stringify(await collectExtents(await metadata.written({ sinceEra, signal }))) }
  } finally {
    await metadata.close()
  }
}

function strictAnswer(bytes: Buffer, { liveRoot, sinceEra }: Question): string {
  const reader = new StrictEraReader(bytes, liveRoot)
  const { blockBytes, blocks } = reader
  const sizing = { blockBytes, sizeBytes: blocks * blockBytes }
  if (!Number.isSafeInteger(sizing.sizeBytes)) throw new Error('the size is beyond 2^53')
  return JSON.stringify(extentsOfBlocks(reader.written(sinceEra), sizing))
}

/** Everything that can be wrong with a block of the image, each with a right checksum. */
export function* eraDamages(image: EraImage, block: number, random: Random): Generator<Damage> {
  const kind = image.kinds.get(block)
  if (kind === 'node') yield* nodeDamages(image, block, random)
  else if (kind === 'array') yield* arrayDamages(image, block, random)
  else if (kind === 'superblock' || kind === 'metadata snapshot') yield* superblockDamages(image, block, random)
}

function rewrite(
  block: number,
  kind: Parameters<typeof sealEraBlock>[1],
  name: string,
  change: (block: Buffer) => void
): Damage {
  return {
    name: `block ${block}: ${name}`,
    block,
    apply(bytes) {
      change(blockOf(bytes, block))
      sealEraBlock(blockOf(bytes, block), kind)
    }
  }
}

function* nodeDamages(image: EraImage, block: number, random: Random): Generator<Damage> {
  const { entries, maxEntries, internal, valueSize } = new NodeFields(blockOf(image.bytes, block))
  const node = (name: string, change: (fields: NodeFields) => void) =>
    rewrite(block, 'node', name, (bytes) => change(new NodeFields(bytes)))
  for (const flags of [0, internal ? 2 : 1, 3, U32_MAX]) yield node(`flags ${flags}`, (n) => (n.flags = flags))
  yield node('another block number', (n) => (n.blocknr = BigInt(block) + 1n))
  for (const count of [0, entries - 1, entries + 1, maxEntries, maxEntries + 1, U32_MAX]) {
    if (count !== entries && count >= 0) yield node(`${count} entries for ${entries}`, (n) => (n.entries = count))
  }
  for (const most of [0, maxEntries - 3, maxEntries + 3, 2 ** 29, U32_MAX]) {
    yield node(`${most} at most for ${maxEntries}`, (n) => (n.maxEntries = most))
  }
  for (const size of [0, 4, 8, 12, U32_MAX])
    if (size !== valueSize) yield node(`values of ${size} bytes`, (n) => (n.valueSize = size))
  for (let i = 0; i < entries; i++) {
    const key = new NodeFields(blockOf(image.bytes, block)).key(i)
    for (const other of [key + 1n, key - 1n, 0n, 2n ** 31n, 2n ** 53n + 1n, U64_MAX]) {
      if (other !== key && other >= 0n) yield node(`key ${other} for ${key}`, (n) => n.setKey(i, other))
    }
    // In a writeset's record, the bits come before the root.
    for (const [name, to] of pointers(image, block, random)) {
      yield rewrite(block, 'node', `entry ${i} leads to ${name}`, (bytes) =>
        bytes.writeBigUInt64LE(to, 32 + 8 * maxEntries + valueSize * i + (valueSize === 12 ? 4 : 0))
      )
    }
    if (valueSize === 12) {
      for (const bits of [0, 1, 32_576, 34_001, 70_000, 2 ** 31, U32_MAX]) {
        yield rewrite(block, 'node', `${bits} bits`, (bytes) => bytes.writeUInt32LE(bits, 32 + 8 * maxEntries + 12 * i))
      }
    }
  }
}

function* arrayDamages(image: EraImage, block: number, random: Random): Generator<Damage> {
  const fields = { 'max entries': 4, entries: 8, 'value size': 12, 'own number': 16 }
  for (const [name, at] of Object.entries(fields)) {
    const now = blockOf(image.bytes, block).readUInt32LE(at)
    for (const value of [0, 1, 4, 8, 509, 1018, now - 1, now + 1, U32_MAX]) {
      if (value !== now && value >= 0)
        yield rewrite(block, 'array', `${name} ${value}`, (bytes) => bytes.writeUInt32LE(value, at))
    }
  }
  for (let i = 0; i < 4; i++) {
    const at = 24 + 4 * random.integer(0, 1017)
    const value = random.pick([0, 1, 5, 7, 9, 2 ** 31, U32_MAX])
    yield rewrite(block, 'array', `word at ${at} becomes ${value}`, (bytes) => bytes.writeUInt32LE(value, at))
  }
}

function* superblockDamages(image: EraImage, block: number, random: Random): Generator<Damage> {
  const superblock = (name: string, change: (bytes: Buffer) => void) => rewrite(block, 'superblock', name, change)
  for (const field of [
    'blockSectors',
    'blocks',
    'currentEra',
    'currentBits',
    'version',
    'metadataBlockSize'
  ] as const) {
    for (const value of [0, 1, 2, 5, 7, 8, 9, 128, 4096, 33_999, 34_001, 2 ** 31 - 1, 2 ** 31, U32_MAX]) {
      yield superblock(`${field} ${value}`, (bytes) => bytes.writeUInt32LE(value, eraField[field]))
    }
  }
  for (const field of [
    'currentRoot',
    'writesetTreeRoot',
    'eraArrayRoot',
    'metadataSnapshot',
    'blocknr',
    'magic'
  ] as const) {
    for (const [name, to] of pointers(image, block, random)) {
      yield superblock(`${field} is ${name}`, (bytes) => bytes.writeBigUInt64LE(to, eraField[field]))
    }
  }
}

/** Where a pointer could wrongly lead. */
function pointers(image: EraImage, block: number, random: Random): [name: string, block: bigint][] {
  const named: [string, bigint][] = [
    ['itself', BigInt(block)],
    ['the superblock', 0n],
    ['the first block beyond the end', BigInt(image.bytes.length / BLOCK_BYTES)],
    ['beyond 2^53', 2n ** 53n + 1n],
    ['the last number there is', U64_MAX]
  ]
  for (const kind of ['node', 'array', 'metadata snapshot', 'unused', 'bitmap'] as const) {
    const some = [...image.kinds].filter(([, each]) => each === kind).map(([number]) => number)
    for (const number of random.shuffle(some).slice(0, kind === 'node' || kind === 'array' ? 3 : 1)) {
      named.push([`${kind} ${number}`, BigInt(number)])
    }
  }
  return named
}
