/**
 * Random pools, each made again from its seed: histories of writes, discards, snapshots and removals, as a metadata image of our own
 * writing, or as one that Debian's thin_restore wrote.
 *
 * Flavours shape what chance alone would seldom give: deep trees, full and sparse nodes, huge numbers, thousands of devices.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import { writeMetadataImage } from './metadata-image.ts'
import type { MetadataImage } from './metadata-image.ts'
import type { TreeShape } from './persistent-tree.ts'
import { PoolModel } from './pool-model.ts'
import type { Mapping } from './pool-model.ts'
import { Random } from './random.ts'
import { poolXml, thinRestore } from './thin-tools.ts'

/** A pool to ask questions about: an image in a file, read through one view. */
export interface TestPool {
  /** Says what it is and how to make it again. */
  readonly name: string
  readonly path: string
  /** Whether a metadata snapshot is held and it is the one that is read. */
  readonly metadataSnapshot: boolean
  readonly blockSizeBytes: number
  /** The devices to compare: all of them, unless there are thousands. */
  readonly deviceIds: readonly number[]
  /** Sizes in bytes to ask with, beside random ones, where the pool's history tells them. */
  readonly sizes?: ReadonlyMap<number, number>
  /** Debian's tools refuse nodes that are less than a third full. */
  readonly readableByTools: boolean
}

/** A pool of which every node is known. */
export interface ModelledPool extends TestPool {
  readonly model: PoolModel
  readonly image: MetadataImage
}

export const flavours = [
  'deep',
  'dense',
  'sparse',
  'huge numbers',
  'kernel-sized',
  'loose keys',
  'many devices',
  'underfull'
] as const
export type Flavour = (typeof flavours)[number]

/** Tests run side by side and may ask for the same seed. */
let written = 0

/** An image of our own writing. A third of them are read through a held metadata snapshot that is older than the live pool. */
export async function writtenPool(
  seed: number,
  folder: string,
  flavour = flavours[seed % flavours.length]
): Promise<ModelledPool> {
  const random = new Random(seed)
  const model = randomModel(random, flavour)
  const held = random.chance(0.34)
  if (held) {
    model.holdMetadataSnapshot()
    for (let step = random.integer(1, 10); step > 0; step--)
      randomStep(random, model, regionsOf(random, model, flavour))
  }
  const liveRoot = held && random.chance(0.3)
  const image = writeMetadataImage(model, {
    random,
    placement: random.pick(['sequential', 'scattered'] as const),
    unusedBlocks: random.integer(0, 100),
    topLevelShape: shapeOf(random, flavour === 'many devices' ? [6, 9, 252] : [6, 252], 'anywhere'),
    detailsShape: shapeOf(random, flavour === 'many devices' ? [6, 9, 126] : [6, 126], 'anywhere'),
    metadataBlockSizeField: random.pick([8, 4096] as const)
  })
  const path = join(folder, `written-${seed}-${written++}.img`)
  await writeFile(path, image.bytes)
  const view = held && !liveRoot ? model.held : model
  return {
    name: `written pool, seed ${seed} (${flavour}${held ? `, metadata snapshot held${liveRoot ? ', live root read' : ''}` : ''})`,
    path,
    metadataSnapshot: held && !liveRoot,
    blockSizeBytes: model.blockSizeBytes,
    deviceIds: random.shuffle<number>(view?.devices.keys() ?? []).slice(0, 7),
    readableByTools: flavour !== 'underfull',
    model,
    image
  }
}

