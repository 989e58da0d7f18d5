/**
 * What an increment shows of each kind of range, with a base whose size is known and one whose size is not.
 */
import test from 'ava'
import { ALLOCATION } from '../../src/nbd/contexts.ts'
import { offers } from '../../src/nbd/source.ts'
import type { ExtentQuestion } from '../../src/nbd/status-map.ts'

const BLOCK = 4096
const SIZE = 8 * BLOCK

/** An answer that covers these blocks. */
function covering(...blocks: number[]): ExtentQuestion {
  return async (startingOffset) => ({
    capacityBytes: SIZE,
    batches: (async function* () {
      const offsets = Float64Array.from(
        blocks.filter((block) => (block + 1) * BLOCK > startingOffset),
        (b) => b * BLOCK
      )
      yield { count: offsets.length, offsets, sizes: offsets.map(() => BLOCK) }
    })()
  })
}

/** Of an increment, its `base:allocation`. Blocks 6 and 7 are beyond the base's end; 6 is allocated, and so has changed. */
function incrementMap(baseBytes: number | undefined, allocated = covering(0, 1, 4, 6), delta = covering(1, 2, 6)) {
  const offered = offers({
    target: 'vg/new',
    sizeBytes: SIZE,
    blockBytes: BLOCK,
    allocated,
    bases: [{ name: 'vg/old', sizeBytes: baseBytes, delta }],
    data: { parts: async () => [], read: async (_, into) => into },
    look: async () => undefined,
    close: async () => undefined
  })
  return offered[1].export.contexts.get(ALLOCATION)
}

/** The state of each block of the increment. */
async function increment(baseBytes: number | undefined): Promise<number[]> {
  const map = incrementMap(baseBytes)
  const states = Array.from({ length: 8 }, async (_, i) => (await map!.status(i * BLOCK, BLOCK, true))[0].flags)
  return Promise.all(states)
}

const [data, hole, zeros] = [0, 1, 3]

test('what is unchanged is left to the backing file, up to the end of the base', async (t) => {
  t.deepEqual(await increment(6 * BLOCK), [hole, data, zeros, hole, hole, hole, data, zeros])
})

test('where nobody knows where the base ends, only what is allocated is left to it, and nothing else is read', async (t) => {
  t.deepEqual(await increment(undefined), [hole, data, zeros, zeros, hole, zeros, data, zeros])
})

test('where nothing changed, nobody asks what is allocated', async (t) => {
  const refused: ExtentQuestion = async () => {
    throw new Error('it is asked')
  }
  const sums = await incrementMap(SIZE, refused, covering())?.survey()
  t.deepEqual([...(sums ?? [])], [[hole, SIZE]])
  await t.throwsAsync(async () => incrementMap(SIZE, refused, covering(7))?.survey(), { message: 'it is asked' })
})

test('what is allocated is asked from the beginning, also where it is needed only later: not each answer can go on from an offset', async (t) => {
  const asked: number[] = []
  const allocated: ExtentQuestion = (startingOffset, signal) => {
    asked.push(startingOffset)
    return covering(0, 7)(startingOffset, signal)
  }
  await incrementMap(SIZE, allocated, covering(3, 7))?.survey()
  t.deepEqual(asked, [0])
})
