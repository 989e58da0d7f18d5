import { readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'

import type { Snapshot } from '../../../src/agent/walks/snapshot.ts'
import { walkMessages, type WalkRequest } from '../../../src/agent/walks/thin-walk.ts'
import type { SeenDevices } from '../../../src/agent/walks/seen-devices.ts'
import type { WalkStatistics } from '../../../src/agent/walks/encoded-messages.ts'
import { openPoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import { DeltamapperError, type ErrorCode } from '../../../src/errors.ts'
import { BLOCK_BYTES, seal, superblockField } from '../../support/metadata-image.ts'
import { testFolder } from '../../support/test-folder.ts'
import { decode, type Extent, KIB_64, writeBigPool, writeSamplePool } from '../sample-pool.ts'

const folder = testFolder(test)
const sample = writeSamplePool(join(folder, 'sample'))
const big = writeBigPool(join(folder, 'big'), 60_000)

const NOTHING_YET: WalkStatistics = {
  nodesRead: 0,
  bytesRead: 0,
  readCalls: 0,
  extents: 0,
  extentBytes: 0,
  volumeBytes: 0
}

type Asked = Pick<WalkRequest, 'target'> & Partial<WalkRequest>

function start(request: Asked, more: { signal?: AbortSignal; onSeen?: (seen: SeenDevices) => void } = {}) {
  const statistics = { ...NOTHING_YET }
  const messages = walkMessages(
    { base: undefined, startingOffset: 0, maxResults: 0, direct: false, ...request },
    statistics,
    more.signal ?? new AbortController().signal,
    {
      onSeen: async (devices) => {
        more.onSeen?.(devices)
        return undefined
      }
    }
  )
  return { messages, statistics }
}

async function refused(t: ExecutionContext, request: Asked, code: ErrorCode, says: RegExp) {
  const error = await t.throwsAsync<DeltamapperError>(Array.fromAsync(start(request).messages), {
    instanceOf: DeltamapperError
  })
  t.is(error?.code, code, error?.message)
  t.regex(error?.message ?? '', says)
  return error
}

test('messages hold what the metadata says, no more in each than wanted, and tell the capacity', async (t) => {
  const pool = await sample
  const names = ['mon', 'tue', 'wed', 'thu']
  const question = fc.record({
    base: fc.option(fc.nat({ max: 3 })),
    target: fc.nat({ max: 3 }),
    from: fc.option(fc.double({ min: 0, max: 1, noNaN: true })),
    maxResults: fc.constantFrom(0, 0, 1, 2, 7, 100, 2 ** 31 - 1)
  })
  await fc.assert(
    fc.asyncProperty(question, async ({ base, target, from, maxResults }) => {
      const baseName = base === null ? undefined : names[Math.min(base, target)]
      const snapshot = pool.snapshot(names[target])
      const startingOffset = from === null ? 0 : Math.floor(from * snapshot.sizeBytes)
      const request = {
        ...(baseName !== undefined && { base: pool.snapshot(baseName) }),
        target: snapshot,
        startingOffset,
        maxResults
      }
      const { messages, statistics } = start(request)
      const extents: Extent[] = []
      let count = 0
      for await (const bytes of messages) {
        const message = decode(bytes)
        t.is(message.capacityBytes, snapshot.sizeBytes)
        t.true(maxResults === 0 || message.extents.length <= maxResults)
        t.true(message.extents.length > 0 || count === 0)
        extents.push(...message.extents)
        count++
      }
      t.true(count >= 1)
      t.deepEqual(extents, await pool.extents(baseName, names[target], startingOffset))
      t.is(statistics.extents, extents.length)
      t.true(statistics.nodesRead > 0)
    }),
    { numRuns: 60 }
  )
})

test('an empty answer is one message, which tells the capacity', async (t) => {
  const pool = await sample
  const target = pool.snapshot('tue')
  for (const request of [
    { base: target, target },
    { target, startingOffset: target.sizeBytes },
    { target: { ...target, sizeBytes: 0 } }
  ]) {
    const messages = (await Array.fromAsync(start(request).messages)).map(decode)
    t.deepEqual(messages, [{ capacityBytes: request.target.sizeBytes, extents: [] }])
  }
})

test('the first message leaves with the first leaves, not once it is full', async (t) => {
  const pool = await big
  const { messages, statistics } = start({ target: pool.snapshot('big') })
  const first = await messages.next()
  t.false(first.done)
  const { extents } = decode(first.value as Uint8Array)
  t.true(extents.length > 0 && extents.length <= 8192, `${extents.length} extents`)
  t.true(statistics.nodesRead < 300, `${statistics.nodesRead} nodes read of about 480`)
  await messages.return(undefined)
})

test('a walk costs nothing before it is asked for, and nothing more once it is left', async (t) => {
  const pool = await big
  const { messages, statistics } = start({ target: pool.snapshot('big'), maxResults: 10 })
  t.deepEqual(statistics, NOTHING_YET)
  t.false((await messages.next()).done)
  t.true(statistics.nodesRead > 0)
  await messages.return(undefined)
  const cost = { ...statistics }
  await new Promise((resolve) => setTimeout(resolve, 20))
  t.deepEqual(statistics, cost)
})

test('the devices of a live pool are told before the first message, as the metadata has them', async (t) => {
  const pool = await sample
  const live = (name: string) => ({ ...pool.snapshot(name), live: true })
  const [base, target] = [live('mon'), live('wed')]
  const seen: SeenDevices[] = []
  const { messages } = start({ base, target }, { onSeen: (devices) => seen.push(devices) })
  await messages.next()
  t.is(seen.length, 1)
  await Array.fromAsync(messages)
  t.is(seen.length, 1)
  const metadata = await openPoolMetadata(pool.metadataPath, { liveRoot: true })
  t.teardown(() => metadata.close())
  for (const [device, snapshot] of [
    [seen[0].base, base],
    [seen[0].target, target]
  ] as const) {
    const found = await metadata.device(snapshot.thinId)
    t.deepEqual(device, {
      snapshot,
      transactionId: found.details.transactionId,
      fingerprint: await metadata.fingerprint(found)
    })
  }
  const alone: SeenDevices[] = []
  await Array.fromAsync(start({ target }, { onSeen: (devices) => alone.push(devices) }).messages)
  t.is(alone[0].base, undefined)
})

test('a snapshot that is gone is not found as target, and lost as base', async (t) => {
  const pool = await sample
  const [gone, thu] = [pool.snapshot('gone'), pool.snapshot('thu')]
  const says = /snapshot sample\/gone is no longer in its pool \(no thin device 6\)/
  await refused(t, { target: gone }, 'DM_SNAPSHOT_NOT_FOUND', says)
  await refused(t, { base: thu, target: gone }, 'DM_SNAPSHOT_NOT_FOUND', says)
  const error = await refused(t, { base: gone, target: thu }, 'DM_BASE_LOST', says)
  t.regex(error?.remedy ?? '', /full backup/)
})

test('another snapshot under a reused id is as good as none', async (t) => {
  const pool = await sample
  const metadata = await openPoolMetadata(pool.metadataPath)
  t.teardown(() => metadata.close())
  const { transactionId } = await metadata.deviceDetails(pool.snapshot('tue').thinId)
  const of = (name: string, transactionId: bigint): Snapshot => ({ ...pool.snapshot(name), transactionId })
  const [right, wrong] = [of('tue', transactionId), of('tue', transactionId + 1n)]
  const [mon, wed] = [pool.snapshot('mon'), pool.snapshot('wed')]
  await Array.fromAsync(start({ base: right, target: wed }).messages)
  const says = new RegExp(`thin device 3 is of transaction ${transactionId}, the snapshot of ${transactionId + 1n}`)
  await refused(t, { base: wrong, target: wed }, 'DM_BASE_LOST', says)
  await refused(t, { base: mon, target: wrong }, 'DM_SNAPSHOT_NOT_FOUND', says)
})

test('a base that is younger than the target is refused before anything is told', async (t) => {
  const pool = await sample
  const { messages } = start(
    { base: pool.snapshot('wed'), target: pool.snapshot('mon') },
    { onSeen: () => t.fail('told of devices that are not compared') }
  )
  const error = await t.throwsAsync<DeltamapperError>(messages.next(), { instanceOf: DeltamapperError })
  t.is(error?.code, 'DM_ORDER_REVERSED')
  t.is(error?.message, 'base sample/wed was taken after target sample/mon')
})

test('an abort travels with its reason', async (t) => {
  const pool = await big
  const reason = new DeltamapperError('DM_DEADLINE_EXCEEDED', 'too late', 'be earlier')
  const target = pool.snapshot('big')
  await t.throwsAsync(start({ target }, { signal: AbortSignal.abort(reason) }).messages.next(), { is: reason })
  const controller = new AbortController()
  const { messages } = start({ target, maxResults: 5000 }, { signal: controller.signal })
  t.false((await messages.next()).done)
  controller.abort(reason)
  // A message that was ready may still come; then it ends.
  await t.throwsAsync(Array.fromAsync(messages), { is: reason })
})

test('metadata that is missing, damaged or foreign says so', async (t) => {
  const pool = await sample
  const target = (metadataPath: string) => ({ target: { ...pool.snapshot('mon'), metadataPath } })
  await refused(t, target(join(folder, 'nothing')), 'DM_READ_FAILED', /ENOENT/)
  const text = join(folder, 'text')
  await writeFile(text, 'x'.repeat(10_000))
  await refused(t, target(text), 'DM_METADATA_FOREIGN', /no dm-thin metadata/)
  const short = join(folder, 'short')
  await writeFile(short, await readFile(pool.metadataPath))
  await truncate(short, 5 * 4096)
  await refused(t, target(short), 'DM_METADATA_DAMAGED', /beyond the end/)
})

test('an offset beyond the end is refused', async (t) => {
  const target = (await sample).snapshot('mon')
  await refused(t, { target, startingOffset: target.sizeBytes + 1 }, 'DM_OFFSET_OUT_OF_RANGE', /outside the volume/)
})

test('of a smaller base nothing beyond it counts as known', async (t) => {
  const pool = await sample
  const [base, target] = [pool.snapshot('tue'), pool.snapshot('wed')]
  const { messages } = start({ base, target })
  const extents = (await Array.fromAsync(messages)).flatMap((bytes) => decode(bytes).extents)
  const all = (await Array.fromAsync(start({ target }).messages)).flatMap((bytes) => decode(bytes).extents)
  const from = Math.floor(base.sizeBytes / KIB_64) * KIB_64
  const covered = (list: readonly Extent[]) =>
    list.reduce((sum, [offset, size]) => sum + Math.max(0, offset + size - Math.max(offset, from)), 0)
  t.true(base.sizeBytes < target.sizeBytes)
  t.true(covered(all) > 0)
  t.is(covered(extents), covered(all))
})

test('a description and an image of two pools are found out', async (t) => {
  const target = { ...(await sample).snapshot('wed'), blockBytes: 2 * KIB_64 }
  await refused(t, { target }, 'DM_RECORDED_POOL_INVALID', /has data blocks of 65536 bytes, where .* says 131072/)
})

test('where the live root is to be read, a damaged metadata snapshot is not looked at', async (t) => {
  const target = (await sample).snapshot('mon')
  const image = await readFile(target.metadataPath)
  const superblock = image.subarray(0, BLOCK_BYTES)
  superblock.writeBigUInt64LE(1n, superblockField.heldRoot)
  seal(superblock, 'superblock')
  const metadataPath = join(folder, 'held-damaged.img')
  await writeFile(metadataPath, image)
  await refused(t, { target: { ...target, metadataPath } }, 'DM_METADATA_DAMAGED', /^metadata block 1 /)
  const live = start({ target: { ...target, metadataPath, liveRoot: true } })
  t.deepEqual(await Array.fromAsync(live.messages), await Array.fromAsync(start({ target }).messages))
})
