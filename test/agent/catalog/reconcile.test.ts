import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import fc from 'fast-check'
import { catalogCalls, type CatalogCalls } from '../../../src/agent/catalog/calls.ts'
import { type CatalogDatabase, openDatabase } from '../../../src/agent/catalog/database.ts'
import type { CatalogView, Intent, OwnedPool, OwnedThin } from '../../../src/agent/catalog/owned-pools.ts'
import {
  type KernelDevice,
  type KernelThin,
  type KernelView,
  reconcile,
  type Step
} from '../../../src/agent/catalog/reconcile.ts'
import { newPool } from './examples.ts'

const pool: OwnedPool = { ...newPool('a'), transactionId: 5n, createdAt: 0 }
const thin = (thinId: number, changes: Partial<OwnedThin> = {}): OwnedThin => ({
  ...{ id: `thin:${thinId}`, pool: 'a', name: `t${thinId}`, kind: 'volume', thinId, dmName: `a-t${thinId}` },
  ...{ sizeBytes: 1000, volume: `thin:${thinId}`, origin: undefined },
  ...{ creationTime: thinId, transactionId: BigInt(thinId), createdAt: 0 },
  ...changes
})
const there = ({ creationTime, transactionId }: OwnedThin): KernelThin => ({ creationTime, transactionId })

function books(thins: OwnedThin[], intent?: Intent): CatalogView {
  return { pools: [pool], thins, intents: intent === undefined ? [] : [intent] }
}

function kernel(
  transactionId: bigint,
  thins: Record<number, KernelThin>,
  devices: Partial<KernelDevice>[] = []
): KernelView {
  const entries = Object.entries(thins).map(([id, each]) => [Number(id), each] as const)
  return {
    pools: [{ dmName: 'a-pool', transactionId, thins: new Map(entries) }],
    devices: devices.map((each) => ({
      ...{ dmName: 'a-t1', pool: 'a-pool', thinId: 1, sizeBytes: 1000, suspended: false },
      ...each
    }))
  }
}

const summary = ({ steps, findings }: ReturnType<typeof reconcile>) => [
  ...steps.map((each) => ('dmName' in each && each.step === 'resume' ? `resume ${each.dmName}` : each.step)),
  ...findings.map(({ kind }) => kind)
]

const one = thin(1)
const creating = {
  pool: 'a',
  thin: 'thin:9',
  name: 't9',
  thinId: 9,
  dmName: 'a-t9',
  sizeBytes: 1000,
  transactionId: 5n
}
const create: Intent = { kind: 'create-volume', ...creating }
const snapshot: Intent = { kind: 'create-snapshot', ...creating, origin: 'thin:1', suspends: 'a-t1' }
const remove: Intent = { kind: 'delete-thin', pool: 'a', thin: 'thin:1', transactionId: 5n }
const created: KernelThin = { creationTime: 7, transactionId: 5n }
const strange: KernelThin = { creationTime: 7, transactionId: 2n }
const grow: Intent = { kind: 'resize-thin', pool: 'a', thin: 'thin:1', sizeBytes: 2000 }
const shrink: Intent = { kind: 'resize-thin', pool: 'a', thin: 'thin:1', sizeBytes: 500 }

