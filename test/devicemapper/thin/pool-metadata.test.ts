import { readdir, readFile, readlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'

import {
  openPoolMetadata,
  sameFingerprint,
  type PoolMetadata,
  type ThinDevice
} from '../../../src/devicemapper/thin/pool-metadata.ts'
import { DeltamapperError, type ErrorCode } from '../../../src/errors.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { blockOf, NodeFields, rewrite } from '../../support/metadata-damage.ts'
import { BLOCK_BYTES, seal, superblockField, writeMetadataImage } from '../../support/metadata-image.ts'
import type { MetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const KIB_64 = 65536
const folder = testFolder(test)
let images = 0

function newModel(more: { dataBlockSizeSectors?: number; transactionId?: number } = {}): PoolModel {
  const shape = { leafEntries: 6, internalEntries: 6, split: 'middle' } as const
  return new PoolModel({ random: new Random(1), shape, ...more })
}

async function write(model: PoolModel, damage: (image: MetadataImage) => void = () => undefined): Promise<string> {
  const small = { leafEntries: 6, internalEntries: 6, split: 'middle' } as const
  const image = writeMetadataImage(model, { random: new Random(2), topLevelShape: small, detailsShape: small })
  damage(image)
  const path = join(folder, `${images++}.img`)
  await writeFile(path, image.bytes)
  return path
}

async function open(t: ExecutionContext, path: string, options?: { liveRoot?: boolean; direct?: boolean }) {
  const metadata = await openPoolMetadata(path, options)
  t.teardown(() => metadata.close())
  return metadata
}

async function refused(t: ExecutionContext, what: () => Promise<unknown>, code: ErrorCode, says = /./) {
  const error = await t.throwsAsync<DeltamapperError>(what, { instanceOf: DeltamapperError })
  t.is(error?.code, code, error?.message)
  t.regex(error?.message ?? '', says)
  return error
}

const idsOf = async (metadata: PoolMetadata) => (await Array.fromAsync(metadata.devices())).map(({ id }) => id)

/** Three devices while a metadata snapshot was taken; since then one was written to, one removed and one added. */
function heldModel(): PoolModel {
  const model = newModel({ transactionId: 40 })
  model.createThin(1)
  for (let block = 0; block < 50; block++) model.write(1, block)
  model.createSnapshot(2, 1)
  model.createThin(3)
  model.holdMetadataSnapshot()
  model.write(1, 60)
  model.delete(3)
  model.createSnapshot(4, 1)
  return model
}

test('a held metadata snapshot is what is looked at, and the live root on request', async (t) => {
  const path = await write(heldModel())
  const held = await open(t, path)
  t.is(held.path, path)
  t.is(held.view, 'metadata-snapshot')
  t.not(held.heldRoot, 0)
  t.is(held.superblock.heldRoot, 0)
  t.is(held.superblock.transactionId, 43n)
  t.is(held.superblock.time, 1)
  t.deepEqual(await idsOf(held), [1, 2, 3])
  t.deepEqual(await collectExtents(await held.allocated({ deviceId: 1 })), [[0, 50 * KIB_64]])
  t.deepEqual(await collectExtents(await held.delta({ baseId: 2, targetId: 1 })), [])

  const live = await open(t, path, { liveRoot: true })
  t.is(live.view, 'live')
  t.is(live.heldRoot, held.heldRoot)
  t.is(live.superblock.heldRoot, held.heldRoot)
  t.is(live.superblock.time, 2)
  t.deepEqual(await idsOf(live), [1, 2, 4])
  t.deepEqual(await collectExtents(await live.delta({ baseId: 2, targetId: 4 })), [[60 * KIB_64, KIB_64]])
})

test('without a metadata snapshot the live root is looked at', async (t) => {
  const model = heldModel()
  model.held = undefined
  const metadata = await open(t, await write(model))
  t.is(metadata.view, 'live')
  t.is(metadata.heldRoot, 0)
  t.deepEqual(await idsOf(metadata), [1, 2, 4])
})

test('a device that is not there is missed by name, with where else to look', async (t) => {
  const path = await write(heldModel())
  const held = await open(t, path)
  for (const ask of [
    () => held.device(4),
    () => held.deviceDetails(4),
    () => held.allocated({ deviceId: 4 }),
    () => held.delta({ baseId: 4, targetId: 1 }),
    () => held.delta({ baseId: 1, targetId: 4 })
  ]) {
    const error = await refused(t, ask, 'DM_DEVICE_NOT_FOUND')
    t.is(error?.message, `the pool in ${path} has no thin device 4 in its metadata snapshot`)
    t.regex(error?.remedy ?? '', /inspect.*--live-root/)
  }
  const error = await refused(t, async () => (await open(t, path, { liveRoot: true })).device(3), 'DM_DEVICE_NOT_FOUND')
  t.is(error?.message, `the pool in ${path} has no thin device 3`)
  t.notRegex(error?.remedy ?? '', /live-root/)
})

test('what can be no device id is no missing device', async (t) => {
  const metadata = await open(t, await write(heldModel()))
  for (const id of [-1, 2 ** 24, 1.5, NaN, Infinity]) {
    await refused(t, () => metadata.device(id), 'DM_ARGUMENT_INVALID', /no thin device id/)
    await refused(t, () => metadata.delta({ baseId: 1, targetId: id }), 'DM_ARGUMENT_INVALID')
  }
})

test('a held copy that is unlike block 0 is damage, unless the live root is asked for', async (t) => {
  const path = await write(heldModel(), (image) => {
    const held = image.superblock('metadata-snapshot')
    rewrite(held, 'superblock', 'other blocks', (block) =>
      block.writeUInt32LE(256, superblockField.dataBlockSize)
    ).apply(image.bytes)
  })
  await refused(t, () => openPoolMetadata(path), 'DM_METADATA_DAMAGED', /data block size is 256, that of block 0 128$/)
  t.true((await idsOf(await open(t, path, { liveRoot: true }))).length > 0)
})

test('a device is its id, its root and its details', async (t) => {
  const model = heldModel()
  let root = 0
  const metadata = await open(t, await write(model, (image) => (root = image.mappingRoot(2))))
  const expected: ThinDevice = {
    id: 2,
    root,
    details: { mappedBlocks: 50, transactionId: 41n, creationTime: 1, snapshottedTime: 1 }
  }
  t.deepEqual(await metadata.device(2), expected)
  t.deepEqual(await metadata.deviceDetails(2), expected.details)
  t.deepEqual((await Array.fromAsync(metadata.devices()))[1], expected)
})

test('thousands of devices are listed in order, each node read once, a few at a time', async (t) => {
  const random = new Random(5)
  const model = newModel()
  model.createThin(0)
  model.write(0, 1)
  const ids = new Set([0, 2 ** 24 - 1])
  while (ids.size < 5000) ids.add(random.integer(0, 2 ** 24 - 1))
  for (const id of ids) if (id !== 0) model.createSnapshot(id, 0)
  let nodes = 0
  const path = await write(model, (image) => (nodes = image.topLevelNodes().size + image.detailsNodes().size))
  const metadata = await open(t, path)
  const before = metadata.statistics.nodesRead
  const listed = await Array.fromAsync(metadata.devices())
  t.deepEqual(
    listed.map(({ id }) => id),
    [...ids].sort((one, other) => one - other)
  )
  t.is(metadata.statistics.nodesRead - before, nodes)
  for (const { id, details } of listed) t.is(details.creationTime, model.device(id).creationTime)

  const start = metadata.statistics.nodesRead
  for await (const { id } of metadata.devices()) if (id > 0) break
  const cost = metadata.statistics.nodesRead - start
  t.true(cost < 100, `${cost} of ${nodes} nodes were read for the first two devices`)
})

test('a listing is ended by its signal', async (t) => {
  const model = newModel()
  for (let id = 0; id < 200; id++) model.createThin(id)
  const metadata = await open(t, await write(model))
  const reason = new DeltamapperError('DM_CANCELLED', 'gone', 'nothing')
  const controller = new AbortController()
  const listing = metadata.devices(controller.signal)
  const first = await listing.next()
  t.is(first.done ? undefined : first.value.id, 0)
  controller.abort(reason)
  await t.throwsAsync(Array.fromAsync(listing), { is: reason })
  await t.throwsAsync(metadata.device(1, controller.signal), { is: reason })
  await t.throwsAsync(metadata.allocated({ deviceId: 1, signal: controller.signal }), { is: reason })
})

/** Takes the last entry out of the leaf with the highest keys. */
function cutLast(image: MetadataImage, nodes: Iterable<number>): bigint {
  let highest = { block: 0, key: -1n }
  for (const block of nodes) {
    const fields = new NodeFields(blockOf(image.bytes, block))
    const key = fields.key(fields.entries - 1)
    if (!fields.internal && key > highest.key) highest = { block, key }
  }
  rewrite(highest.block, 'node', 'last entry lost', (block) => new NodeFields(block).entries--).apply(image.bytes)
  return highest.key
}

test('a device in one of the two trees only is damage, and it is named', async (t) => {
  const model = newModel()
  for (let id = 0; id < 40; id++) model.createThin(3 * id)
  for (const tree of ['topLevelNodes', 'detailsNodes'] as const) {
    const path = await write(model, (image) => {
      t.is(cutLast(image, image[tree]()), 117n)
    })
    const metadata = await open(t, path)
    await refused(t, () => idsOf(metadata), 'DM_METADATA_DAMAGED', /thin device 117 is in only one of/)
    await refused(t, () => metadata.device(117), 'DM_METADATA_DAMAGED', /thin device 117\b/)
    await refused(t, () => metadata.device(118), 'DM_DEVICE_NOT_FOUND')
    t.is((await metadata.device(114)).id, 114)
  }
})

test('a key that is another one in one of the trees is damage, and the right one is named', async (t) => {
  const model = newModel()
  for (const id of [2, 4, 6]) model.createThin(id)
  for (const tree of ['topLevelNodes', 'detailsNodes'] as const) {
    const path = await write(model, (image) => {
      const [root] = image[tree]()
      rewrite(root, 'node', '4 becomes 3', (block) => new NodeFields(block).setKey(1, 3n)).apply(image.bytes)
    })
    await refused(t, async () => idsOf(await open(t, path)), 'DM_METADATA_DAMAGED', /thin device 3 is in only one of/)
  }
})

test('sizes that are not given: the target ends with its highest mapping, the base is as large', async (t) => {
  const model = newModel({ dataBlockSizeSectors: 384 })
  const block = 384 * 512
  model.createThin(1)
  for (const at of [0, 7, 20]) model.write(1, at)
  model.createSnapshot(2, 1)
  model.discard(2, 20)
  model.createThin(3)
  const metadata = await open(t, await write(model))
  const answer = async (stream: Promise<{ capacityBytes: number }>) => (await stream).capacityBytes
  t.is(await answer(metadata.allocated({ deviceId: 1 })), 21 * block)
  t.is(await answer(metadata.allocated({ deviceId: 2 })), 8 * block)
  t.is(await answer(metadata.allocated({ deviceId: 3 })), 0)
  t.is(await answer(metadata.delta({ baseId: 1, targetId: 2 })), 8 * block)
  t.is(await answer(metadata.delta({ baseId: 2, targetId: 1 })), 21 * block)
  t.is(await metadata.mappedEnd(await metadata.device(1)), 21 * block)

  t.deepEqual(await collectExtents(await metadata.delta({ baseId: 2, targetId: 1 })), [[20 * block, block]])
  t.deepEqual(await collectExtents(await metadata.delta({ baseId: 1, targetId: 2 })), [], 'beyond the target’s end')
  t.deepEqual(await collectExtents(await metadata.delta({ baseId: 1, targetId: 2, sizeBytes: 21 * block })), [
    [20 * block, block]
  ])
  t.deepEqual(await collectExtents(await metadata.delta({ baseId: 1, targetId: 3 })), [])
  t.deepEqual(await collectExtents(await metadata.allocated({ deviceId: 3, sizeBytes: 5 })), [])
})

test('a base that is smaller than the target holds nothing beyond its last whole block', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let at = 0; at < 20; at++) model.write(1, at)
  model.createSnapshot(2, 1)
  const metadata = await open(t, await write(model))
  const size = 19 * KIB_64 + 100
  const from = async (baseSizeBytes: number | undefined) =>
    collectExtents(await metadata.delta({ baseId: 1, targetId: 2, sizeBytes: size, baseSizeBytes }))
  t.deepEqual(await from(undefined), [])
  t.deepEqual(await from(size), [], 'the last block is cut the same in both')
  t.deepEqual(await from(size + 1), [])
  t.deepEqual(await from(Number.MAX_SAFE_INTEGER), [])
  t.deepEqual(await from(size - 1), [[19 * KIB_64, 100]])
  t.deepEqual(await from(19 * KIB_64), [[19 * KIB_64, 100]])
  t.deepEqual(await from(19 * KIB_64 - 1), [[18 * KIB_64, KIB_64 + 100]])
  t.deepEqual(await from(0), [[0, size]])
})

