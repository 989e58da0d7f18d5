/**
 * Answers that break and go on: whatever happens in between, what comes out is the answer, or an error.
 */
import test from 'ava'
import fc from 'fast-check'
import type { ExtentAnswer, ExtentBatch } from '../../src/devicemapper/extents.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { resuming, type ResumingOptions } from '../../src/kubernetes/resuming.ts'

type Extent = readonly [offset: number, size: number]

const capacityBytes = 1000
const broken = new DeltamapperError('DM_UNREACHABLE', 'it broke', 'ask again')
const { signal } = new AbortController()
const options = {
  startingOffset: 0,
  tries: 3,
  pauseMs: 0,
  signal,
  mayResume: ({ code }) => code === 'DM_UNREACHABLE'
} satisfies ResumingOptions

function batchOf(extents: readonly Extent[]): ExtentBatch {
  return {
    count: extents.length,
    offsets: Float64Array.from(extents, ([offset]) => offset),
    sizes: Float64Array.from(extents, ([, size]) => size)
  }
}

/** A server that rounds offsets down, sends batches of so many extents, and breaks after so many of them, call by call. */
function server(extents: readonly Extent[], size: number, breaks: (number | undefined)[], align = 1) {
  const asked: (number | bigint)[] = []
  const ask = async (startingOffset: number | bigint): Promise<ExtentAnswer> => {
    asked.push(startingOffset)
    const call = asked.length - 1
    const after = breaks[call]
    if (after === -1) throw broken
    const from = Math.floor(Number(startingOffset) / align) * align
    // A server may cut what it sends at the aligned offset, or send the whole extent that reaches beyond it.
    const rest = extents
      .filter(([offset, length]) => offset + length > Number(startingOffset))
      .map(([offset, length]): Extent => (offset >= from ? [offset, length] : [from, offset + length - from]))
    async function* batches() {
      for (let at = 0, sent = 0; at < rest.length; at += size, sent++) {
        if (sent === after) throw broken
        yield batchOf(rest.slice(at, at + size))
      }
      if (after !== undefined) throw broken
    }
    return { capacityBytes, batches: batches() }
  }
  return { ask, asked }
}

async function collect({ batches }: ExtentAnswer): Promise<Extent[]> {
  const extents: Extent[] = []
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) extents.push([offsets[i], sizes[i]])
  }
  return extents
}

/** Touching extents merged: a server may cut where it likes. */
function merged(extents: readonly Extent[]): Extent[] {
  const result: [number, number][] = []
  for (const [offset, size] of extents) {
    const last = result.at(-1)
    if (last !== undefined && last[0] + last[1] === offset) last[1] += size
    else result.push([offset, size])
  }
  return result
}

const some: Extent[] = Array.from({ length: 20 }, (_, i) => [i * 40, 20])

test('an answer that is resumed and has nothing left may end without a message', async (t) => {
  async function* brokenAfterAll() {
    yield batchOf(some)
    throw broken
  }
  async function* nothing(): AsyncGenerator<ExtentBatch> {}
  let calls = 0
  const ask = async (): Promise<ExtentAnswer> =>
    calls++ === 0 ? { capacityBytes, batches: brokenAfterAll() } : { capacityBytes: undefined, batches: nothing() }
  const answer = await resuming(ask, options)
  t.is(answer.capacityBytes, capacityBytes)
  t.deepEqual(await collect(answer), some)
  t.is(calls, 2)
})

test('what breaks goes on at the end of the last extent', async (t) => {
  const { ask, asked } = server(some, 4, [2, 1, undefined])
  t.deepEqual(await collect(await resuming(ask, options)), some)
  t.deepEqual(asked, [0, 7 * 40 + 20, 11 * 40 + 20])
})

test('a server that rounds the offset down adds nothing that was there already', async (t) => {
  const { ask } = server([[0, 900]], 1, [undefined], 64)
  t.deepEqual(await collect(await resuming(ask, { ...options, startingOffset: 100 })), [[64, 836]])
  const long: Extent[] = [
    [0, 100],
    [100, 300],
    [500, 100]
  ]
  t.deepEqual(merged(await collect(await resuming(server(long, 1, [1, undefined], 64).ask, options))), merged(long))
})

test('whatever breaks wherever, the answer is the same', async (t) => {
  const extents = fc
    .array(fc.tuple(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 1, max: 20 })), { maxLength: 30 })
    .map((steps) => {
      let at = 0
      return steps.map(([gap, size]): Extent => {
        const offset = at + gap
        at = offset + size
        return [offset, size]
      })
    })
  const breaks = fc.array(fc.integer({ min: -1, max: 4 }), { maxLength: 6 })
  await fc.assert(
    fc.asyncProperty(extents, fc.integer({ min: 1, max: 5 }), breaks, async (all, size, when) => {
      const { ask } = server(all, size, [...when, undefined])
      t.deepEqual(await collect(await resuming(ask, { ...options, tries: 10 })), all)
    }),
    { numRuns: 300 }
  )
})

test('as many tries in a row as were allowed; progress counts anew', async (t) => {
  const none = server(some, 4, [-1, -1, -1, undefined])
  await t.throwsAsync(resuming(none.ask, options), { is: broken })
  t.is(none.asked.length, 3)
  const slow = server(some, 4, [-1, -1, 1, -1, 1, 0, 1, undefined])
  t.deepEqual(await collect(await resuming(slow.ask, options)), some)
  const stuck = server(some, 4, [1, 0, 0, 0, undefined])
  await t.throwsAsync(resuming(stuck.ask, options).then(collect), { is: broken })
  t.is(stuck.asked.length, 3)
  const once = server(some, 4, [1, undefined])
  await t.throwsAsync(resuming(once.ask, { ...options, tries: 1 }).then(collect), { is: broken })
})

