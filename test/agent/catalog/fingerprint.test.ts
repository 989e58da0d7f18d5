import test from 'ava'
import fc from 'fast-check'
import {
  checkBase,
  checkResumed,
  compareFingerprints,
  type KnownSnapshot
} from '../../../src/agent/catalog/fingerprint.ts'
import { servedTarget } from './examples.ts'

const target: KnownSnapshot = {
  ...servedTarget({
    thinId: 5,
    creationTime: 7,
    transactionId: 9n,
    mappedBlocks: 100,
    sizeBytes: 2 ** 30
  }),
  role: 'target'
}

test('what was not touched is the same, by whatever handle', (t) => {
  t.deepEqual(compareFingerprints(target, { ...target, handle: 'other/name' }), { relation: 'same' })
})

for (const [change, relation, words] of [
  [{ mappedBlocks: 99 }, 'changed', /trimmed from 100 to 99 blocks/],
  [{ mappedBlocks: 101 }, 'changed', /written to: 100 blocks became 101/],
  [{ sizeBytes: 2 ** 31 }, 'changed', /resized from 1073741824 to 2147483648 bytes/],
  [{ creationTime: 8 }, 'changed', /clock .* from 7 to 8/],
  [{ thinId: 6 }, 'changed', /thin device id went from 5 to 6/],
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

test('a device of the same place that was served under another name and is gone does not concern this one', (t) => {
  const gone = { ...target, handle: 'other/name', transactionId: 1n }
  t.is(checkBase([gone], target), 'unrecorded')
  t.is(checkBase([gone, target], target), 'unchanged')
})

test('a volume that has got the device of a snapshot merged into it is another one by whatever name', (t) => {
  for (const merged of [{ creationTime: 8 }, { thinId: 6 }]) {
    const now = { ...target, handle: 'other/name', ...merged }
    t.throws(() => checkBase([target], now), { code: 'DM_BASE_CHANGED', message: /as vg\/snap-1: its / })
    t.throws(() => checkBase([{ ...target, role: 'base' }], now), { code: 'DM_BASE_CHANGED' })
  }
})

test('a change shows by whatever name it was served', (t) => {
  t.throws(() => checkBase([{ ...target, handle: 'other/name', mappedBlocks: 1 }], target), { code: 'DM_BASE_CHANGED' })
})

const anyTarget: fc.Arbitrary<KnownSnapshot> = fc.record({
  handle: fc.constantFrom('a/1', 'a/2'),
  identity: fc.constantFrom('lvm:1', 'lvm:2'),
  pool: fc.constantFrom('p', 'q'),
  volume: fc.constantFrom('v', undefined),
  thinId: fc.nat(1),
  creationTime: fc.nat(1),
  transactionId: fc.bigInt({ min: 0n, max: 1n }),
  role: fc.constantFrom('target', 'base'),
  mappedBlocks: fc.nat(1),
  sizeBytes: fc.nat(1)
})

test('same is exactly: everything but handle and volume is equal; and it is symmetric', (t) => {
  fc.assert(
    fc.property(anyTarget, anyTarget, (one, other) => {
      const essence = ({ handle: _, volume: __, role: ___, ...rest }: KnownSnapshot) => Object.values(rest).join()
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
        if (own.some(({ role }) => role === 'target')) t.is(verdict, 'unchanged')
        if (!recorded.some(({ role }) => role === 'target')) t.is(verdict, 'unrecorded')
      } catch {
        passed = false
      }
      if (different) t.false(passed)
      if (recorded.length === 0) t.true(passed)
    })
  )
})

test('that it was a base proves nothing of what it was before, and names the snapshot all the same', (t) => {
  const base = { ...target, role: 'base' } as const
  t.is(checkBase([base], target), 'unrecorded')
  t.is(checkBase([base, target], target), 'unchanged')
  const young = { ...target, identity: 'lvm:young' }
  t.throws(() => checkBase([base], young), { code: 'DM_BASE_CHANGED', message: /used as a base by this name/ })
  t.throws(() => checkBase([base], { ...target, mappedBlocks: 99 }), { code: 'DM_BASE_CHANGED', message: /trimmed/ })
})

test('records from before schema 5 are of the same snapshot, or refused', (t) => {
  // The pool was the path of its metadata; and a volume of LVM's had another identity by its device's name.
  const place = '/dev/mapper/vg-pool_tmeta thin 5 created at 7'
  const now = { ...target, formerIdentity: place }
  const byPath = { ...target, pool: '/dev/mapper/renamed_tmeta' }
  const byDevice = { ...byPath, handle: 'vg-pool-tpool/vg-s', identity: place }
  for (const old of [byPath, byDevice]) {
    t.is(checkBase([old], now), 'unchanged')
    t.throws(() => checkBase([{ ...old, mappedBlocks: 101 }], now), { code: 'DM_BASE_CHANGED', message: /trimmed/ })
  }
  t.throws(() => checkBase([byDevice], { ...target, handle: byDevice.handle }), { code: 'DM_BASE_CHANGED' })
  // Two pools with nothing but names are not the same.
  t.is(compareFingerprints(byPath, { ...target, pool: '/dev/mapper/other' }).relation, 'replaced')
})

test('an answer goes on only about what was served from the beginning by this name, and nothing else was', (t) => {
  fc.assert(
    fc.property(fc.array(anyTarget, { maxLength: 4 }), anyTarget, (recorded, now) => {
      const served = recorded.filter(({ role, handle }) => role === 'target' && handle === now.handle)
      const same = served.filter((each) => compareFingerprints(each, now).relation === 'same')
      let goesOn = true
      try {
        checkResumed(recorded, now)
      } catch (error) {
        goesOn = false
        t.like(error, { code: 'DM_RESUME_REFUSED', status: 'ABORTED' })
      }
      if (served.length === 0 || same.length < served.length) t.false(goesOn)
      if (served.length > 0 && served.length === recorded.length && same.length === served.length) t.true(goesOn)
    })
  )
})