test('what can be no size is refused', async (t) => {
  const metadata = await open(t, await write(heldModel()))
  for (const bytes of [-1, NaN, Infinity, 0.5, 2 ** 53]) {
    for (const ask of [
      () => metadata.allocated({ deviceId: 1, sizeBytes: bytes }),
      () => metadata.allocated({ deviceId: 1, externalOriginBytes: bytes }),
      () => metadata.delta({ baseId: 2, targetId: 1, baseSizeBytes: bytes }),
      () => metadata.delta({ baseId: 2, targetId: 1, sizeBytes: bytes })
    ]) {
      await refused(t, ask, 'DM_ARGUMENT_INVALID', /is no size/)
    }
  }
})

test('a mapping beyond 2^53 bytes needs a size that ends before it', async (t) => {
  const model = newModel()
  model.createThin(1)
  model.write(1, 5)
  model.write(1, 2 ** 37)
  const metadata = await open(t, await write(model))
  await refused(
    t,
    () => metadata.allocated({ deviceId: 1 }),
    'DM_METADATA_UNSUPPORTED',
    /thin device 1 .* beyond 2\^53/
  )
  t.deepEqual(await collectExtents(await metadata.allocated({ deviceId: 1, sizeBytes: 2 ** 53 - 1 })), [
    [5 * KIB_64, KIB_64]
  ])
})

