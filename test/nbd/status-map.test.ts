import test from 'ava'
import fc from 'fast-check'
import type { ExtentAnswer } from '../../src/devicemapper/extents.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { StatusMap } from '../../src/nbd/status-map.ts'

const SIZE = 64

/** Bytes that an answer covers, as extents that may touch, in batches of `batch`. */
function answerOf(bits: readonly boolean[], from: number, batch: number): ExtentAnswer {
  const extents: [number, number][] = []
  bits.forEach((bit, i) => {
    if (!bit || i < from) return
    const last = extents.at(-1)
    if (last && last[0] + last[1] === i && i % 5 !== 0) last[1]++
    else extents.push([i, 1])
  })
  return {
    capacityBytes: SIZE,
    batches: (async function* () {
      // The arrays are reused, as walks reuse theirs.
      const [offsets, sizes] = [new Float64Array(batch), new Float64Array(batch)]
      for (let at = 0; at < extents.length; at += batch) {
        const part = extents.slice(at, at + batch)
        part.forEach(([offset, size], i) => ([offsets[i], sizes[i]] = [offset, size]))
        yield { count: part.length, offsets, sizes }
      }
    })()
  }
}

const bits = fc.array(fc.boolean(), { minLength: SIZE, maxLength: SIZE })
const asks = fc.array(
  fc.record({ offset: fc.nat(SIZE - 1), length: fc.integer({ min: 1, max: SIZE }), onlyFirst: fc.boolean() }),
  { minLength: 1, maxLength: 30 }
)

test('whatever is asked in whatever order and at once, each byte has its state', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      bits,
      bits,
      asks,
      fc.integer({ min: 1, max: 7 }),
      fc.nat(SIZE),
      async (one, two, all, batch, boundary) => {
        const state = ([a, b]: readonly boolean[], offset: number) =>
          (a ? 1 : 0) + (b ? 2 : 0) + (offset < boundary ? 4 : 0)
        const questions = [one, two].map((each) => async (from: number) => answerOf(each, from, batch))
        const map = new StatusMap({ sizeBytes: SIZE, questions, state, boundary })
        const expected = (i: number) => state([one[i], two[i]], i)
        const check = async ({ offset, length, onlyFirst }: { offset: number; length: number; onlyFirst: boolean }) => {
          const asked = Math.min(length, SIZE - offset)
          const descriptors = await map.status(offset, asked, onlyFirst)
          let at = offset
          for (const [i, { size, flags }] of descriptors.entries()) {
            if (i > 0) t.not(flags, descriptors[i - 1].flags)
            for (const end = at + size; at < end; at++) t.is(flags, expected(at), `byte ${at}`)
          }
          if (onlyFirst) t.is(descriptors.length, 1)
          else t.is(at, offset + asked)
          t.true(at > offset && at <= offset + asked)
        }
        for (let i = 0; i < all.length; i += 4) await Promise.all(all.slice(i, i + 4).map(check))
        const sums = await map.survey()
        t.is(
          [...sums.values()].reduce((sum, each) => sum + each, 0),
          SIZE
        )
        await map.close()
      }
    ),
    { numRuns: 150 }
  )
})

test('who asks from the front to the back asks the source once', async (t) => {
  const asked: number[] = []
  const all = Array.from({ length: SIZE }, (_, i) => i % 3 === 0)
  const question = async (from: number) => {
    asked.push(from)
    return answerOf(all, from, 2)
  }
  const map = new StatusMap({ sizeBytes: SIZE, questions: [question], state: ([has]) => (has ? 0 : 3) })
  for (let at = 0; at < SIZE; at += 4) await map.status(at, 4, false)
  t.deepEqual(asked, [0])
  await map.status(10, 4, false)
  t.deepEqual(asked, [0, 10])
  await map.close()
})

test('an answer that is given up while nobody reads it goes on; one that fails otherwise fails the question', async (t) => {
  const all = Array.from({ length: SIZE }, () => true).map((_, i) => i % 2 === 0)
  let failing: DeltamapperError | undefined
  const question = async (from: number): Promise<ExtentAnswer> => {
    const { batches, capacityBytes } = answerOf(all, from, 1)
    return {
      capacityBytes,
      batches: (async function* () {
        for await (const each of batches) {
          if (failing) {
            const error = failing
            failing = undefined
            throw error
          }
          yield each
        }
      })()
    }
  }
  const map = new StatusMap({ sizeBytes: SIZE, questions: [question], state: ([has]) => (has ? 1 : 0) })
  await map.status(0, 8, false)
  failing = new DeltamapperError('DM_CLIENT_IDLE', 'idle', 'read')
  const descriptors = await map.status(8, 4, false)
  t.deepEqual(
    descriptors.map(({ flags }) => flags),
    [1, 0, 1, 0]
  )
  failing = new DeltamapperError('DM_SNAPSHOT_CHANGED', 'changed', 'again')
  await t.throwsAsync(map.status(12, 4, false), { message: 'changed' })
  await map.close()
})

test('an answer about another size is none', async (t) => {
  const question = async () => ({ ...answerOf([], 0, 1), capacityBytes: SIZE - 1 })
  const map = new StatusMap({ sizeBytes: SIZE, questions: [question], state: () => 0 })
  const error = await t.throwsAsync(map.status(0, 1, false))
  t.is((error as DeltamapperError).code, 'DM_SNAPSHOT_CHANGED')
})

test('runs are cut where a descriptor has no more bits', async (t) => {
  const sizeBytes = 2 ** 33 + 512
  const question = async () => ({ capacityBytes: sizeBytes, batches: (async function* () {})() })
  const map = new StatusMap({ sizeBytes, questions: [question], state: () => 3 })
  const descriptors = await map.status(0, sizeBytes, false)
  t.deepEqual(
    descriptors.map(({ size }) => size),
    [2 ** 31, 2 ** 31, 2 ** 31, 2 ** 31, 512]
  )
  t.deepEqual(await map.status(0, sizeBytes, true), [{ size: 2 ** 31, flags: 3 }])
})