test('a failure that is final is passed on at once', async (t) => {
  const { ask, asked } = server(some, 4, [1, undefined])
  await t.throwsAsync(resuming(ask, { ...options, mayResume: () => false }).then(collect), { is: broken })
  t.is(asked.length, 1)
})

test('after ABORTED it begins again from 0 where nothing was handed on, and nowhere else', async (t) => {
  const gone = new DeltamapperError('DM_RESUME_REFUSED', 'the target is another now', 'ask again from the beginning')
  t.is(gone.status, 'ABORTED')
  const abortedAt = (call: number, breaks: (number | undefined)[]) => {
    const { ask, asked } = server(some, 4, breaks)
    let calls = 0
    const once = async (at: number | bigint) => {
      if (calls++ !== call) return ask(at)
      asked.push(at)
      throw gone
    }
    return { ask: once, asked }
  }
  // At once; and after a stream that broke before its first message.
  for (const call of [0, 1]) {
    const { ask, asked } = abortedAt(call, call === 0 ? [undefined, undefined] : [0, undefined, undefined])
    t.deepEqual(await collect(await resuming(ask, options)), some)
    t.deepEqual(asked, call === 0 ? [0, 0] : [0, 0, 0])
  }
  // Nothing is joined: what was handed on is of a state that is no more, and an offset that was asked for is somebody's who has the rest.
  const late = abortedAt(1, [2, undefined, undefined])
  await t.throwsAsync(resuming(late.ask, options).then(collect), { is: gone })
  t.is(late.asked.length, 2)
  const inside = abortedAt(0, [undefined, undefined])
  await t.throwsAsync(resuming(inside.ask, { ...options, startingOffset: 100 }).then(collect), { is: gone })
  t.is(inside.asked.length, 1)
})

test('another capacity is another answer', async (t) => {
  const { ask } = server(some, 4, [1, undefined])
  let calls = 0
  const growing = async (at: number | bigint) => ({ ...(await ask(at)), capacityBytes: capacityBytes + calls++ })
  const error = await t.throwsAsync(resuming(growing, options).then(collect), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_ANSWER_INVALID')
})

test('what breaks after the last extent that there can be was complete', async (t) => {
  const whole: Extent[] = [[0, 400], [400, 600]] // prettier-ignore
  const { ask, asked } = server(whole, 1, [1, 1])
  // As some drivers do: they have nothing at the capacity, and say so.
  const refusing = (at: number | bigint) =>
    Number(at) < capacityBytes
      ? ask(at)
      : Promise.reject(new DeltamapperError('DM_OFFSET_OUT_OF_RANGE', 'beyond the volume', 'ask for less'))
  t.deepEqual(await collect(await resuming(refusing, options)), whole)
  t.deepEqual(asked, [0, 400])
  const final = server(whole, 1, [2])
  await t.throwsAsync(resuming(final.ask, { ...options, mayResume: () => false }).then(collect), { is: broken })
})

/** As `server`, and the signals of its calls. */
function watched(breaks: (number | undefined)[]) {
  const { ask } = server(some, 4, breaks)
  const signals: AbortSignal[] = []
  let ends = 0
  return {
    ask: (at: number | bigint, _resumed: boolean, signal: AbortSignal) => {
      signals.push(signal)
      return ask(at)
    },
    open: () => signals.map(({ aborted }) => !aborted),
    onEnd: () => ends++,
    ended: () => ends > 0
  }
}

test('a call that nobody wants any more is ended, and no other', async (t) => {
  const resumed = watched([1, -1, undefined])
  const { batches } = await resuming(resumed.ask, { ...options, onEnd: resumed.onEnd })
  const reader = batches[Symbol.asyncIterator]()
  await reader.next()
  t.deepEqual(resumed.open(), [true])
  await reader.next()
  t.deepEqual(resumed.open(), [false, false, true])
  t.false(resumed.ended())
  while (!(await reader.next()).done);
  t.deepEqual(resumed.open(), [false, false, false])
  t.true(resumed.ended())

  const unread = watched([undefined])
  const answer = await resuming(unread.ask, { ...options, onEnd: unread.onEnd })
  await answer.batches[Symbol.asyncIterator]().return?.()
  t.deepEqual(unread.open(), [false])
  t.true(unread.ended())

  const another = watched([1, undefined])
  let calls = 0
  const growing = async (...asked: Parameters<typeof another.ask>) => ({
    ...(await another.ask(...asked)),
    capacityBytes: capacityBytes + calls++
  })
  await t.throwsAsync(resuming(growing, { ...options, onEnd: another.onEnd }).then(collect))
  t.deepEqual(another.open(), [false, false])
  t.true(another.ended())
})

test('whoever waits is told, and may give up', async (t) => {
  const controller = new AbortController()
  const events: unknown[] = []
  const { ask } = server(some, 4, [1, undefined])
  await collect(await resuming(ask, { ...options, onResume: (event) => events.push(event) }))
  t.deepEqual(events, [{ startingOffset: 3 * 40 + 20, failure: broken }])
  const waiting = resuming(server(some, 4, [-1, undefined]).ask, {
    ...options,
    pauseMs: 60_000,
    signal: controller.signal
  })
  controller.abort(new Error('enough'))
  await t.throwsAsync(waiting, { message: 'enough' })
})
