/** Which records of bases make room. */
import test from 'ava'
import fc from 'fast-check'
import { type BaseRetention, recordsToRemove } from '../../../src/agent/catalog/base-retention.ts'

const record = (volume: string, recordedAt: number, recordBytes = 10) => ({
  ...{ pool: 'pool', identity: `${volume} ${recordedAt}`, volume, recordBytes, recordedAt }
})

const removed = (records: ReturnType<typeof record>[], retention: Partial<BaseRetention>, now = 1000) =>
  recordsToRemove(records, { keep: 3, keptMs: 100, maxBytes: 1000, ...retention }, now).map(({ identity }) => identity)

test('old ones beyond the newest of a volume go, oldest first', (t) => {
  const a = [1, 2, 3, 4, 950].map((at) => record('a', at))
  t.deepEqual(removed(a.toReversed(), {}), ['a 1', 'a 2'])
  t.deepEqual(removed([...a, record('b', 1)], { keep: 1 }), ['a 1', 'a 2', 'a 3', 'a 4'])
  t.deepEqual(removed(a, { keptMs: 2000 }), [])
})

test('what exceeds the room goes: first of volumes with more than they keep, the newest of a volume last', (t) => {
  const records = [record('b', 1), record('a', 901), record('a', 902), record('a', 903), record('a', 904)]
  t.deepEqual(removed(records, { maxBytes: 40 }), ['a 901'])
  t.deepEqual(removed(records, { maxBytes: 30 }), ['a 901', 'a 902'])
  t.deepEqual(removed(records, { maxBytes: 20 }), ['a 901', 'a 902', 'a 903'])
  t.deepEqual(removed(records, { maxBytes: 10 }), ['b 1', 'a 901', 'a 902', 'a 903'])
  t.deepEqual(removed(records, { maxBytes: 0 }).length, 5)
})

test('never more bytes than there is room for, and never the newest of a volume while another has more', (t) => {
  const records = fc.array(
    fc.record({ volume: fc.constantFrom('a', 'b', 'c'), at: fc.nat(1000), bytes: fc.integer({ min: 1, max: 50 }) }),
    { maxLength: 20 }
  )
  fc.assert(
    fc.property(records, fc.integer({ min: 1, max: 4 }), fc.nat(300), (made, keep, maxBytes) => {
      const all = made.map(({ volume, at, bytes }, i) => ({ ...record(volume, at, bytes), identity: String(i) }))
      const gone = new Set(recordsToRemove(all, { keep, keptMs: 100, maxBytes }, 1000))
      const left = all.filter((each) => !gone.has(each))
      t.true(left.reduce((sum, each) => sum + each.recordBytes, 0) <= maxBytes)
      const count = (of: typeof all, volume: string) => of.filter((each) => each.volume === volume).length
      const emptied = ['a', 'b', 'c'].some((volume) => count(all, volume) > 0 && count(left, volume) === 0)
      if (emptied) t.true(['a', 'b', 'c'].every((volume) => count(left, volume) <= keep))
    })
  )
})
