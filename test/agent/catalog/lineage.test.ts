import test from 'ava'
import fc from 'fast-check'
import { compareLineage, type Lineage, type LineageFacts } from '../../../src/agent/catalog/lineage.ts'

const facts = (changes: Partial<LineageFacts> = {}): LineageFacts => ({
  identity: 's',
  pool: 'p',
  volume: 'v',
  creationTime: 5,
  ...changes
})

for (const [what, one, other, expected] of [
  ['an earlier one', [facts()], [facts({ creationTime: 6 })], 'before'],
  ['a later one', [facts({ creationTime: 6 })], [facts()], 'after'],
  ['the same moment', [facts()], [facts()], 'same-volume'],
  ['clocks of different pools', [facts()], [facts({ pool: 'q', creationTime: 9 })], 'same-volume'],
  ['different volumes', [facts()], [facts({ volume: 'w' })], 'different-volumes'],
  ['a snapshot of a snapshot', [facts()], [facts({ identity: 'r', volume: 's', creationTime: 6 })], 'before'],
  ['its origin', [facts({ identity: 'r', volume: 's', creationTime: 6 })], [facts()], 'after'],
  ['snapshots of different snapshots', [facts({ volume: 'r' })], [facts({ volume: 't' })], 'different-volumes'],
  ['no record', [], [facts()], 'unknown'],
  ['a record that knows no volume', [facts({ volume: undefined })], [facts()], 'unknown'],
  ['one record that knows', [facts({ volume: undefined }), facts()], [facts({ creationTime: 6 })], 'before'],
  ['records that contradict each other', [facts(), facts({ volume: 'w' })], [facts()], 'unknown'],
  ['records of a re-created snapshot', [facts(), facts({ creationTime: 9 })], [facts({ creationTime: 6 })], 'unknown']
] as const) {
  test(`${what}: ${expected}`, (t) => {
    t.is(compareLineage(one, other), expected)
  })
}

test('asked the other way round, it says the same the other way round', (t) => {
  const records = fc.array(
    fc.record({
      identity: fc.constantFrom('s', 'v'),
      pool: fc.constantFrom('p', 'q'),
      volume: fc.constantFrom('v', 'w', undefined),
      creationTime: fc.nat(2)
    }),
    { maxLength: 2 }
  )
  const reversed: Partial<Record<Lineage, Lineage>> = { before: 'after', after: 'before' }
  fc.assert(
    fc.property(records, records, (one, other) => {
      const answer = compareLineage(one, other)
      t.is(compareLineage(other, one), reversed[answer] ?? answer)
    })
  )
})