for (const [what, catalog, shown, expected] of [
  ['nothing to do', books([one]), kernel(5n, { 1: there(one) }), []],

  ['create: not begun', books([one], create), kernel(5n, { 1: there(one) }), ['roll-back']],
  [
    'create: half done',
    books([one], create),
    kernel(5n, { 1: there(one), 9: created }),
    ['set-transaction-id', 'complete']
  ],
  ['create: done', books([one], create), kernel(6n, { 1: there(one), 9: created }), ['complete']],
  ['create: moved, and not there', books([one], create), kernel(6n, { 1: there(one) }), ['intent-contradicted']],
  [
    'create: another program has moved on',
    books([one], create),
    kernel(7n, { 9: created, 1: there(one) }),
    ['intent-contradicted']
  ],
  [
    'create: an older device has the id',
    books([one], create),
    kernel(5n, { 1: there(one), 9: strange }),
    ['intent-contradicted']
  ],

  ['snapshot: not begun', books([one], snapshot), kernel(5n, { 1: there(one) }, [{}]), ['roll-back']],
  [
    'snapshot: origin suspended',
    books([one], snapshot),
    kernel(5n, { 1: there(one) }, [{ suspended: true }]),
    ['resume a-t1', 'roll-back']
  ],
  [
    'snapshot: half done',
    books([one], snapshot),
    kernel(5n, { 1: there(one), 9: created }, [{ suspended: true }]),
    ['resume a-t1', 'set-transaction-id', 'complete']
  ],
  [
    'snapshot: done',
    books([one], snapshot),
    kernel(6n, { 1: there(one), 9: created }, [{ suspended: true }]),
    ['resume a-t1', 'complete']
  ],
  [
    'snapshot: contradicted, and nothing waits for that',
    books([one], snapshot),
    kernel(9n, { 1: there(one) }, [{ suspended: true }]),
    ['resume a-t1', 'intent-contradicted']
  ],
  ['another program has suspended something', books([one]), kernel(5n, { 1: there(one) }, [{ suspended: true }]), []],

  ['delete: not begun', books([one], remove), kernel(5n, { 1: there(one) }), ['roll-back']],
  ['delete: half done', books([one], remove), kernel(5n, {}), ['set-transaction-id', 'complete']],
  ['delete: done', books([one], remove), kernel(6n, {}), ['complete']],
  ['delete: moved, and still there', books([one], remove), kernel(6n, { 1: there(one) }), ['intent-contradicted']],
  ['delete: another has its id', books([one], remove), kernel(5n, { 1: created }), ['intent-contradicted']],

  ['grow: not done', books([one], grow), kernel(5n, { 1: there(one) }, [{ sizeBytes: 1000 }]), ['roll-back']],
  ['grow: done', books([one], grow), kernel(5n, { 1: there(one) }, [{ sizeBytes: 2000 }]), ['complete']],
  ['grow: not active', books([one], grow), kernel(5n, { 1: there(one) }), ['complete']],
  ['shrink: not active', books([one], shrink), kernel(5n, { 1: there(one) }), ['roll-back']],
  ['shrink: done', books([one], shrink), kernel(5n, { 1: there(one) }, [{ sizeBytes: 500 }]), ['complete']],
  [
    'grow: another size altogether',
    books([one], grow),
    kernel(5n, { 1: there(one) }, [{ sizeBytes: 3000 }]),
    ['roll-back', 'size-differs']
  ],

  ['create pool: not done', books([], { kind: 'create-pool', pool: 'a' }), { pools: [], devices: [] }, ['roll-back']],
  ['create pool: done', books([], { kind: 'create-pool', pool: 'a' }), kernel(0n, {}), ['complete']],
  ['delete pool: not done', books([], { kind: 'delete-pool', pool: 'a' }), kernel(5n, {}), ['roll-back']],
  ['delete pool: done', books([], { kind: 'delete-pool', pool: 'a' }), { pools: [], devices: [] }, ['complete']],

  ['pool not active', books([one]), { pools: [], devices: [] }, ['pool-inactive']],
  [
    'pool not active, something begun',
    books([one], create),
    { pools: [], devices: [] },
    ['pool-inactive', 'intent-waits']
  ],
  [
    'pool unreadable',
    books([one], create),
    { pools: [{ dmName: 'a-pool', transactionId: 5n, thins: undefined }], devices: [] },
    ['pool-unreadable', 'intent-waits']
  ],
  ['a pool of nobody', { pools: [], thins: [], intents: [] }, kernel(1n, { 4: created }), ['pool-unknown']],
  ['a thin is gone', books([one]), kernel(5n, {}), ['thin-missing']],
  ['a thin of nobody', books([one]), kernel(5n, { 1: there(one), 4: created }), ['thin-unknown']],
  ['another thin with its id', books([one]), kernel(5n, { 1: created }), ['thin-replaced']],
  ['another transaction', books([one]), kernel(6n, { 1: there(one) }), ['transaction-differs']],
  ['another size', books([one]), kernel(5n, { 1: there(one) }, [{ sizeBytes: 2 }]), ['size-differs']],
  [
    'everything else is compared all the same',
    books([one, thin(2)], create),
    kernel(6n, { 9: created, 4: strange, 2: created }),
    ['complete', 'thin-missing', 'thin-replaced', 'thin-unknown']
  ]
] as const) {
  test(`${what}: ${expected.join(', ') || 'nothing'}`, (t) => {
    const result = reconcile(catalog, shown)
    t.deepEqual(summary(result), [...expected])
    for (const { because } of result.steps) t.true(because.length > 0)
    for (const { what, remedy } of result.findings) t.true(what.length > 0 && remedy.length > 0)
  })
}

