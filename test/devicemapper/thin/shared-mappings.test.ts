import test from 'ava'
import fc from 'fast-check'
import { type MappingRun, SharedMappings } from '../../../src/devicemapper/thin/shared-mappings.ts'

const anywhere = fc.oneof(
  fc.nat({ max: 300 }),
  fc.maxSafeNat().map((value) => value % 2 ** 40)
)
const run = fc.record({ gap: anywhere, data: anywhere, length: anywhere, time: fc.nat({ max: 2 ** 24 - 1 }) })

test('what was put in comes out, list by list', (t) => {
  fc.assert(
    fc.property(fc.array(fc.array(run, { maxLength: 30 }), { maxLength: 5 }), (lists) => {
      const shared = new SharedMappings(2 ** 20)
      const expected = lists.map((list) => {
        let end = 0
        return list.map(({ gap, data, length, time }): MappingRun => {
          const begin = end + gap
          end = begin + length
          return { begin, data, length, time }
        })
      })
      for (const [name, list] of expected.entries()) {
        shared.begin(String(name))
        for (const { begin, data, length, time } of list) shared.add(begin, data, length, time)
        shared.end()
      }
      for (const [name, list] of [...expected.entries()].reverse()) {
        t.deepEqual(
          [...shared.runs(String(name))].length === 0
            ? []
            : Array.from(shared.runs(String(name)), (each) => ({ ...each })),
          list
        )
      }
    }),
    { numRuns: 200 }
  )
})

test('names are just names', (t) => {
  const shared = new SharedMappings(2 ** 20)
  for (const name of ['__proto__', 'constructor', '']) {
    shared.begin(name)
    shared.add(1, 2, 3, 4)
    shared.end()
    t.throws(() => shared.begin(name), { message: /defined a second time/ })
    t.is([...shared.runs(name)].length, 1)
  }
  t.throws(() => [...shared.runs('toString')], { message: '"toString" is not defined' })
})