test('a starting offset lies in the volume, or at its end', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let at = 0; at < 10; at++) model.write(1, at)
  const metadata = await open(t, await write(model))
  const sizeBytes = 9 * KIB_64 + 1000
  for (const startingOffset of [-1, sizeBytes + 1, Infinity, NaN]) {
    await refused(
      t,
      () => metadata.allocated({ deviceId: 1, sizeBytes, startingOffset }),
      'DM_OFFSET_OUT_OF_RANGE',
      new RegExp(`starting offset ${startingOffset} is outside the volume of ${sizeBytes} bytes`)
    )
  }
  const from = async (startingOffset: number) =>
    collectExtents(await metadata.allocated({ deviceId: 1, sizeBytes, startingOffset }))
  // The last block is cut by the end of the volume, and the end is no place in it.
  t.deepEqual(await from(sizeBytes), [])
  t.deepEqual(await from(sizeBytes - 1), [[9 * KIB_64, 1000]])
  t.deepEqual(await from(9 * KIB_64), [[9 * KIB_64, 1000]])
  t.deepEqual(await from(9 * KIB_64 - 1), [[8 * KIB_64, KIB_64 + 1000]])
  t.deepEqual(
    await collectExtents(
      await metadata.allocated({ deviceId: 1, sizeBytes, startingOffset: sizeBytes, externalOriginBytes: sizeBytes })
    ),
    []
  )
  t.deepEqual(await collectExtents(await metadata.allocated({ deviceId: 1, sizeBytes: 0 })), [])
})