test('a completed creation has the creation time that the kernel shows', (t) => {
  const { steps } = reconcile(books([one], snapshot), kernel(5n, { 1: there(one), 9: created }))
  t.like(steps, [
    { step: 'set-transaction-id', dmName: 'a-pool', from: 5n, to: 6n },
    { step: 'complete', pool: 'a', creationTime: 7 }
  ])
})

// A whole pool, killed at any moment

/** A pool as the kernel has it, for as much as reconciling looks at. */
class Pool {
  active = true
  transactionId = 0n
  clock = 0
  thins = new Map<number, KernelThin>()
  devices = new Map<number, KernelDevice>()

  create(thinId: number, ticks: boolean): void {
    if (this.thins.has(thinId)) throw new Error(`thin ${thinId} exists`)
    if (ticks) this.clock++
    this.thins.set(thinId, { creationTime: this.clock, transactionId: this.transactionId })
  }

  setTransactionId(from: bigint, to: bigint): void {
    if (this.transactionId !== from) throw new Error('mismatched transaction id')
    this.transactionId = to
  }

  suspend(dmName: string | undefined, suspended: boolean): void {
    for (const [id, each] of this.devices) if (each.dmName === dmName) this.devices.set(id, { ...each, suspended })
  }

  get view(): KernelView {
    if (!this.active) return { pools: [], devices: [] }
    return {
      pools: [{ dmName: 'a-pool', transactionId: this.transactionId, thins: new Map(this.thins) }],
      devices: [...this.devices.values()]
    }
  }
}

/** What happens to it: `at` picks the thin, `steps` is after how many of its steps the agent is killed. */
const event = fc.record({
  what: fc.constantFrom('volume', 'snapshot', 'delete', 'resize', 'activate', 'deactivate', 'reboot'),
  at: fc.nat(20),
  size: fc.integer({ min: 1, max: 4 }),
  steps: fc.nat(7),
  settled: fc.nat(3)
})
type Event = typeof event extends fc.Arbitrary<infer E> ? E : never

