/**
 * Reads through the kernel's own queue, of files that are read around the page cache: the content, what a thread has to begin, and that
 * nothing stays behind.
 */
import { readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { BlockReader } from '../../src/devicemapper/block-reader.ts'
import { checksumSalt } from '../../src/devicemapper/checksum.ts'
import { DeviceReads, Unanswered } from '../../src/devicemapper/device-reads.ts'
import { readWithoutWaiting } from '../../src/devicemapper/metadata-medium.ts'
import { pageAligned } from '../../src/devicemapper/page-aligned.ts'
import { ReadQueue } from '../../src/devicemapper/read-queue.ts'
import { ReadRuns } from '../../src/devicemapper/read-runs.ts'
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { BLOCK_BYTES, seal, writeMetadataImage, writeU64 } from '../support/metadata-image.ts'
import { PoolModel } from '../support/pool-model.ts'
import { Random } from '../support/random.ts'
import { testFolder } from '../support/test-folder.ts'

const BLOCKS = 600
const folder = testFolder(test)
const path = join(folder, 'blocks.img')
const content = Buffer.alloc(BLOCKS * BLOCK_BYTES)
for (let number = 0; number < BLOCKS; number++) {
  const block = content.subarray(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)
  block.writeUInt32LE(number, 100)
  writeU64(block, 8, number)
  seal(block, 'node')
}
test.before(() => writeFile(path, content))

/** Undefined where the file system does not do it. */
async function open(t: ExecutionContext, file = path): Promise<BlockReader | undefined> {
  try {
    const reader = await BlockReader.open(file, { direct: true, reads: 'aio' })
    t.teardown(() => reader.close())
    return reader
  } catch (error) {
    if (!(error instanceof DeltamapperError && /without it/.test(error.remedy))) throw error
    t.log('the file system of the temporary folder does not take O_DIRECT')
    t.pass()
    return undefined
  }
}

test.serial(
  'windows that are read at the same time have their own blocks, and all places are free again',
  async (t) => {
    const reader = await open(t)
    if (!reader) return
    const queue = await ReadQueue.ofThread()
    const random = new Random(7)
    const load = async () => {
      // 64 alone fill a device's share of the queue with every second window; more wait for their turn.
      const blocks = Array.from({ length: random.integer(1, 128) }, () => random.integer(0, BLOCKS - 1))
      const window = await reader.load(blocks, blocks.length, checksumSalt.btreeNode)
      for (const [i, block] of blocks.entries()) {
        if (window.block(i).readUInt32LE(100) !== block) t.fail(`slot ${i} does not hold block ${block}`)
      }
      reader.release(window)
    }
    for (let round = 0; round < 20; round++) await Promise.all(Array.from({ length: 20 }, load))
    t.is(queue.placesUsed, 0)
  }
)

test.serial('reads that end early, and files that are not open, are told as they are', async (t) => {
  const reader = await open(t)
  if (!reader) return
  const memory = pageAligned(4 * BLOCK_BYTES)
  const queue = await ReadQueue.ofThread()
  const reads = DeviceReads.join('ends early')
  const runs = new ReadRuns(4)
  runs.add(0, BLOCK_BYTES, 0)
  runs.add(BLOCK_BYTES, 2 * BLOCK_BYTES, (BLOCKS - 1) * BLOCK_BYTES)
  t.deepEqual(await reads.readRuns(reader.descriptor, memory, runs, { deadlineMs: 60_000 }, queue), {
    run: 1,
    outcome: BLOCK_BYTES
  })
  t.true(memory.subarray(0, BLOCK_BYTES).equals(content.subarray(0, BLOCK_BYTES)))
  const none = await reads.readRuns(2 ** 30, memory, runs, { deadlineMs: 60_000 }, queue)
  t.regex(String(none?.outcome), /EBADF/)
  t.is(queue.placesUsed, 0)
  reads.leave()
})

test.serial('a file system that cannot begin a read without waiting has its reads begun by a thread', async (t) => {
  // Of tmpfs; where it takes no O_DIRECT, and where there is none, there is nothing to see.
  const file = join('/dev/shm', `deltamapper-read-queue-${process.pid}`)
  t.teardown(() => rm(file, { force: true }))
  await writeFile(file, content)
  const reader = await open(t, file)
  if (!reader) return
  const queue = await ReadQueue.ofThread()
  const reads = DeviceReads.join('waits', () => t.fail('a thread was asked for a read'))
  const memory = pageAligned(8 * BLOCK_BYTES)
  for (let round = 0; round < 3; round++) {
    const runs = new ReadRuns(8)
    for (let i = 0; i < 8; i++) runs.add(i * BLOCK_BYTES, BLOCK_BYTES, (round * 100 + i * 7) * BLOCK_BYTES)
    t.is(await reads.readRuns(reader.descriptor, memory, runs, { deadlineMs: 60_000 }, queue), undefined)
    for (let i = 0; i < 8; i++) t.is(memory.readUInt32LE(i * BLOCK_BYTES + 100), round * 100 + i * 7)
  }
  // What it cannot do either way is an error of the read.
  const runs = new ReadRuns(2)
  runs.add(0, BLOCK_BYTES, 0)
  runs.add(BLOCK_BYTES, 2 * BLOCK_BYTES, (BLOCKS - 1) * BLOCK_BYTES)
  t.deepEqual(await reads.readRuns(reader.descriptor, memory, runs, { deadlineMs: 60_000 }, queue), {
    run: 1,
    outcome: BLOCK_BYTES
  })
  const none = await reads.readRuns(2 ** 30, memory, runs, { deadlineMs: 60_000 }, queue)
  t.regex(String(none?.outcome), /EBADF/)
  t.is(queue.placesUsed, 0)
  reads.leave()
})

test.serial('with no place in the queue, threads read', async (t) => {
  const asked: number[] = []
  const queue = { send: () => false } as unknown as ReadQueue
  const reads = DeviceReads.join('no place', (_file, _into, _start, bytes, position, done) => {
    asked.push(position)
    done(null, bytes)
  })
  const runs = new ReadRuns(2)
  runs.add(0, BLOCK_BYTES, 10)
  runs.add(BLOCK_BYTES, BLOCK_BYTES, 20)
  const memory = pageAligned(4 * BLOCK_BYTES)
  t.is(await reads.readRuns(3, memory, runs, { deadlineMs: 60_000 }, queue), undefined)
  t.deepEqual(asked, [10, 20])
  reads.leave()
})

test.serial(
  'a window that the kernel keeps fails in time, is said to be sent, and keeps others from that device',
  async (t) => {
    const memory = pageAligned(4 * BLOCK_BYTES)
    const kept: Parameters<ReadQueue['send']>[4][] = []
    const queue = {
      send: (...[, , , , done]: Parameters<ReadQueue['send']>) => kept.push(done) > 0
    } as unknown as ReadQueue
    const reads = DeviceReads.join('keeps', () => t.fail('a thread was asked'))
    const runs = new ReadRuns(100)
    for (let i = 0; i < 100; i++) runs.add(0, BLOCK_BYTES, i)
    const stuck = await reads.readRuns(3, memory, runs, { deadlineMs: 20 }, queue)
    t.true(stuck?.outcome instanceof Unanswered && stuck.outcome.sent)
    // It still has its places: there is room for no second one.
    const second = await reads.readRuns(3, memory, runs, { deadlineMs: 20 }, queue)
    t.true(second?.outcome instanceof Unanswered && !second.outcome.sent)
    t.is(kept.length, 1)
    const third = reads.readRuns(3, memory, runs, { deadlineMs: 60_000 }, queue)
    kept[0](undefined)
    t.is(kept.length, 2)
    kept[1](undefined)
    t.is(await third, undefined)
    reads.leave()
  }
)

/** With LAB_COUNT=10000 (scripts/soak.ts) it is what is promised. */
const cancelledWalks = Number(process.env['LAB_COUNT'] ?? 100)

test.serial(
  `after ${cancelledWalks} cancelled walks no place in the queue and no file descriptor is left`,
  async (t) => {
    if (!(await open(t))) return
    const model = new PoolModel({
      random: new Random(1),
      shape: { leafEntries: 6, internalEntries: 6, split: 'middle' }
    })
    model.createThin(1)
    for (let key = 0; key < 4000; key++) model.write(1, 2 * key)
    const pool = join(folder, 'pool.img')
    await writeFile(pool, writeMetadataImage(model, { random: new Random(2), placement: 'scattered' }).bytes)
    const queue = await ReadQueue.ofThread()
    const random = new Random(3)
    const files = (await readdir('/proc/self/fd')).length
    const walk = async () => {
      const metadata = await openPoolMetadata(pool, { direct: true, reads: 'aio' })
      const cancel = new AbortController()
      let left = random.integer(0, 5)
      try {
        const { batches } = await metadata.allocated({ deviceId: 1, signal: cancel.signal })
        if (random.chance(0.5)) setImmediate(() => cancel.abort(new Error('no longer wanted')))
        for await (const batch of batches) if (batch.count > 0 && left-- === 0) break
      } catch (error) {
        t.is((error as Error).message, 'no longer wanted')
      } finally {
        await metadata.close()
      }
    }
    for (let walks = 0; walks < cancelledWalks; walks += 10) await Promise.all(Array.from({ length: 10 }, walk))
    t.is(queue.placesUsed, 0)
    t.is((await readdir('/proc/self/fd')).length, files)
  }
)

// The last: it is for the rest of the thread's life.
test.serial('a thread that never waits reads through the queue as well, also where nobody says how', async (t) => {
  if (!(await open(t))) return
  await readWithoutWaiting('auto')
  const queue = await ReadQueue.ofThread()
  const reader = await BlockReader.open(path, { direct: true })
  t.teardown(() => reader.close())
  for (let round = 0; round < 20; round++) {
    const blocks = Array.from({ length: 60 }, (_, i) => (round * 31 + i * 7) % BLOCKS)
    const loading = reader.load(blocks, blocks.length, checksumSalt.btreeNode)
    t.true(queue.placesUsed > 0)
    const window = await loading
    for (const [i, block] of blocks.entries()) {
      if (window.block(i).readUInt32LE(100) !== block) t.fail(`slot ${i} does not hold block ${block}`)
    }
    t.is(queue.placesUsed, 0)
  }
})
