/**
 * The campaign of mutations.ts on thin metadata.
 */
import { openPoolMetadata, type PoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { collectExtents } from './collect-extents.ts'
import { expectedAllocated, expectedDelta } from './expected.ts'
import { blockOf, NodeFields } from './metadata-damage.ts'
import { BLOCK_BYTES, type MetadataImage, seal, superblockField, writeMetadataImage } from './metadata-image.ts'
import type { Campaign, MutatedAnswer, MutatedQuestion, Mutation } from './mutations.ts'
import { mutateKeysOrCounts } from './node-mutations.ts'
import { PoolModel } from './pool-model.ts'
import type { Random } from './random.ts'
import { thinCheck, thinDelta, thinDump, thinDumpComplaint } from './thin-tools.ts'

const BLOCK = 65536

interface PoolQuestion extends MutatedQuestion {
  readonly baseId: number | undefined
  readonly targetId: number
  readonly sizeBytes: number | undefined
  readonly startingOffset: number
}

/** A pool of some sixty nodes: a volume, two snapshots of it, and one of a snapshot that was written to; trees of two and three levels. */
function poolImage(random: Random, isHeld: boolean): MetadataImage {
  const shape = { leafEntries: 9, internalEntries: 9, split: 'middle' } as const
  const model = new PoolModel({ random, shape })
  model.createThin(1)
  for (let block = 0; block < 120; block++) model.write(1, random.chance(0.2) ? random.integer(0, 300) : block)
  model.createSnapshot(2, 1)
  for (let i = 0; i < 6; i++) model.write(1, random.integer(0, 120))
  for (let i = 0; i < 3; i++) model.discard(1, random.integer(0, 120))
  model.createSnapshot(3, 1)
  for (let i = 0; i < 25; i++) model.write(3, random.integer(0, 400))
  model.createSnapshot(4, 3)
  for (let id = 20; id < 32; id++) model.createSnapshot(id, random.integer(1, 4))
  if (isHeld) {
    model.holdMetadataSnapshot()
    for (let i = 0; i < 5; i++) model.write(1, random.integer(0, 120))
  }
  return writeMetadataImage(model, { random, placement: 'scattered', topLevelShape: shape, detailsShape: shape })
}

function questionsOf(random: Random): PoolQuestion[] {
  const questions: PoolQuestion[] = []
  const add = (baseId: number | undefined, targetId: number, sizeBytes?: number, startingOffset = 0) => {
    const isCut = (sizeBytes !== undefined && sizeBytes < 2 ** 30) || startingOffset > 0
    const what = baseId === undefined ? `allocated ${targetId}` : `delta ${baseId} ${targetId}`
    const name = `${what} ${sizeBytes ?? ''} ${startingOffset === 0 ? '' : `from ${startingOffset}`}`
    questions.push({ name, isCut, baseId, targetId, sizeBytes, startingOffset })
  }
  for (const id of [1, 3]) add(undefined, id, random.chance(0.5) ? undefined : 2 ** 40)
  add(undefined, 2, random.integer(10, 100) * BLOCK)
  add(undefined, 1, 2 ** 40, random.integer(1, 100) * BLOCK)
  for (const [base, target] of [
    [2, 1],
    [1, 2],
    [2, 3],
    [3, 4],
    [1, 3]
  ]) {
    add(base, target, random.chance(0.5) ? undefined : 2 ** 40)
  }
  add(2, 3, random.integer(10, 100) * BLOCK)
  add(2, 3, 2 ** 40, random.integer(1, 100) * BLOCK)
  return questions
}

export function poolCampaign(random: Random): Campaign<PoolQuestion> {
  const isHeld = random.chance(0.5)
  const image = poolImage(random, isHeld)
  const questions = questionsOf(random)
  const view = { metadataSnapshot: isHeld }
  return {
    bytes: image.bytes,
    questions,
    mutate: (bytes, draw) => mutate(image, bytes, draw),
    ask: (path) => askAll(path, questions),
    // thin_check does not look at a held view, and thin_dump reads all of the one that is asked for.
    check: async (path) => (await thinCheck(path)) || thinDumpComplaint(path, view),
    oracle: async (path, { baseId, targetId, sizeBytes, startingOffset }) => {
      if (startingOffset > 0) return undefined
      const { devices, dataBlockSizeSectors } = await thinDump(path, view)
      const sizing = { blockSizeBytes: 512 * dataBlockSizeSectors, sizeBytes }
      const { mappings = [] } = devices.get(targetId) ?? {}
      if (baseId === undefined) return expectedAllocated(mappings, sizing)
      return expectedDelta(await thinDelta(path, baseId, targetId, view), mappings, sizing)
    }
  }
}

async function askAll(path: string, questions: readonly PoolQuestion[]): Promise<MutatedAnswer[]> {
  let metadata: PoolMetadata
  try {
    metadata = await openPoolMetadata(path)
  } catch (thrown) {
    return questions.map(() => ({ thrown }))
  }
  const answers: MutatedAnswer[] = []
  for (const { baseId, targetId, sizeBytes, startingOffset } of questions) {
    const signal = AbortSignal.timeout(10_000)
    const range = { sizeBytes, startingOffset, signal }
    try {
      const stream =
        baseId === undefined
          ? await metadata.allocated({ deviceId: targetId, ...range })
          : await metadata.delta({ baseId, targetId, ...range })
      answers.push(await collectExtents(stream))
    } catch (thrown) {
      answers.push({ thrown })
    }
  }
  await metadata.close()
  return answers
}

function mutate(image: MetadataImage, bytes: Buffer, random: Random): Mutation {
  const blocks = [...image.reachable()]
  const block = random.pick(blocks)
  const kind = image.kinds.get(block) ?? 'unused'
  if (kind === 'superblock' || kind === 'metadata snapshot') return mutateSuperblock(image, bytes, block, random)
  const fields = new NodeFields(blockOf(bytes, block))
  const change = (what: string, unnoticed: Mutation['unnoticed'], others: number[] = []): Mutation => {
    for (const each of [block, ...others]) seal(blockOf(bytes, each), 'node')
    return { name: `${kind} ${block}: ${what}`, blocks: [block, ...others], unnoticed }
  }
  if (fields.entries === 0 || random.chance(0.6)) {
    const what = mutateKeysOrCounts(fields, random)
    return change(what, what.includes('entries at most') ? 'room' : undefined)
  }
  const at = random.integer(0, fields.entries - 1)
  const nodes = blocks.filter((each) => image.kinds.get(each) === (kind === 'details node' ? kind : 'mapping node'))
  const other = random.pick(nodes)
  if (fields.internal || kind === 'top-level node') {
    if (random.chance(0.3)) {
      const twin = random.pick(
        nodes.filter((each) => new NodeFields(blockOf(bytes, each)).internal === fields.internal)
      )
      const theirs = new NodeFields(blockOf(bytes, twin))
      if (theirs.entries > 0) {
        const i = random.integer(0, theirs.entries - 1)
        const [mine, its] = [fields.value(at), theirs.value(i)]
        fields.setValue(at, its)
        if (theirs.internal) theirs.setValue(i, mine)
        return change(`value ${at} swapped with value ${i} of ${twin}`, 'pointer', [twin])
      }
    }
    fields.setValue(at, random.chance(0.8) ? BigInt(other) : fields.value(at) + 1n)
    return change(`value ${at} is ${fields.value(at)}`, 'pointer')
  }
  if (kind === 'details node') {
    const offset = 32 + 8 * fields.maxEntries + 24 * at + random.pick([0, 0, 8, 16, 20])
    const content = blockOf(bytes, block)
    const value = random.pick([0, 1, content.readUInt32LE(offset) + 1, random.integer(0, 400)])
    content.writeUInt32LE(value >>> 0, offset)
    return change(`the details at ${offset} are ${value}`, undefined)
  }
  if (random.chance(0.3)) {
    // Another node's content in this place: another level, or other mappings.
    const own = BigInt(block)
    blockOf(bytes, other).copy(blockOf(bytes, block))
    fields.blocknr = own
    return change(`the content of ${other}`, 'pointer')
  }
  const shift = BigInt(random.integer(0, 40))
  fields.setValue(
    at,
    random.chance(0.5) ? fields.value(at) ^ (1n << shift) : new NodeFields(blockOf(bytes, other)).value(0)
  )
  return change(`mapping ${at} is ${fields.value(at)}`, 'content')
}

function mutateSuperblock(image: MetadataImage, bytes: Buffer, block: number, random: Random): Mutation {
  const content = blockOf(bytes, block)
  const done = (what: string, unnoticed: Mutation['unnoticed']): Mutation => {
    seal(content, 'superblock')
    return { name: `superblock ${block}: ${what}`, blocks: [block], unnoticed }
  }
  if (random.chance(0.5)) {
    const field = random.pick(['mappingRoot', 'detailsRoot', 'heldRoot'] as const)
    const value = random.pick([0, block, random.integer(0, bytes.length / BLOCK_BYTES), ...image.reachable()])
    content.writeBigUInt64LE(BigInt(value), superblockField[field])
    return done(`${field} is ${value}`, 'pointer')
  }
  const field = random.pick([
    'time',
    'dataBlockSize',
    'metadataBlockSize',
    'version',
    'flags',
    'metadataBlocks'
  ] as const)
  const value = random.pick([0, 1, 2, 128, 256, 4096, content.readUInt32LE(superblockField[field]) + 1])
  content.writeUInt32LE(value, superblockField[field])
  return done(`${field} is ${value}`, undefined)
}