/** The steps that an event consists of, as the agent takes them: each is one call to the catalog or the kernel. */
function stepsOf({ what, at, size }: Event, calls: CatalogCalls, kernel: Pool): (() => void)[] {
  const { thins, pools } = calls.ownedPools.view()
  const transactionId = pools[0].transactionId
  const chosen = thins.length === 0 ? undefined : thins[at % thins.length]
  const ids = [...kernel.thins.keys(), ...thins.map(({ thinId }) => thinId)]
  // Ids are used again, as LVM does.
  const thinId = Math.max(-1, ...ids) + 1
  const fresh = {
    pool: 'a',
    name: `t${thinId}-${transactionId}`,
    thinId,
    dmName: `a-${thinId}`,
    sizeBytes: size * 1000,
    transactionId
  }
  const move = () => {
    kernel.setTransactionId(transactionId, transactionId + 1n)
  }
  const created = () => {
    calls.ownedPools.complete('a', { creationTime: kernel.thins.get(thinId)?.creationTime })
  }
  switch (what) {
    case 'volume':
      return [
        () => calls.ownedPools.begin({ kind: 'create-volume', ...fresh }, 0),
        () => {
          kernel.create(thinId, false)
        },
        move,
        created
      ]
    case 'snapshot': {
      if (chosen === undefined) return []
      const suspends = kernel.devices.get(chosen.thinId)?.dmName
      return [
        () => calls.ownedPools.begin({ kind: 'create-snapshot', ...fresh, origin: chosen.id, suspends }, 0),
        () => {
          kernel.suspend(suspends, true)
        },
        () => {
          kernel.create(thinId, true)
        },
        move,
        () => {
          kernel.suspend(suspends, false)
        },
        created
      ]
    }
    case 'delete':
      if (chosen === undefined || kernel.devices.has(chosen.thinId)) return []
      return [
        () => calls.ownedPools.begin({ kind: 'delete-thin', pool: 'a', thin: chosen.id, transactionId }, 0),
        () => kernel.thins.delete(chosen.thinId),
        move,
        () => {
          calls.ownedPools.complete('a')
        }
      ]
    case 'resize':
      if (chosen === undefined) return []
      return [
        () => calls.ownedPools.begin({ kind: 'resize-thin', pool: 'a', thin: chosen.id, sizeBytes: size * 1000 }, 0),
        () => {
          const device = kernel.devices.get(chosen.thinId)
          if (device) kernel.devices.set(chosen.thinId, { ...device, sizeBytes: size * 1000 })
        },
        () => {
          calls.ownedPools.complete('a')
        }
      ]
    case 'activate':
      if (chosen === undefined) return []
      return [
        () =>
          kernel.devices.set(chosen.thinId, {
            ...{ dmName: chosen.dmName, pool: 'a-pool', thinId: chosen.thinId },
            ...{ sizeBytes: chosen.sizeBytes, suspended: false }
          })
      ]
    case 'deactivate':
      return [() => kernel.devices.delete(chosen?.thinId ?? -1)]
    case 'reboot':
      return []
  }
}

function carryOut(step: Step, calls: CatalogCalls, kernel: Pool): void {
  switch (step.step) {
    case 'resume':
      kernel.suspend(step.dmName, false)
      return
    case 'set-transaction-id':
      kernel.setTransactionId(step.from, step.to)
      return
    case 'complete':
      calls.ownedPools.complete(step.pool, { creationTime: step.creationTime })
      return
    case 'roll-back':
      calls.ownedPools.rollBack(step.pool)
  }
}

/** Syncing is not what is tried here: in memory, where there is a file system for that. */
function memoryFolder(): string {
  return mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'deltamapper-reconcile-'))
}

