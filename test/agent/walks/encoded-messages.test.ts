import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { encodedMessages } from '../../../src/agent/walks/encoded-messages.ts'
import type { ExtentBatch } from '../../../src/devicemapper/extents.ts'
import { decode, type Extent } from '../sample-pool.ts'

const capacityBytes = 2 ** 40

function batch(...extents: Extent[]): ExtentBatch {
  return {
    count: extents.length,
    offsets: Float64Array.from(extents.map(([offset]) => offset)),
    sizes: Float64Array.from(extents.map(([, size]) => size))
  }
}

async function collect(batches: AsyncIterable<ExtentBatch>, maxResults: number) {
  const statistics = { extents: 0, extentBytes: 0, volumeBytes: 0 }
  let before = 0
  const messages: Extent[][] = []
  for await (const message of encodedMessages(batches, { capacityBytes, maxResults }, statistics, () => before++)) {
    const { extents, capacityBytes: told } = decode(message)
    if (told !== capacityBytes) throw new Error(`a capacity of ${told}`)
    messages.push(extents)
  }
  return { messages, ...statistics, before }
}

test('messages are as full as they may be, and the last has the rest', async (t) => {
  async function* batches() {
    yield batch([0, 1], [10, 1])
    yield batch([20, 1], [30, 1], [40, 7])
  }
  const { messages, extents, extentBytes, volumeBytes } = await collect(batches(), 2)
  t.deepEqual(
    messages.flat().map(([offset]) => offset),
    [0, 10, 20, 30, 40]
  )
  t.true(messages.every(({ length }) => length <= 2))
  t.is(extents, 5)
  t.is(extentBytes, 11)
  t.is(volumeBytes, capacityBytes)
})

test('nothing at all is one message, which tells the capacity', async (t) => {
  async function* none(): AsyncGenerator<ExtentBatch> {}
  t.deepEqual((await collect(none(), 0)).messages, [[]])
})

test('what is there leaves after a while, although there is room for more', async (t) => {
  async function* slow() {
    yield batch([0, 1])
    await sleep(150)
    yield batch([10, 1])
    await sleep(150)
    yield batch([20, 1])
  }
  const { messages, before } = await collect(slow(), 0)
  t.deepEqual(messages, [[[0, 1]], [[10, 1]], [[20, 1]]])
  t.is(before, 3)
})

test('what goes wrong ends the messages: none is made of what was left', async (t) => {
  async function* broken() {
    yield batch([0, 1])
    yield batch([10, 1])
    throw new Error('no more')
  }
  await t.throwsAsync(collect(broken(), 10), { message: 'no more' })
})
