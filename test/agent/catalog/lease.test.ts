import test from 'ava'
import fc from 'fast-check'
import { type HeldSlot, leaseVerdict, type LeaseRecord, poolFacts } from '../../../src/agent/catalog/lease.ts'

const before = 'thin-pool time 5 transaction 3 mappings 10 details 11'
const held = 'thin-pool time 5 transaction 3 mappings 20 details 21'
const later = 'thin-pool time 6 transaction 4 mappings 30 details 31'

const record = (state: LeaseRecord['state']): LeaseRecord => ({
  device: 'dm:pool',
  state,
  purpose: 'thin_delta',
  factsBefore: before,
  heldRoot: state === 'reserving' ? undefined : 77,
  factsHeld: state === 'reserving' ? undefined : held,
  takenAt: 0
})

const empty: HeldSlot = { heldRoot: 0, facts: undefined }
const ours: HeldSlot = { heldRoot: 77, facts: held }
const otherBlock: HeldSlot = { heldRoot: 78, facts: held }
const otherContent: HeldSlot = { heldRoot: 77, facts: later }
const unreadable: HeldSlot = { heldRoot: 77, facts: undefined }
const unreadableElsewhere: HeldSlot = { heldRoot: 78, facts: undefined }

/** When the crash came, what the record says then, what is there at the next start, and what follows. */
for (const [crash, recorded, slot, whose, ambiguous, then] of [
  ['before anything', undefined, empty, 'none', false, 'clear'],
  ['before anything, and somebody else came', undefined, ours, 'foreign', false, 'clear'],
  ['after the record, before the message', record('reserving'), empty, 'none', false, 'clear'],
  ['after the record, and somebody else came first', record('reserving'), ours, 'foreign', true, 'keep'],
  ['after the message, before it was confirmed', record('reserving'), ours, 'foreign', true, 'keep'],
  ['the same, and its content cannot be read', record('reserving'), unreadable, 'foreign', true, 'keep'],
  ['while held', record('held'), ours, 'ours', false, 'keep'],
  ['while held, and somebody released it', record('held'), empty, 'none', false, 'clear'],
  ['while held, and somebody put theirs in another block', record('held'), otherBlock, 'foreign', false, 'clear'],
  ['while held, and somebody put theirs in the same block', record('held'), otherContent, 'foreign', false, 'clear'],
  ['while held, and its content cannot be read', record('held'), unreadable, 'foreign', true, 'keep'],
  ['while held, another block cannot be read', record('held'), unreadableElsewhere, 'foreign', false, 'clear'],
  ['before the release was sent', record('releasing'), ours, 'foreign', true, 'keep'],
  ['after the release', record('releasing'), empty, 'none', false, 'clear'],
  ['after the release, and somebody else came', record('releasing'), otherContent, 'foreign', false, 'clear'],
  ['after the release, and somebody else came to the same', record('releasing'), ours, 'foreign', true, 'keep'],
  ['after the release, and it cannot be read', record('releasing'), unreadable, 'foreign', true, 'keep'],
  ['after the record was cleared', undefined, empty, 'none', false, 'clear']
] as const) {
  test(`killed ${crash}: ${whose}${ambiguous ? ', perhaps ours' : ''}`, (t) => {
    const verdict = leaseVerdict(recorded, slot)
    t.like(verdict, { whose, ambiguous, record: then })
    t.true(verdict.because.length > 0)
  })
}

test('facts are exact, and different for every field', (t) => {
  const superblock = { time: 1, transactionId: 2n ** 64n - 1n, mappingRoot: 3, detailsRoot: 4 }
  t.is(poolFacts(superblock), 'thin-pool time 1 transaction 18446744073709551615 mappings 3 details 4')
  const changed = [{ time: 2 }, { transactionId: 2n ** 64n - 2n }, { mappingRoot: 5 }, { detailsRoot: 5 }]
  t.is(new Set(changed.map((change) => poolFacts({ ...superblock, ...change }))).size, 4)
})

/**
 * One pool whose slot we and somebody else use by the rules (nobody releases what is not theirs), and which may change in between or
 * not: then whatever is reserved next lies in the same block with the same content. We are killed at any point.
 */
const act = fc.constantFrom(
  ...(['begin', 'reserve', 'confirm', 'begin release', 'release', 'clear'] as const),
  ...(['theirs: reserve', 'theirs: release', 'pool changes'] as const)
)

test('whatever happens before the crash, what is called ours is ours, and foreign slots stay', (t) => {
  let called = 0
  fc.assert(
    fc.property(fc.array(act, { maxLength: 14 }), (acts) => {
      let known: LeaseRecord | undefined
      let slot: (HeldSlot & { owner: 'us' | 'them' }) | undefined
      let generation = 0
      let reserved = false
      for (const each of acts) {
        const next = { heldRoot: 70 + (generation % 3), facts: `state ${generation}` }
        if (each === 'begin' && known === undefined) {
          known = { ...record('reserving'), factsBefore: next.facts }
          reserved = false
        } else if (each === 'reserve' && known?.state === 'reserving' && !reserved) {
          // The slot is taken: the reservation is refused, and the record taken back.
          if (slot !== undefined) known = undefined
          else {
            slot = { ...next, owner: 'us' }
            reserved = true
          }
        } else if (each === 'confirm' && known?.state === 'reserving' && reserved && slot !== undefined) {
          known = { ...known, state: 'held', heldRoot: slot.heldRoot, factsHeld: slot.facts }
        } else if (each === 'begin release' && known?.state === 'held') known = { ...known, state: 'releasing' }
        else if (each === 'release' && known?.state === 'releasing' && slot?.owner === 'us') slot = undefined
        else if (each === 'clear' && known?.state === 'releasing' && slot?.owner !== 'us') known = undefined
        else if (each === 'theirs: reserve' && slot === undefined) slot = { ...next, owner: 'them' }
        else if (each === 'theirs: release' && slot?.owner === 'them') slot = undefined
        else if (each === 'pool changes') generation++
      }
      const { whose, ambiguous } = leaseVerdict(known, slot ?? empty)
      if (whose === 'ours') called++
      t.is(whose === 'none', slot === undefined)
      if (whose === 'ours') t.is(slot?.owner, 'us')
      // Ours is overlooked only in the moments of the two messages, and then it is said that it may be ours.
      if (slot?.owner === 'us' && whose !== 'ours') {
        t.true(ambiguous)
        t.not(known?.state, 'held')
      }
    }),
    { numRuns: 3000 }
  )
  t.true(called > 5)
})
