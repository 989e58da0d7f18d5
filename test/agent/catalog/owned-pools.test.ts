import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { lineage } from '../../../src/agent/catalog/admission.ts'
import { catalogCalls } from '../../../src/agent/catalog/calls.ts'
import { openDatabase } from '../../../src/agent/catalog/database.ts'
import type { OwnedThin } from '../../../src/agent/catalog/owned-pools.ts'
import { newPool, testFolder } from './examples.ts'

function open(t: ExecutionContext) {
  const database = openDatabase(join(testFolder(t), 'catalog.db'))
  t.teardown(() => {
    database.close()
  })
  const calls = catalogCalls(database)
  return {
    ...calls,
    database,
    /** A pool with a volume `v` (thin id 0) and its snapshot `s` (thin id 1), at transaction 2. */
    example() {
      calls.ownedPools.begin({ kind: 'create-pool', pool: newPool('a') }, 1)
      calls.ownedPools.complete('a')
      calls.ownedPools.begin({ kind: 'create-volume', ...volume }, 2)
      calls.ownedPools.complete('a', { creationTime: 0 })
      const origin = calls.ownedPools.findThinByName('a', 'v')!
      calls.ownedPools.begin({ kind: 'create-snapshot', ...snapshot, origin: origin.id, suspends: 'a-v' }, 3)
      calls.ownedPools.complete('a', { creationTime: 1 })
      return { v: origin, s: calls.ownedPools.findThinByName('a', 's')! }
    }
  }
}

const volume = { pool: 'a', name: 'v', thinId: 0, dmName: 'a-v', sizeBytes: 2 ** 40, transactionId: 0n }
const snapshot = { pool: 'a', name: 's', thinId: 1, dmName: 'a-s', sizeBytes: 2 ** 40, transactionId: 1n }

test('a pool, a volume and a snapshot become facts when they are complete', (t) => {
  const catalog = open(t)
  catalog.ownedPools.begin({ kind: 'create-pool', pool: newPool('a') }, 1)
  t.deepEqual(catalog.ownedPools.view(), {
    pools: [{ ...newPool('a'), createdAt: 1 }],
    thins: [],
    intents: [{ kind: 'create-pool', pool: 'a' }]
  })
  catalog.ownedPools.complete('a')

  const begun = catalog.ownedPools.begin({ kind: 'create-volume', ...volume }, 2)
  t.deepEqual(catalog.ownedPools.view().intents, [begun])
  t.deepEqual(catalog.ownedPools.view().thins, [])
  t.is(catalog.ownedPools.findThinByName('a', 'v'), undefined)
  catalog.ownedPools.complete('a', { creationTime: 0 })
  const v = catalog.ownedPools.findThinByName('a', 'v')!
  t.deepEqual(v, {
    ...volume,
    ...{ id: v.id, kind: 'volume', volume: v.id, origin: undefined, creationTime: 0, createdAt: 2 }
  })
  t.is('thin' in begun ? begun.thin : undefined, v.id)

  catalog.ownedPools.begin({ kind: 'create-snapshot', ...snapshot, origin: v.id, suspends: undefined }, 3)
  t.deepEqual(catalog.ownedPools.view().intents, [
    {
      kind: 'create-snapshot',
      ...snapshot,
      thin: (catalog.ownedPools.view().intents[0] as { thin: string }).thin,
      origin: v.id,
      suspends: undefined
    }
  ])
  catalog.ownedPools.complete('a', { creationTime: 1 })
  t.like(catalog.ownedPools.findThinByName('a', 's'), {
    kind: 'snapshot',
    volume: v.id,
    origin: v.id,
    creationTime: 1,
    transactionId: 1n
  })
  t.is(catalog.ownedPools.view().pools[0].transactionId, 2n)
  t.deepEqual(catalog.ownedPools.view().intents, [])
})

test('a snapshot of a snapshot is of the same volume, also after both are gone', (t) => {
  const catalog = open(t)
  const { v, s } = catalog.example()
  catalog.ownedPools.begin(
    {
      kind: 'create-snapshot',
      ...snapshot,
      name: 's2',
      thinId: 2,
      transactionId: 2n,
      origin: s.id,
      suspends: undefined
    },
    4
  )
  catalog.ownedPools.complete('a', { creationTime: 2 })
  for (const [index, { id }] of [s, v].entries()) {
    catalog.ownedPools.begin({ kind: 'delete-thin', pool: 'a', thin: id, transactionId: BigInt(3 + index) }, 5)
    catalog.ownedPools.complete('a')
  }
  t.deepEqual(
    catalog.ownedPools.view().thins.map(({ name, volume, origin }) => [name, volume, origin]),
    [['s2', v.id, s.id]]
  )
  t.is(catalog.ownedPools.view().pools[0].transactionId, 5n)
})