test('every extent ends behind the starting offset', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let at = 0; at < 60; at += 2) model.write(1, at)
  const metadata = await open(t, await write(model))
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 61 * KIB_64 }), fc.nat(), async (sizeBytes, offset) => {
      const startingOffset = offset % (sizeBytes + 1)
      const extents = await collectExtents(await metadata.allocated({ deviceId: 1, sizeBytes, startingOffset }))
      for (const [begin, size] of extents) t.true(begin + size > startingOffset)
      const whole = await collectExtents(await metadata.allocated({ deviceId: 1, sizeBytes }))
      t.deepEqual(
        extents,
        whole.filter(([begin, size]) => begin + size > startingOffset)
      )
    }),
    { numRuns: 60 }
  )
})

test('a snapshot that was written to shows it, when it is known to be one', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let at = 0; at < 10; at++) model.write(1, at)
  model.createSnapshot(2, 1)
  model.write(1, 3)
  model.createSnapshot(3, 1)
  model.write(2, 4)
  const metadata = await open(t, await write(model))
  const ask = async (baseIsSnapshot: boolean | undefined) =>
    collectExtents(await metadata.delta({ baseId: 2, targetId: 3, baseIsSnapshot }))
  t.deepEqual(await ask(undefined), [[3 * KIB_64, 2 * KIB_64]])
  t.deepEqual(await ask(false), [[3 * KIB_64, 2 * KIB_64]])
  await refused(t, () => ask(true), 'DM_BASE_CHANGED')
})

