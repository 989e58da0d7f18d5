import test from 'ava'
import fc from 'fast-check'
import { checkBase, compareFingerprints, type ServedTarget } from '../../../src/agent/catalog/fingerprint.ts'
import { servedTarget } from './examples.ts'

const target = servedTarget({
  thinId: 5,
  creationTime: 7,
  transactionId: 9n,
  root: 20,
  mappedBlocks: 100,
  sizeBytes: 2 ** 30
})

test('what was not touched is the same, by whatever handle', (t) => {
  t.deepEqual(compareFingerprints(target, { ...target, handle: 'other/name' }), { relation: 'same' })
})

for (const [change, relation, words] of [
  [{ root: 42 }, 'changed', /written to or trimmed/],
  [{ rootChecksum: 1 }, 'changed', /written to or trimmed/],
  [{ mappedBlocks: 99, root: 42 }, 'changed', /trimmed from 100 to 99 blocks/],
  [{ mappedBlocks: 101, root: 42 }, 'changed', /written to: 100 blocks became 101/],
  [{ sizeBytes: 2 ** 31 }, 'changed', /resized from 1073741824 to 2147483648 bytes/],
  [{ creationTime: 8, root: 42 }, 'replaced', /clock .* from 7 to 8/],
  [{ thinId: 6 }, 'replaced', /thin device id went from 5 to 6/],
  [{ transactionId: 10n }, 'replaced', /transaction id .* from 9 to 10/],
  [{ identity: 'lvm:other' }, 'replaced', /lvm:other has taken the place of/],
  [{ pool: 'lvm:other' }, 'replaced', /taken the place/]
] as const) {
  test(`${JSON.stringify(change, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value))}: ${relation}`, (t) => {
    const now = { ...target, ...change }
    const comparison = compareFingerprints(target, now)
    t.is(comparison.relation, relation)
    t.regex('what' in comparison ? comparison.what : '', words)
    const error = t.throws(() => checkBase([target], now), { code: 'DM_BASE_CHANGED' })
    t.regex((error as Error & { remedy: string }).remedy, /full backup/)
    t.is((error as Error & { status: string }).status, 'FAILED_PRECONDITION')
  })
}

test('a base without a record is told from one that is proven unchanged', (t) => {
  t.is(checkBase([], target), 'unrecorded')
  t.is(checkBase([target], target), 'unchanged')
  // Proven by another name only: it was the same device all along.
  t.is(checkBase([{ ...target, handle: 'other/name' }], target), 'unchanged')
})

test('a device of the same identity that was served under another name and is gone does not concern this one', (t) => {
  const gone = { ...target, handle: 'other/name', creationTime: 1 }
  t.is(checkBase([gone], target), 'unrecorded')
  t.is(checkBase([gone, target], target), 'unchanged')
})

test('a change shows by whatever name it was served', (t) => {
  t.throws(() => checkBase([{ ...target, handle: 'other/name', root: 1 }], target), { code: 'DM_BASE_CHANGED' })
})

const anyTarget: fc.Arbitrary<ServedTarget> = fc.record({
  handle: fc.constantFrom('a/1', 'a/2'),
  identity: fc.constantFrom('lvm:1', 'lvm:2'),
  pool: fc.constantFrom('p', 'q'),
  volume: fc.constantFrom('v', undefined),
  thinId: fc.nat(1),
  creationTime: fc.nat(1),
  transactionId: fc.bigInt({ min: 0n, max: 1n }),
  root: fc.nat(1),
  rootChecksum: fc.nat(1),
  mappedBlocks: fc.nat(1),
  sizeBytes: fc.nat(1)
})

test('same is exactly: everything but handle and volume is equal; and it is symmetric', (t) => {
  fc.assert(
    fc.property(anyTarget, anyTarget, (one, other) => {
      const essence = ({ handle: _, volume: __, ...rest }: ServedTarget) => Object.values(rest).join()
      const { relation } = compareFingerprints(one, other)
      t.is(relation === 'same', essence(one) === essence(other))
      t.is(relation, compareFingerprints(other, one).relation)
    })
  )
})

test('a base passes only if everything ever served under its handle was what it is now', (t) => {
  fc.assert(
    fc.property(fc.array(anyTarget, { maxLength: 4 }), anyTarget, (recorded, now) => {
      const own = recorded.filter(({ handle }) => handle === now.handle)
      const different = own.some((each) => compareFingerprints(each, now).relation !== 'same')
      let passed = true
      try {
        const verdict = checkBase(recorded, now)
        if (own.length > 0) t.is(verdict, 'unchanged')
      } catch {
        passed = false
      }
      if (different) t.false(passed)
      if (recorded.length === 0) t.true(passed)
    })
  )
})