test('lineage of owned snapshots', (t) => {
  const catalog = open(t)
  const { v, s } = catalog.example()
  const member = ({ id, creationTime }: OwnedThin) => ({ identity: id, creationTime })
  t.is(lineage(catalog.database, member(v), member(s)), 'before')
  t.is(lineage(catalog.database, member(s), member(v)), 'after')
  t.is(lineage(catalog.database, member(s), { identity: 'thin:none', creationTime: 0 }), 'unknown')
})

test('what is rolled back was never there', (t) => {
  const catalog = open(t)
  const { v } = catalog.example()
  const before = catalog.ownedPools.view()
  for (const intent of [
    { kind: 'create-volume', ...volume, name: 'w', thinId: 7, transactionId: 2n },
    { kind: 'create-snapshot', ...snapshot, name: 'w', thinId: 7, transactionId: 2n, origin: v.id, suspends: 'a-v' },
    { kind: 'delete-thin', pool: 'a', thin: v.id, transactionId: 2n },
    { kind: 'resize-thin', pool: 'a', thin: v.id, sizeBytes: 5 }
  ] as const) {
    catalog.ownedPools.begin(intent, 9)
    catalog.ownedPools.rollBack('a')
    t.deepEqual(catalog.ownedPools.view(), before, intent.kind)
  }
  catalog.ownedPools.begin({ kind: 'create-pool', pool: newPool('b') }, 9)
  catalog.ownedPools.rollBack('b')
  t.deepEqual(catalog.ownedPools.view(), before)
})

test('resizing and deleting', (t) => {
  const catalog = open(t)
  const { v, s } = catalog.example()
  catalog.ownedPools.begin({ kind: 'resize-thin', pool: 'a', thin: v.id, sizeBytes: 2 ** 41 }, 4)
  t.is(catalog.ownedPools.findThin(v.id)?.sizeBytes, 2 ** 40)
  catalog.ownedPools.complete('a')
  t.is(catalog.ownedPools.findThin(v.id)?.sizeBytes, 2 ** 41)
  t.throws(() => catalog.ownedPools.begin({ kind: 'delete-pool', pool: 'a' }, 5), {
    code: 'DM_DEVICE_BUSY',
    message: /still has 2/
  })
  for (const [index, { id }] of [v, s].entries()) {
    catalog.ownedPools.begin({ kind: 'delete-thin', pool: 'a', thin: id, transactionId: BigInt(2 + index) }, 5)
    catalog.ownedPools.complete('a')
  }
  catalog.ownedPools.begin({ kind: 'delete-pool', pool: 'a' }, 6)
  catalog.ownedPools.complete('a')
  t.deepEqual(catalog.ownedPools.view(), { pools: [], thins: [], intents: [] })
})

test('one thing at a time in a pool, and others are free', (t) => {
  const catalog = open(t)
  const { v } = catalog.example()
  catalog.ownedPools.begin({ kind: 'resize-thin', pool: 'a', thin: v.id, sizeBytes: 1 }, 4)
  t.throws(() => catalog.ownedPools.begin({ kind: 'resize-thin', pool: 'a', thin: v.id, sizeBytes: 2 }, 5), {
    code: 'DM_DEVICE_BUSY',
    message: /resize-thin/
  })
  t.throws(
    () => {
      catalog.ownedPools.forgetThin(v.id)
    },
    { code: 'DM_DEVICE_BUSY' }
  )
  t.notThrows(() => catalog.ownedPools.begin({ kind: 'create-pool', pool: newPool('b') }, 5))
  catalog.ownedPools.rollBack('a')
  t.notThrows(() => catalog.ownedPools.begin({ kind: 'delete-thin', pool: 'a', thin: v.id, transactionId: 2n }, 6))
})

