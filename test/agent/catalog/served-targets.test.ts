import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import { type CatalogDatabase, openDatabase } from '../../../src/agent/catalog/database.ts'
import { checkBase, type ServedTarget } from '../../../src/agent/catalog/fingerprint.ts'
import { findServed, forgetServed, remember, servedTable } from '../../../src/agent/catalog/served-targets.ts'
import { servedTarget, testFolder } from './examples.ts'

const hour = 3_600_000

function openIn(t: ExecutionContext): CatalogDatabase {
  const database = openDatabase(join(testFolder(t), 'catalog.db'))
  t.teardown(() => {
    database.close()
  })
  return database
}

test('what was remembered is found, exactly, by handle and by identity', (t) => {
  const database = openIn(t)
  const target = servedTarget()
  t.is(remember(database, target, 1000), 'new')
  const record = { ...target, role: 'target' as const, firstServedAt: 1000, lastServedAt: 1000 }
  const { handle, identity } = target
  t.deepEqual(findServed(database, { handle, identity }), [record])
  t.deepEqual(findServed(database, { handle, identity: 'another' }), [record])
  t.deepEqual(findServed(database, { handle: 'another/one', identity }), [record])
  t.deepEqual(findServed(database, { handle: 'another/one', identity: 'another' }), [])
})

test('a target that is served again and again writes no more than once an hour', (t) => {
  const database = openIn(t)
  remember(database, servedTarget(), 0)
  for (const [at, last] of [
    [hour - 1, 0],
    [hour, hour],
    [hour + 5, hour],
    [3 * hour, 3 * hour]
  ] as const) {
    t.is(remember(database, servedTarget(), at), 'known')
    t.like(findServed(database, servedTarget()), [{ firstServedAt: 0, lastServedAt: last }])
  }
})

test('a target that was served differently is never taken for an unchanged base again', (t) => {
  const database = openIn(t)
  const states = [1, 2, 3].map((mappedBlocks) => servedTarget({ mappedBlocks }))
  t.is(remember(database, states[0], 0), 'new')
  t.is(checkBase(findServed(database, states[0]), states[0]), 'unchanged')
  for (const each of [states[1], states[2], states[0], states[1]]) t.is(remember(database, each, 5), 'changed')
  for (const now of states) t.throws(() => checkBase(findServed(database, now), now), { code: 'DM_BASE_CHANGED' })
  // However often: two records are proof enough.
  t.is(servedTable.find(database, {}).length, 2)
})

test('a handle that named one snapshot and then another names no base', (t) => {
  const database = openIn(t)
  const [old, young] = [servedTarget({ identity: 'lvm:old' }), servedTarget({ identity: 'lvm:young' })]
  t.is(remember(database, old, 0), 'new')
  t.is(remember(database, young, 1), 'new')
  t.throws(() => checkBase(findServed(database, young), young), {
    code: 'DM_BASE_CHANGED',
    message: /another snapshot/
  })
})

test('a name that went to another snapshot is met by whichever spelling it is asked for', (t) => {
  const [own, any, third] = ['vg0/last', '*/last', 'pool/vg0-last']
  const spelt = (handle: string, identity: string) => servedTarget({ handle, ownHandle: own, identity })
  for (const [first, then] of [
    [own, any],
    [any, own],
    [own, third],
    [any, third]
  ]) {
    const database = openIn(t)
    remember(database, spelt(first, 'lvm:old'), 0)
    const [old, young] = [spelt(then, 'lvm:old'), spelt(then, 'lvm:young')]
    t.is(checkBase(findServed(database, old), old), 'unchanged', `${first}, then ${then}`)
    t.throws(() => checkBase(findServed(database, young), young), { code: 'DM_BASE_CHANGED' }, `${first}, then ${then}`)
  }
})

test('in another pool, `*` meant another group', (t) => {
  const database = openIn(t)
  remember(database, servedTarget({ handle: '*/last', ownHandle: 'vg0/last', identity: 'lvm:old' }), 0)
  const other = servedTarget({
    handle: 'vg1/last',
    ownHandle: 'vg1/last',
    identity: 'lvm:other',
    pool: 'lvm:other pool'
  })
  t.is(checkBase(findServed(database, other), other), 'unrecorded')
})

test('a base is remembered beside the target of the same name, and as nothing more than a base', (t) => {
  const database = openIn(t)
  const snapshot = servedTarget()
  t.is(remember(database, snapshot, 0, 'base'), 'new')
  t.is(remember(database, snapshot, 1, 'base'), 'known')
  t.is(checkBase(findServed(database, snapshot), snapshot), 'unrecorded')
  const second = servedTarget({ identity: 'lvm:second' })
  t.throws(() => checkBase(findServed(database, second), second), {
    code: 'DM_BASE_CHANGED',
    message: /used as a base/
  })
  t.is(remember(database, snapshot, 2), 'new')
  t.is(checkBase(findServed(database, snapshot), snapshot), 'unchanged')
  t.deepEqual(
    findServed(database, snapshot).map(({ role }) => role),
    ['base', 'target']
  )
})