test('only a snapshot that was never written to is pristine', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let at = 0; at < 40; at++) model.write(1, at)
  for (const id of [2, 3, 4]) model.createSnapshot(id, 1)
  model.createSnapshot(5, 3)
  model.write(3, 39)
  model.createSnapshot(6, 3)
  model.discard(4, 7)
  model.createThin(7)
  model.createSnapshot(8, 7)
  model.createThin(9)
  model.write(9, 0)
  const metadata = await open(t, await write(model))
  for (const [id, pristine, why] of [
    [1, false, 'a volume'],
    [2, true, 'a snapshot'],
    [3, false, 'a snapshot that was written to'],
    [4, true, 'a snapshot that was trimmed: that leaves no trace'],
    [5, true, 'a snapshot of a snapshot, taken before that was written to'],
    [6, true, 'a snapshot of a snapshot that was written to'],
    [8, true, 'a snapshot of nothing'],
    [9, false, 'a young volume']
  ] as const) {
    t.is(await metadata.isPristine(id), pristine, why)
  }
  const reason = new DeltamapperError('DM_CANCELLED', 'gone', 'nothing')
  await t.throwsAsync(metadata.isPristine(2, AbortSignal.abort(reason)), { is: reason })
})

test('an external origin is part of what is allocated', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (const at of [1, 9]) model.write(1, at)
  const metadata = await open(t, await write(model))
  const question = { deviceId: 1, externalOriginBytes: 3 * KIB_64 + 1 }
  t.deepEqual(await collectExtents(await metadata.allocated(question)), [
    [0, 4 * KIB_64],
    [9 * KIB_64, KIB_64]
  ])
  t.deepEqual(await collectExtents(await metadata.allocated({ ...question, sizeBytes: 2 * KIB_64 + 5 })), [
    [0, 2 * KIB_64 + 5]
  ])
})

test('a fingerprint is the same until something happens to the device', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let at = 0; at < 40; at++) model.write(1, at)
  model.createSnapshot(2, 1)
  const take = async () => {
    const metadata = await open(t, await write(model))
    return metadata.fingerprint(await metadata.device(2))
  }
  const first = await take()
  t.deepEqual({ ...first, root: 0, rootChecksum: 0 }, { creationTime: 1, mappedBlocks: 40, root: 0, rootChecksum: 0 })
  t.true(sameFingerprint(first, await take()))
  model.write(2, 7)
  t.false(sameFingerprint(first, await take()))
  for (const field of ['creationTime', 'mappedBlocks', 'root', 'rootChecksum'] as const) {
    t.false(sameFingerprint(first, { ...first, [field]: first[field] + 1 }), field)
  }
})