/** Four levels of nodes as large as the kernel's: 600,000 mappings in nodes a third full, and snapshots that differ here and there. */
export async function tallPool(seed: number, folder: string): Promise<ModelledPool> {
  const random = new Random(seed)
  const model = new PoolModel({ random, shape: { leafEntries: 252, internalEntries: 252, split: 'middle' } })
  model.createThin(1)
  const mappings = Array.from({ length: 600_000 }, (_, key) => [2 * key, { block: key, time: 0 }] as const)
  model.load(1, mappings, () => 84)
  for (const id of [2, 3]) {
    model.createSnapshot(id, 1)
    for (let write = random.integer(1, 2000); write > 0; write--) model.write(1, random.integer(0, 1_200_000))
    const start = random.integer(0, 1_000_000)
    for (let key = start; key < start + 30_000; key++) model.discard(1, key)
  }
  const image = writeMetadataImage(model, { random, placement: 'scattered' })
  const path = join(folder, `tall-${seed}-${written++}.img`)
  await writeFile(path, image.bytes)
  return {
    name: `written pool, seed ${seed} (four levels)`,
    path,
    metadataSnapshot: false,
    blockSizeBytes: model.blockSizeBytes,
    deviceIds: [1, 2, 3],
    readableByTools: true,
    model,
    image
  }
}

/** A pool that thin_restore wrote: no node shared, leaves in the tool's own way of filling them. */
export async function restoredPool(seed: number, folder: string): Promise<TestPool> {
  const random = new Random(seed)
  const model = randomModel(random, random.pick(['deep', 'dense', 'sparse', 'kernel-sized'] as const))
  const path = join(folder, `restored-${seed}-${written++}.img`)
  const mappings = [...model.devices.values()].reduce((sum, { mappedBlocks }) => sum + mappedBlocks, 0)
  const dataBlocks = Math.max(model.dataBlocks, 1)
  // 64 bytes for each mapping and one for each data block are plenty.
  const metadataBytes = 4096 * (64 + Math.ceil((64 * mappings + dataBlocks) / 4096) + 4 * model.devices.size)
  await thinRestore(poolXml(model, model.dataBlockSizeSectors, dataBlocks), path, metadataBytes)
  return {
    name: `thin_restore pool, seed ${seed}`,
    path,
    metadataSnapshot: false,
    blockSizeBytes: model.blockSizeBytes,
    deviceIds: random.shuffle(model.devices.keys()),
    readableByTools: true
  }
}

/** Where in its virtual address space a history writes: `[begin, begin + length)`. */
interface Region {
  readonly begin: number
  readonly length: number
}

export function randomModel(random: Random, flavour: Flavour): PoolModel {
  const huge = flavour === 'huge numbers'
  const kernelSized = flavour === 'kernel-sized' || flavour === 'sparse'
  const entries = kernelSized ? [252] : flavour === 'dense' ? [9, 30, 60] : [6, 9, 12]
  const shape: TreeShape = {
    ...shapeOf(random, entries, kernelSized ? 'middle' : 'anywhere'),
    ...(flavour === 'underfull' && { underfull: true })
  }
  const model = new PoolModel({
    random,
    shape,
    dataBlockSizeSectors: random.pick([128, 128, 256, 384, 1024, 2048, 8192, 2097152]),
    time: huge ? random.pick([0, 2 ** 24 - 200, random.integer(0, 2 ** 24 - 200)]) : random.integer(0, 50),
    transactionId: huge ? random.pick([0, 2 ** 32 + 5, 2 ** 52]) : random.integer(0, 100),
    firstDataBlock: huge ? random.pick([2 ** 32 - 500, 2 ** 40 - 500_000, random.integer(0, 2 ** 39)]) : 0
  })
  const regions = regionsOf(random, model, flavour)
  firstDevice(random, model, regions, flavour)
  for (let step = random.integer(5, 40); step > 0; step--) randomStep(random, model, regions)
  if (flavour === 'many devices') {
    for (let more = random.integer(1000, 3000); more > 0; more--) addDevice(random, model)
  }
  if (flavour === 'loose keys') {
    for (const [id, device] of model.devices) {
      device.tree.loosenKeys(random.pick(regions).begin)
      if (random.chance(0.5)) model.write(id, random.pick(regions).begin)
    }
  }
  return model
}

