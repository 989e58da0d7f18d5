/**
 * Era metadata as a real kernel writes it: random histories of a device, and for every era exactly what was written to, from the device
 * through its metadata snapshot, from the device while it is inactive, and from copies of it.
 */
import { join } from 'node:path'
import test from 'ava'
import type { ExecutionContext } from 'ava'
import { openEraMetadata } from '../../src/devicemapper/era/era-metadata.ts'
import type { DeltamapperError } from '../../src/errors.ts'
import { collectExtents } from '../support/collect-extents.ts'
import type { Random } from '../support/random.ts'
import { testFolder } from '../support/test-folder.ts'
import { copyOut } from './dmsetup.ts'
import { labRun } from './lab-run.ts'
import { RawEra } from './raw-era.ts'

const MIB = 2 ** 20
/** A write of 4 MiB, what the device's buffer holds. */
const MOST_SECTORS = 8192
const folder = testFolder(test)
const copy = join(folder, 'copy.img')

/** Every era of a view; what came of it is counted by where it was read. */
async function compare(
  t: ExecutionContext,
  device: RawEra,
  path: string,
  view: 'live' | 'metadata-snapshot',
  again: string
): Promise<number> {
  const metadata = await openEraMetadata(path, { liveRoot: view === 'live' })
  try {
    t.is(metadata.view, view, again)
    const lastEra = device.lastEra(view)
    t.is(metadata.lastEra, lastEra, again)
    for (let era = 0; era <= lastEra; era++) {
      const answer = await collectExtents(await metadata.written({ sinceEra: era }))
      t.deepEqual(answer, device.expected(era, view), `since era ${era} of ${lastEra}, ${view}, ${path}; ${again}`)
    }
    const beyond = metadata.written({ sinceEra: lastEra + 1 })
    t.is((await t.throwsAsync<DeltamapperError>(beyond))?.code, 'DM_ERA_NOT_REACHED', again)
    return lastEra + 1
  } finally {
    await metadata.close()
  }
}

/** One write: within a block, across the border of two, of many, or of the device's last bytes. */
function writeSomewhere(device: RawEra, random: Random): void {
  const sectors = device.sizeBytes / 512
  const blockSectors = device.blockBytes / 512
  const length = random.pick([
    1,
    8,
    random.integer(1, blockSectors),
    random.integer(1, Math.min(20 * blockSectors, MOST_SECTORS))
  ])
  const border = random.integer(0, Math.floor(sectors / blockSectors)) * blockSectors
  const begin = random.pick([random.integer(0, sectors - 1), border, border - Math.floor(length / 2), sectors - length])
  const from = Math.max(0, Math.min(begin, sectors - 1))
  const count = Math.min(length, sectors - from)
  if (random.chance(0.05)) device.writeZeroes(from * 512, count * 512)
  else device.write(from * 512, count * 512)
}

test('a random history: for every era exactly what was written to', async (t) => {
  const { random, count, again } = labRun(25)
  t.timeout(600_000 + count * 120_000)
  const blockBytes = random.pick([4096, 65536, 262144, 12288])
  // Some hundred blocks, or more than a bitset block has bits; the last one is a part of one.
  const blocks = blockBytes === 4096 ? 40_000 : random.integer(100, 3000)
  const sizeBytes = blocks * blockBytes - 512 * random.integer(0, blockBytes / 512 - 1)
  const device = new RawEra({
    name: 'history',
    offsetBytes: 0,
    metadataBytes: 32 * MIB,
    blockBytes,
    sizeBytes,
    mostBytes: 4 * 2 ** 30
  })
  const answers = { held: 0, heldCopy: 0, suspendedCopy: 0, inactive: 0 }
  for (let step = 0; step < count; step++) {
    for (let writes = random.integer(0, 6); writes > 0; writes--) writeSomewhere(device, random)
    switch (random.pick(['checkpoint', 'checkpoint', 'snapshot', 'drop', 'suspend', 'grow', 'deactivate'])) {
      case 'checkpoint':
        device.checkpoint()
        break
      case 'snapshot':
        if (device.hasSnapshot) break
        device.takeSnapshot()
        answers.held += await compare(t, device, device.metadata, 'metadata-snapshot', again)
        break
      case 'drop':
        if (!device.hasSnapshot) break
        answers.held += await compare(t, device, device.metadata, 'metadata-snapshot', again)
        device.dropSnapshot()
        break
      case 'suspend':
        await device.suspended(async () => {
          copyOut(device.metadata, copy)
          answers.suspendedCopy += await compare(t, device, copy, 'live', again)
        })
        break
      case 'grow':
        if (device.sizeBytes < 2 * 2 ** 30) device.grow(512 * random.integer(1, (300 * blockBytes) / 512))
        break
      case 'deactivate':
        await device.deactivated(async () => {
          answers.inactive += await compare(t, device, device.metadata, 'live', again)
        })
    }
    t.is(device.status().era, device.era, again)
    if (device.hasSnapshot && random.chance(0.2)) {
      copyOut(device.metadata, copy)
      answers.heldCopy += await compare(t, device, copy, 'metadata-snapshot', again)
    }
  }
  device.close()
  t.log({ blockBytes, blocks, eras: device.era, answers })
})

test('the live root of an active device is not read, and what to do is said', async (t) => {
  const device = new RawEra({
    name: 'active',
    offsetBytes: 64 * MIB,
    metadataBytes: 4 * MIB,
    blockBytes: 65536,
    sizeBytes: 64 * MIB
  })
  device.write(0, 512)
  const ask = async () => {
    const metadata = await openEraMetadata(device.metadata, { liveRoot: true })
    try {
      t.true((await metadata.writesets()).length > 0)
      const { batches } = await metadata.written({ sinceEra: 1 })
      return await t.throwsAsync<DeltamapperError>(batches[Symbol.asyncIterator]().next())
    } finally {
      await metadata.close()
    }
  }
  const without = await ask()
  t.is(without?.code, 'DM_DEVICE_BUSY')
  t.regex(without?.remedy ?? '', /take_metadata_snap/)
  device.takeSnapshot()
  const held = await ask()
  t.is(held?.code, 'DM_DEVICE_BUSY')
  t.regex(held?.remedy ?? '', /leave out --live-root/)
  device.close()
})

test('a metadata snapshot that is dropped, or taken anew, during an answer ends it', async (t) => {
  const blockBytes = 4096
  const device = new RawEra({
    name: 'dropped',
    offsetBytes: 128 * MIB,
    metadataBytes: 32 * MIB,
    blockBytes,
    sizeBytes: 700_000 * blockBytes
  })
  // In each stretch that is read at once, so that an answer has several batches.
  for (const block of [5, 200_000, 400_000, 699_999]) device.write(block * blockBytes, 512)
  const expected = [5, 200_000, 400_000, 699_999].map((block) => [block * blockBytes, blockBytes])
  for (const anew of [false, true]) {
    device.takeSnapshot()
    const metadata = await openEraMetadata(device.metadata)
    const question = { sinceEra: 0 }
    t.deepEqual(await collectExtents(await metadata.written(question)), expected)
    const { batches } = await metadata.written(question)
    const walk = batches[Symbol.asyncIterator]()
    t.false((await walk.next()).done)
    device.dropSnapshot()
    if (anew) device.takeSnapshot()
    const error = await t.throwsAsync<DeltamapperError>(async () => {
      while (!(await walk.next()).done);
    })
    t.is(error?.code, 'DM_SNAPSHOT_CHANGED')
    await metadata.close()
    if (anew) device.dropSnapshot()
  }
  device.close()
})