test('a device that was seen and is gone was removed meanwhile', async (t) => {
  const model = newModel()
  for (const id of [1, 2]) {
    model.createThin(id)
    model.write(id, 3)
  }
  const fingerprintOf = async (id: number) => {
    const metadata = await open(t, await write(model))
    return metadata.fingerprint(await metadata.device(id))
  }
  const [fingerprint, baseFingerprint] = [await fingerprintOf(2), await fingerprintOf(2)]
  model.delete(2)
  const metadata = await open(t, await write(model))
  for (const ask of [
    () => metadata.allocated({ deviceId: 2, fingerprint }),
    () => metadata.isPristine(2, undefined, fingerprint),
    () => metadata.delta({ baseId: 1, targetId: 2, fingerprint }),
    () => metadata.delta({ baseId: 2, targetId: 1, baseFingerprint })
  ]) {
    await refused(t, ask, 'DM_SNAPSHOT_CHANGED')
  }
})

test('an image of any size that can be none leaves no file open', async (t) => {
  const image = await readFile(await write(heldModel()))
  const spoilt = (change: (bytes: Buffer) => void) => {
    const bytes = Buffer.from(image)
    change(bytes)
    return bytes
  }
  const held = Number(image.readBigUInt64LE(superblockField.heldRoot))
  for (const [name, bytes, code, says] of [
    ['empty', Buffer.alloc(0), 'DM_METADATA_FOREIGN', /smaller than one block of 4096 bytes/],
    ['short', image.subarray(0, 4095), 'DM_METADATA_FOREIGN', /smaller than one block/],
    ['zeros', Buffer.alloc(BLOCK_BYTES), 'DM_METADATA_FOREIGN', /no superblock/],
    ['flipped', spoilt((bytes) => (bytes[50] ^= 1)), 'DM_METADATA_DAMAGED', /metadata block 0 of/],
    [
      'features',
      spoilt((bytes) => {
        bytes[superblockField.incompatFlags] = 1
        seal(bytes.subarray(0, BLOCK_BYTES), 'superblock')
      }),
      'DM_METADATA_UNSUPPORTED',
      /incompat flags 0x1/
    ],
    [
      'held-flipped',
      spoilt((bytes) => (bytes[held * BLOCK_BYTES + 50] ^= 1)),
      'DM_METADATA_DAMAGED',
      new RegExp(`metadata block ${held} of`)
    ],
    [
      'held-beyond',
      spoilt((bytes) => {
        bytes.writeBigUInt64LE(2n ** 63n, superblockField.heldRoot)
        seal(bytes.subarray(0, BLOCK_BYTES), 'superblock')
      }),
      'DM_METADATA_DAMAGED',
      /beyond the end/
    ]
  ] as const) {
    const path = join(folder, `${name}.img`)
    await writeFile(path, bytes)
    await refused(t, () => openPoolMetadata(path), code, says)
    t.false(await isOpen(path), name)
  }
})

test('closing gives the file back, also after a walk that was left', async (t) => {
  const path = await write(heldModel())
  const metadata = await openPoolMetadata(path)
  t.true(await isOpen(path))
  for await (const { count } of (await metadata.allocated({ deviceId: 1 })).batches) if (count > 0) break
  await metadata.close()
  t.false(await isOpen(path))
})

test('with O_DIRECT the answers are the same', async (t) => {
  const path = await write(heldModel())
  let direct: PoolMetadata
  try {
    direct = await open(t, path, { direct: true })
  } catch (error) {
    t.true(error instanceof DeltamapperError && error.code === 'DM_READ_FAILED', String(error))
    t.log('the file system of the temporary folder does not take O_DIRECT')
    return
  }
  const buffered = await open(t, path)
  for (const deviceId of [1, 2, 3]) {
    t.deepEqual(
      await collectExtents(await direct.allocated({ deviceId })),
      await collectExtents(await buffered.allocated({ deviceId }))
    )
  }
  t.deepEqual(direct.statistics, buffered.statistics)
})

async function isOpen(path: string): Promise<boolean> {
  for (const fd of await readdir('/proc/self/fd')) {
    if ((await readlink(`/proc/self/fd/${fd}`).catch(() => '')) === path) return true
  }
  return false
}