test('what is taken, unknown or impossible is refused, and nothing is left of it', (t) => {
  const catalog = open(t)
  const { v, s } = catalog.example()
  catalog.ownedPools.begin({ kind: 'create-pool', pool: newPool('b') }, 5)
  catalog.ownedPools.complete('b')
  const before = catalog.ownedPools.view()
  const next = { ...volume, transactionId: 2n }
  for (const [intent, code] of [
    [{ kind: 'create-volume', ...next, thinId: 7 }, 'DM_NAME_TAKEN'],
    [{ kind: 'create-volume', ...next, name: 'w', thinId: 1 }, 'DM_DEVICE_BUSY'],
    [{ kind: 'create-volume', ...next, name: 'w', thinId: 7, pool: 'none' }, 'DM_NO_SUCH_DEVICE'],
    [{ kind: 'create-volume', ...next, name: 'w', thinId: 7, transactionId: 3n }, 'DM_CATALOG_DISAGREES'],
    [{ kind: 'create-volume', ...next, name: 'w', thinId: 2 ** 24 }, 'DM_ARGUMENT_INVALID'],
    [{ kind: 'create-volume', ...next, name: 'w', thinId: -1 }, 'DM_ARGUMENT_INVALID'],
    [{ kind: 'create-volume', ...next, name: 'w', thinId: 7, sizeBytes: 2 ** 53 }, 'DM_ARGUMENT_INVALID'],
    [{ kind: 'create-volume', ...next, name: '../w', thinId: 7 }, 'DM_ARGUMENT_INVALID'],
    [{ kind: 'create-volume', ...next, name: '..', thinId: 7 }, 'DM_ARGUMENT_INVALID'],
    [
      { kind: 'create-snapshot', ...next, name: 'w', thinId: 7, origin: 'none', suspends: undefined },
      'DM_NO_SUCH_DEVICE'
    ],
    [
      { kind: 'create-snapshot', ...next, pool: 'b', transactionId: 0n, origin: v.id, suspends: undefined },
      'DM_INTERNAL'
    ],
    [{ kind: 'delete-thin', pool: 'a', thin: 'none', transactionId: 2n }, 'DM_NO_SUCH_DEVICE'],
    [{ kind: 'delete-thin', pool: 'b', thin: s.id, transactionId: 0n }, 'DM_INTERNAL'],
    [{ kind: 'delete-thin', pool: 'a', thin: s.id, transactionId: 1n }, 'DM_CATALOG_DISAGREES'],
    [{ kind: 'create-pool', pool: newPool('a') }, 'DM_NAME_TAKEN'],
    [{ kind: 'create-pool', pool: newPool('c', { dmName: 'a-pool' }) }, 'DM_NAME_TAKEN'],
    [{ kind: 'create-pool', pool: newPool('c/d') }, 'DM_ARGUMENT_INVALID'],
    [{ kind: 'delete-pool', pool: 'none' }, 'DM_NO_SUCH_DEVICE']
  ] as const) {
    t.throws(() => catalog.ownedPools.begin(intent, 9), { code }, `${intent.kind} ${code}`)
    t.deepEqual(catalog.ownedPools.view(), before)
  }
  t.throws(
    () => {
      catalog.ownedPools.complete('a')
    },
    { code: 'DM_INTERNAL' }
  )
  catalog.ownedPools.begin({ kind: 'create-volume', ...next, name: 'w', thinId: 7 }, 9)
  t.throws(
    () => {
      catalog.ownedPools.complete('a')
    },
    { code: 'DM_INTERNAL', message: /creation time/ }
  )
  t.is(catalog.ownedPools.view().intents.length, 1, 'still to be settled')
})

test("on somebody's word: adopting, forgetting, accepting a transaction id", (t) => {
  const catalog = open(t)
  const { v } = catalog.example()
  const thin = {
    pool: 'a',
    name: 'found',
    thinId: 9,
    dmName: 'a-found',
    sizeBytes: 5,
    creationTime: 4,
    transactionId: 3n
  }
  const adopted = catalog.ownedPools.adoptThin({ ...thin, origin: v.id }, 7)
  t.like(adopted, { ...thin, kind: 'snapshot', volume: v.id, origin: v.id, createdAt: 7 })
  t.deepEqual(catalog.ownedPools.findThin(adopted.id), adopted)
  t.throws(() => catalog.ownedPools.adoptThin({ ...thin, name: 'again', origin: undefined }, 8), {
    code: 'DM_DEVICE_BUSY'
  })
  catalog.ownedPools.forgetThin(adopted.id)
  t.is(catalog.ownedPools.findThin(adopted.id), undefined)
  t.throws(
    () => {
      catalog.ownedPools.forgetThin(adopted.id)
    },
    { code: 'DM_NO_SUCH_DEVICE' }
  )

  catalog.ownedPools.begin({ kind: 'delete-thin', pool: 'a', thin: v.id, transactionId: 2n }, 9)
  catalog.ownedPools.acceptTransactionId('a', 2n ** 64n - 1n)
  t.is(catalog.ownedPools.view().pools[0].transactionId, 2n ** 64n - 1n)
  t.deepEqual(catalog.ownedPools.view().intents, [])
  t.is(catalog.ownedPools.findThin(v.id)?.id, v.id)
})