test('a record from before schema 5 is found by the identity that it has, and gets the pool that has one', (t) => {
  const database = openIn(t)
  const place = '/dev/mapper/vg-pool_tmeta thin 5 created at 7'
  remember(
    database,
    servedTarget({ handle: 'vg-pool-tpool/vg-s', identity: place, pool: '/dev/mapper/vg-pool_tmeta' }),
    0
  )
  remember(database, servedTarget({ pool: '/dev/mapper/vg-pool_tmeta' }), 0)
  t.is(findServed(database, { ...servedTarget(), formerIdentity: place }).length, 2)
  t.is(remember(database, servedTarget(), 1), 'known')
  t.is(findServed(database, servedTarget())[0].pool, 'lvm:pool')
})

test('the volume is learned when a source knows it, and kept when it no longer does', (t) => {
  const database = openIn(t)
  remember(database, servedTarget({ volume: undefined }), 0)
  t.is(remember(database, servedTarget({ volume: 'v' }), 1), 'known')
  t.is(remember(database, servedTarget({ volume: undefined }), 2), 'known')
  t.like(findServed(database, servedTarget()), [{ volume: 'v' }])
})

test('what cannot be kept exactly is refused, and nothing of it is kept', (t) => {
  const database = openIn(t)
  for (const change of [
    { sizeBytes: 2 ** 53 },
    { sizeBytes: -1 },
    { mappedBlocks: 0.5 },
    { transactionId: 2n ** 64n },
    { transactionId: -1n },
    { handle: 'a\0b' },
    { handle: 'a/\ud800' },
    { identity: 'x'.repeat(5000) },
    { pool: undefined as unknown as string },
    { thinId: '7' as unknown as number }
  ]) {
    t.throws(
      () => remember(database, servedTarget(change), 0),
      { code: 'DM_ARGUMENT_INVALID' },
      JSON.stringify(Object.keys(change))
    )
  }
  t.deepEqual(servedTable.find(database, {}), [])
  t.notThrows(() => {
    servedTable.verify(database)
  })
})

test('hostile handles are only ever compared', (t) => {
  const database = openIn(t)
  remember(database, servedTarget(), 0)
  for (const handle of ["' OR 1=1 --", '%', '*', 'vg/snap-1\0', '\ud800', 'vg/SNAP-1', 'vg/snap-1 ']) {
    t.deepEqual(findServed(database, { handle, identity: handle }), [])
  }
})

test('retention forgets the oldest of too many, and nothing else', (t) => {
  const database = openIn(t)
  for (let i = 0; i < 10; i++) remember(database, servedTarget({ handle: `vg/${i}`, identity: `${i}` }), i * 100)
  const left = () => servedTable.find(database, {}).map(({ lastServedAt }) => lastServedAt)
  t.is(forgetServed(database, 100), 0)
  t.is(forgetServed(database, 7), 3)
  t.is(forgetServed(database, 7), 0)
  t.deepEqual(left(), [300, 400, 500, 600, 700, 800, 900])
  t.is(forgetServed(database, 2), 5)
  t.deepEqual(left(), [800, 900])
  t.is(forgetServed(database, 0), 2)
  t.deepEqual(left(), [])
})

const someTarget: fc.Arbitrary<ServedTarget> = fc
  .record({ handle: fc.constantFrom('a', 'b', 'c'), identity: fc.constantFrom('1', '2'), mappedBlocks: fc.nat(3) })
  .map(servedTarget)

test('retention never makes an unchanged base of a changed one', (t) => {
  const database = openIn(t)
  fc.assert(
    fc.property(fc.array(fc.tuple(someTarget, fc.nat(10)), { maxLength: 12 }), fc.nat(12), (history, keep) => {
      database.write(() => {
        servedTable.delete(database, servedTable.find(database, {}))
      })
      for (const [target, at] of history) remember(database, target, at * hour)
      const differing = new Set<string>()
      for (const [{ handle, identity, mappedBlocks }] of history) {
        const other = history.some(
          ([each]) => each.handle === handle && each.identity === identity && each.mappedBlocks !== mappedBlocks
        )
        if (other) differing.add(`${handle} ${identity}`)
      }
      while (forgetServed(database, keep) > 0);
      for (const [target] of history) {
        if (!differing.has(`${target.handle} ${target.identity}`)) continue
        const recorded = findServed(database, target).filter(({ handle }) => handle === target.handle)
        let verdict = 'refused'
        try {
          verdict = checkBase(recorded, target)
        } catch {
          // Refused.
        }
        // Forgotten altogether, or still refused.
        t.not(verdict, 'unchanged')
      }
    }),
    { numRuns: 60 }
  )
})

test('many are forgotten in bounded steps', (t) => {
  const database = openIn(t)
  database.write(() => {
    for (let i = 0; i < 10_500; i++) {
      servedTable.insert(database, {
        ...servedTarget({ handle: `vg/${i}`, identity: `${i}` }),
        ...{ role: 'target', variant: 0, firstServedAt: i, lastServedAt: i }
      })
    }
  })
  t.is(forgetServed(database, 100), 10_000)
  t.is(forgetServed(database, 100), 400)
  t.is(forgetServed(database, 100), 0)
  servedTable.verify(database)
})
