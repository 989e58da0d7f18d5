/**
 * Two answers held against each other: equal ones pass, whatever their batches; any difference is found, and nothing doubtful leaves.
 */
import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import fc from 'fast-check'
import type { ExtentBatch } from '../../../src/devicemapper/extents.ts'
import {
  type CheckOutcome,
  crossChecked,
  describeDifference,
  type Difference
} from '../../../src/devicemapper/tools/cross-check.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import type { Extent } from '../../support/expected.ts'

interface Source {
  readonly extents: readonly Extent[]
  /** Extents in a batch. */
  readonly most: number
  /** Thrown after the last extent. */
  readonly error?: Error
}

/** Batches in arrays that are used again for the next one, as the walk's are. */
async function* batchesOf({ extents, most, error }: Source): AsyncGenerator<ExtentBatch, boolean> {
  const [offsets, sizes] = [new Float64Array(most), new Float64Array(most)]
  for (let from = 0; from < extents.length; from += most) {
    const batch = extents.slice(from, from + most)
    for (const [i, [offset, size]] of batch.entries()) {
      offsets[i] = offset
      sizes[i] = size
    }
    yield { count: batch.length, offsets, sizes }
    offsets.fill(-1)
    if (from % 3 === 0) await setImmediate()
  }
  if (error) throw error
  return true
}

interface Checked {
  received: Extent[]
  outcomes: CheckOutcome[]
  returned?: boolean
  thrown?: unknown
}

async function check(answer: Source, other: Source): Promise<Checked> {
  const checked: Checked = { received: [], outcomes: [] }
  const { received, outcomes } = checked
  const batches = crossChecked(
    batchesOf(answer),
    () => batchesOf(other),
    (outcome) => outcomes.push(outcome)
  )
  try {
    for (;;) {
      const next = await batches.next()
      if (next.done) return { ...checked, returned: next.value }
      for (let i = 0; i < next.value.count; i++) received.push([next.value.offsets[i], next.value.sizes[i]])
    }
  } catch (thrown) {
    return { ...checked, thrown }
  }
}

/** Extents that ascend and do not touch. */
const ascending = fc
  .array(fc.tuple(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 5 })), { maxLength: 60 })
  .map((steps) => {
    let end = 0
    return steps.map(([gap, size]): Extent => {
      const offset = end + gap
      end = offset + size
      return [offset, size]
    })
  })
const most = fc.integer({ min: 1, max: 9 })

test('answers that are the same agree, however they are cut into batches', async (t) => {
  await fc.assert(
    fc.asyncProperty(ascending, most, most, async (extents, one, other) => {
      const checked = await check({ extents, most: one }, { extents, most: other })
      t.deepEqual(checked, {
        received: extents.map((each) => [...each] as unknown as Extent),
        outcomes: [{ check: 'agreed', extents: extents.length }],
        returned: true
      })
    })
  )
})

/** The first byte that one of the two covers and the other does not, found byte by byte. */
function firstByte(one: readonly Extent[], other: readonly Extent[]): number | undefined {
  const bytes = (extents: readonly Extent[]) =>
    new Set(extents.flatMap(([offset, size]) => Array.from({ length: size }, (_, i) => offset + i)))
  const [left, right] = [bytes(one), bytes(other)]
  const alone = [...left.symmetricDifference(right)]
  return alone.length === 0 ? undefined : Math.min(...alone)
}

test('any difference is found where it is first, and ends the answer', async (t) => {
  await fc.assert(
    fc.asyncProperty(ascending, ascending, most, most, async (one, other, oneMost, otherMost) => {
      const byte = firstByte(one, other)
      fc.pre(byte !== undefined)
      const { received, outcomes, thrown } = await check(
        { extents: one, most: oneMost },
        { extents: other, most: otherMost }
      )
      t.true(thrown instanceof DeltamapperError && thrown.code === 'DM_ENGINES_DISAGREE', String(thrown))
      t.deepEqual(
        outcomes.map((outcome) => (outcome.check === 'disagreed' ? outcome.first.byte : outcome.check)),
        [byte]
      )
      t.deepEqual(received, one.slice(0, received.length))
    })
  )
})

test('a second answer that fails says nothing about the first', async (t) => {
  const extents: Extent[] = [
    [0, 1],
    [2, 1],
    [4, 1]
  ]
  const why = new DeltamapperError('DM_TOOL_FAILED', 'it broke', 'mend it')
  const checked = await check({ extents, most: 1 }, { extents: extents.slice(0, 2), most: 1, error: why })
  t.deepEqual(checked, { received: extents, outcomes: [{ check: 'unchecked', why }], returned: true })
})

test('a first answer that fails fails as it does, and is not reported', async (t) => {
  const error = new DeltamapperError('DM_SNAPSHOT_CHANGED', 'it changed', 'ask again')
  const checked = await check({ extents: [[0, 1]], most: 1, error }, { extents: [[0, 1]], most: 1 })
  t.deepEqual(checked, { received: [[0, 1]], outcomes: [], thrown: error })
})

test('far more extents than are remembered: the answer waits for its check, and the check for the answer', async (t) => {
  const count = 1_000_000
  const extents = Array.from({ length: count }, (_, i): Extent => [2 * i, 1])
  for (const [one, other] of [
    [50_000, 997],
    [997, 50_000]
  ] as const) {
    const { outcomes, received } = await check({ extents, most: one }, { extents, most: other })
    t.deepEqual(outcomes, [{ check: 'agreed', extents: count }])
    t.is(received.length, count)
  }
})

test('whoever stops reading ends the second answer', async (t) => {
  let stop: AbortSignal | undefined
  let ended = false
  async function* endless(signal: AbortSignal): AsyncGenerator<ExtentBatch> {
    stop = signal
    try {
      yield { count: 1, offsets: Float64Array.of(0), sizes: Float64Array.of(1) }
      await new Promise((_, reject) => {
        signal.addEventListener('abort', () => {
          reject(signal.reason as Error)
        })
      })
    } finally {
      ended = true
    }
  }
  const batches = crossChecked(
    batchesOf({
      extents: [
        [0, 1],
        [2, 1]
      ],
      most: 1
    }),
    endless,
    () => {
      t.fail('nothing is known')
    }
  )
  await batches.next()
  await batches.return(false)
  await setImmediate()
  t.true(stop?.aborted)
  t.true(ended)
})

test('a difference in words', (t) => {
  const shown: [Difference, string][] = [
    [{ byte: 4, answered: [4, 2], other: [8, 2] }, 'they part at byte 4: the walk says 4+2, the tool says 8+2'],
    [
      { byte: 6, answered: undefined, other: [6, 1] },
      'they part at byte 6: the walk says nothing more, the tool says 6+1'
    ]
  ]
  for (const [difference, words] of shown) t.is(describeDifference(difference), words)
})
