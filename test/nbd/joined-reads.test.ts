/**
 * Reads that wait together: what is joined, what is not, and that each gets its own bytes.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { Unanswered } from '../../src/devicemapper/device-reads.ts'
import { DataFile } from '../../src/nbd/data-file.ts'
import { JoinedReads } from '../../src/nbd/joined-reads.ts'
import { BufferShare, ReadBuffers } from '../../src/nbd/read-buffers.ts'
import { Random } from '../support/random.ts'

const PIECE = 256 * 1024

/** Reads nothing, and notes what it was asked for, as `[position, bytes…]`. */
function noting(answer: (position: number, bytes: number) => number) {
  const calls: number[][] = []
  const reads = new JoinedReads(async (into, position) => {
    const lengths = into.map(({ length }) => length)
    calls.push([position, ...lengths])
    return answer(
      position,
      lengths.reduce((sum, length) => sum + length, 0)
    )
  })
  return { calls, read: (position: number, length = PIECE) => reads.read(Buffer.alloc(length), position) }
}

test('neighbours are one read, in whatever order they come, and others are not', async (t) => {
  const { calls, read } = noting((_, bytes) => bytes)
  const asked = [0, PIECE, 5 * PIECE, 2 * PIECE, 6 * PIECE]
  t.deepEqual(
    await Promise.all(asked.map((position) => read(position))),
    asked.map(() => PIECE)
  )
  t.deepEqual(calls, [
    [0, PIECE, PIECE, PIECE],
    [5 * PIECE, PIECE, PIECE]
  ])
})

test('none is longer than 2 MiB', async (t) => {
  const { calls, read } = noting((_, bytes) => bytes)
  await Promise.all(Array.from({ length: 20 }, (_, i) => read(i * PIECE)))
  t.deepEqual(
    calls.map(([position, ...lengths]) => [position / PIECE, lengths.length]),
    [
      [0, 8],
      [8, 8],
      [16, 4]
    ]
  )
})

test('eight are under way at once, and what waits meanwhile is joined', async (t) => {
  const gates: (() => void)[] = []
  const calls: number[] = []
  const reads = new JoinedReads(async (into, position) => {
    calls.push(position)
    await new Promise<void>((resolve) => gates.push(resolve))
    return into.length
  })
  const read = (position: number) => reads.read(Buffer.alloc(1), position)
  const places = [10, 20, 30, 40, 50, 60, 70, 80]
  const first = [...places, 90].map(read)
  await new Promise(setImmediate)
  const late = read(91)
  await new Promise(setImmediate)
  t.deepEqual(calls, places)
  gates[0]()
  await first[0]
  await new Promise(setImmediate)
  t.deepEqual(calls, [...places, 90])
  gates.forEach((open) => open())
  t.true((await Promise.all([...first, late])).every((bytes) => bytes === 1))
})

test('one that is cut short is done again, part by part', async (t) => {
  const { calls, read } = noting((position, bytes) => Math.max(0, Math.min(bytes, PIECE + 4096 - position)))
  t.deepEqual(await Promise.all([0, 1, 2].map((i) => read(i * PIECE))), [PIECE, 4096, 0])
  t.is(calls.length, 3)
})

test('one that fails fails only whoever asked for the part that cannot be read', async (t) => {
  const { read } = noting((position, bytes) => {
    if (position <= PIECE && PIECE < position + bytes) throw new Error('EIO')
    return bytes
  })
  const settled = await Promise.allSettled([0, 1, 2].map((i) => read(i * PIECE)))
  t.deepEqual(
    settled.map(({ status }) => status),
    ['fulfilled', 'rejected', 'fulfilled']
  )
})

test('one that is not answered fails all of it: the kernel has all the buffers', async (t) => {
  const { calls, read } = noting(() => {
    throw new Unanswered(1000, true)
  })
  const settled = await Promise.allSettled([0, 1].map((i) => read(i * PIECE)))
  t.true(settled.every((each) => each.status === 'rejected' && each.reason instanceof Unanswered))
  t.is(calls.length, 1)
})

test('a file gives every range its bytes, however many are asked for at once', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'joined-'))
  const random = new Random(1)
  // It ends in the middle of a page.
  const content = Buffer.from(Uint32Array.from({ length: 2 ** 20 }, (_, i) => i * 2654435761).buffer, 0, 2 ** 22 - 777)
  await writeFile(join(folder, 'data'), content)
  const file = await DataFile.open(join(folder, 'data'))
  const share = new BufferShare(new ReadBuffers(), 8)
  await Promise.all(
    Array.from({ length: 300 }, async (_, i) => {
      // Half of them side by side.
      const size = i % 2 === 0 ? 8192 : random.integer(1, PIECE)
      const position = i % 2 === 0 ? i * 4096 : random.integer(0, content.length - size)
      const buffer = await share.take()
      t.true((await file.readAt(position, size, buffer)).equals(content.subarray(position, position + size)))
      share.giveBack(buffer)
    })
  )
  const beyond = file.readAt(content.length - 10, 20, await share.take())
  t.is((await t.throwsAsync(beyond, { code: 'DM_READ_FAILED' })).message.includes('ends before'), true)
  await file.close()
  await rm(folder, { recursive: true })
})

test('a share has no more buffers than it may, and those that wait come in turn', async (t) => {
  const buffers = new ReadBuffers()
  const share = new BufferShare(buffers, 2)
  const [one, two] = [await share.take(), await share.take()]
  t.not(one, two)
  const order: string[] = []
  const third = share.take().then((buffer) => (order.push('third'), buffer))
  const fourth = share.take().then((buffer) => (order.push('fourth'), buffer))
  await new Promise(setImmediate)
  t.deepEqual(order, [])
  share.giveBack(one)
  t.is(await third, one)
  // Lost: whoever waits gets another.
  share.lose()
  t.false([one, two].includes(await fourth))
  t.deepEqual(order, ['third', 'fourth'])
  // Another's share is its own.
  t.false([one, two].includes(await new BufferShare(buffers, 1).take()))
})