function regionsOf(random: Random, model: PoolModel, flavour: Flavour): Region[] {
  const length = random.pick([40, 200, flavour === 'kernel-sized' ? 20_000 : 1500])
  if (flavour !== 'huge numbers') return [{ begin: 0, length }]
  // The last byte of a volume that this project can name is number 2^53 - 2.
  const last = Math.floor(Number.MAX_SAFE_INTEGER / model.blockSizeBytes)
  return [0, 2 ** 32 - length, 2 ** 32 * 3, last - length]
    .filter((begin) => begin >= 0 && begin + length <= last)
    .map((begin) => ({ begin, length }))
}

function shapeOf(random: Random, entries: readonly number[], split: TreeShape['split']): TreeShape {
  return { leafEntries: random.pick(entries), internalEntries: random.pick(entries), split }
}

/** A volume to begin with, sometimes filled in one go with full or with sparse nodes. */
function firstDevice(random: Random, model: PoolModel, regions: readonly Region[], flavour: Flavour): void {
  const id = randomId(random)
  model.createThin(id)
  if (!random.chance(0.7)) return
  const mappings: [number, Mapping][] = []
  let block = model.dataBlocks
  for (const { begin, length } of regions) {
    const density = random.pick([1, 0.9, 0.3])
    for (let key = begin; key < begin + length; key++) {
      if (random.chance(density)) mappings.push([key, { block: block++, time: model.time }])
    }
  }
  const most = model.shape.leafEntries
  const fill =
    flavour === 'dense' ? () => most : flavour === 'sparse' ? () => most / 3 : () => random.integer(most / 3, most)
  model.load(id, mappings, fill)
}

function randomStep(random: Random, model: PoolModel, regions: readonly Region[]): void {
  const id = random.pick([...model.devices.keys()])
  const { begin, length } = random.pick(regions)
  const at = begin + random.integer(0, length - 1)
  const end = begin + length
  const run = Math.min(end, at + random.integer(1, random.pick([4, 60, length])))
  const kinds = ['write', 'write', 'write run', 'stride', 'discard', 'discard run', 'snapshot', 'snapshot'] as const
  switch (random.chance(0.06) ? random.pick(['rewrite', 'trim', 'create', 'delete'] as const) : random.pick(kinds)) {
    case 'write':
      for (let more = random.integer(1, 8); more > 0; more--) model.write(id, begin + random.integer(0, length - 1))
      break
    case 'write run':
      for (let key = at; key < run; key++) model.write(id, key)
      break
    case 'stride': {
      const stride = random.integer(2, 9)
      for (let key = at; key < run; key += stride) model.write(id, key)
      break
    }
    case 'discard':
      for (let more = random.integer(1, 8); more > 0; more--) model.discard(id, begin + random.integer(0, length - 1))
      break
    case 'discard run':
      for (let key = at; key < run; key++) model.discard(id, key)
      break
    case 'rewrite':
      for (const [key] of [...model.device(id).tree.entries()]) model.write(id, key)
      break
    case 'trim':
      for (const [key] of [...model.device(id).tree.entries()]) model.discard(id, key)
      break
    case 'create':
      addDevice(random, model, false)
      break
    case 'snapshot':
      if (model.devices.size >= 6) model.delete(random.pick([...model.devices.keys()]))
      addDevice(random, model)
      break
    case 'delete':
      if (model.devices.size > 2) model.delete(id)
      break
  }
}

/** Mostly a snapshot. Ids are chosen as LVM does (highest plus one, so the highest is used again) or anywhere in 24 bits. */
function addDevice(random: Random, model: PoolModel, snapshot = random.chance(0.95)): void {
  const origin = random.pick([...model.devices.keys()])
  const next = Math.max(...model.devices.keys()) + 1
  let id = next < 2 ** 24 && random.chance(0.7) ? next : randomId(random)
  while (model.devices.has(id)) id = randomId(random)
  if (snapshot) model.createSnapshot(id, origin)
  else model.createThin(id)
}

function randomId(random: Random): number {
  return random.pick([random.integer(0, 20), random.integer(0, 2 ** 24 - 1), 2 ** 24 - 1])
}