test('killed at any moment of anything, and again while settling: catalog and kernel agree, and nothing acknowledged is lost', (t) => {
  const folder = memoryFolder()
  t.teardown(() => {
    rmSync(folder, { recursive: true })
  })
  let killed = 0
  fc.assert(
    fc.property(fc.array(event, { minLength: 1, maxLength: 12 }), (events) => {
      rmSync(join(folder, 'catalog.db'), { force: true })
      const database: CatalogDatabase = openDatabase(join(folder, 'catalog.db'))
      try {
        const calls = catalogCalls(database)
        const kernel = new Pool()
        calls.ownedPools.begin({ kind: 'create-pool', pool: newPool('a') }, 0)
        calls.ownedPools.complete('a')
        for (const each of events) {
          const before = calls.ownedPools.view()
          const steps = stepsOf(each, calls, kernel)
          const done = Math.min(each.steps, steps.length)
          for (const step of steps.slice(0, done)) step()
          if (done < steps.length) killed++
          if (each.what === 'reboot') {
            kernel.devices.clear()
            kernel.active = false
            // Nothing is settled while the pool is not there, and nothing is lost.
            const { steps } = reconcile(calls.ownedPools.view(), kernel.view)
            t.deepEqual(steps, [])
            kernel.active = true
          }

          // Started again; killed while settling, and started once more.
          const first = reconcile(calls.ownedPools.view(), kernel.view)
          for (const step of first.steps.slice(0, each.settled)) carryOut(step, calls, kernel)
          for (const step of reconcile(calls.ownedPools.view(), kernel.view).steps) carryOut(step, calls, kernel)

          t.deepEqual(reconcile(calls.ownedPools.view(), kernel.view), { steps: [], findings: [] })
          const { thins, intents, pools } = calls.ownedPools.view()
          t.deepEqual(intents, [])
          t.is(pools[0].transactionId, kernel.transactionId)
          const byId = (entries: [number, KernelThin][]) => entries.sort(([one], [other]) => one - other)
          t.deepEqual(byId(thins.map((each) => [each.thinId, there(each)])), byId([...kernel.thins]))
          t.false([...kernel.devices.values()].some(({ suspended }) => suspended))
          // Whole steps only: what was not begun is as it was, what was acknowledged is there.
          const completed = steps.length > 0 && done === steps.length
          if (['volume', 'snapshot'].includes(each.what) && steps.length > 0) {
            if (completed) t.is(thins.length, before.thins.length + 1)
            for (const old of before.thins) t.true(thins.some(({ id }) => id === old.id))
          }
          if (each.what === 'delete' && completed) t.is(thins.length, before.thins.length - 1)
          if (done === 0) t.deepEqual(calls.ownedPools.view(), before)
        }
        return true
      } finally {
        database.close()
      }
    }),
    { numRuns: 60 }
  )
  t.true(killed > 20)
})

test('every difference is reported, whoever made it', (t) => {
  const state = fc.uniqueArray(fc.record({ thinId: fc.nat(6), generation: fc.nat(1), sizeBytes: fc.nat(2) }), {
    selector: ({ thinId }) => thinId,
    maxLength: 6
  })
  fc.assert(
    fc.property(state, state, fc.bigInt({ min: 5n, max: 6n }), (catalogHas, kernelHas, transactionId) => {
      const catalog = books(
        catalogHas.map(({ thinId, generation, sizeBytes }) => thin(thinId, { creationTime: generation, sizeBytes }))
      )
      const shown = kernel(
        transactionId,
        Object.fromEntries(
          kernelHas.map(({ thinId, generation }) => [
            thinId,
            { creationTime: generation, transactionId: BigInt(thinId) }
          ])
        ),
        kernelHas.map(({ thinId, sizeBytes }) => ({ dmName: `a-t${thinId}`, thinId, sizeBytes }))
      )
      const { steps, findings } = reconcile(catalog, shown)
      const expected = new Set<string>()
      if (transactionId !== pool.transactionId) expected.add('transaction-differs undefined')
      for (const { thinId, generation, sizeBytes } of catalogHas) {
        const other = kernelHas.find((each) => each.thinId === thinId)
        if (other === undefined) expected.add(`thin-missing ${thinId}`)
        else if (other.generation !== generation) expected.add(`thin-replaced ${thinId}`)
        else if (other.sizeBytes !== sizeBytes) expected.add(`size-differs ${thinId}`)
      }
      for (const { thinId } of kernelHas) {
        if (!catalogHas.some((each) => each.thinId === thinId)) expected.add(`thin-unknown ${thinId}`)
      }
      t.deepEqual(steps, [])
      t.deepEqual(findings.map(({ kind, thinId }) => `${kind} ${thinId}`).sort(), [...expected].sort())
    })
  )
})
