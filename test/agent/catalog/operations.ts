/**
 * An endless, seeded sequence of calls to a catalog: what an agent does in its life, refusals included. The same seed gives the same
 * sequence, so that two processes can agree on what should be there after so many of them.
 */
import type { Catalog } from '../../../src/agent/catalog/catalog.ts'
import { Random } from '../../support/random.ts'
import { newPool, servedTarget } from './examples.ts'

export type Operation = (catalog: Catalog) => Promise<unknown>

export const handles = Array.from({ length: 12 }, (_, index) => `vg/s${index}`)

/** Each operation is one write to the catalog (a refusal writes nothing), whatever it has to look up before. */
export function* operations(seed: number): Generator<Operation, never> {
  const random = new Random(seed)
  let time = 0
  const transactions = new Map<string, bigint>()
  const pending = new Set<string>()
  yield async (catalog) => catalog.ownedPools.begin({ kind: 'create-pool', pool: newPool('a') }, 0)
  yield async (catalog) => catalog.ownedPools.complete('a')
  for (;;) {
    const at = (time += 10_000_000)
    const pool = 'a'
    const transactionId = transactions.get(pool) ?? 0n
    const what = random.pick(['serve', 'serve', 'serve', 'forget', 'pool', 'pool', 'pool', 'lease'] as const)
    const [number, mappedBlocks] = [random.integer(0, handles.length - 1), random.integer(0, 1)]
    if (what === 'serve') {
      const target = servedTarget({ handle: handles[number], identity: `lvm:${number % 5}`, mappedBlocks })
      yield async (catalog) => catalog.served.remember(target, at)
    } else if (what === 'forget') yield async (catalog) => catalog.served.forget(8)
    else if (what === 'lease') {
      const device = `dm:${number % 3}`
      yield async (catalog) => catalog.leases.begin({ device, purpose: `lease ${at}`, factsBefore: 'before' }, at)
      yield async (catalog) => catalog.leases.confirm(device, { heldRoot: number, factsHeld: 'held' })
      if (random.chance(0.5)) {
        yield async (catalog) => catalog.leases.beginRelease(device)
        yield async (catalog) => catalog.leases.clear(device)
      }
    } else if (pending.has(pool)) {
      pending.delete(pool)
      if (random.chance(0.7)) {
        transactions.set(pool, transactionId + 1n)
        yield async (catalog) => catalog.ownedPools.complete(pool, { creationTime: time })
      } else yield async (catalog) => catalog.ownedPools.rollBack(pool)
    } else {
      pending.add(pool)
      const thinId = Number(transactionId)
      const fresh = {
        pool,
        name: `t${thinId}`,
        thinId,
        dmName: `a-t${thinId}`,
        sizeBytes: number * 65536,
        transactionId
      }
      const chosen = random.integer(0, 1000)
      const kind = random.pick(['volume', 'snapshot', 'delete'] as const)
      yield async (catalog) => {
        const { thins } = await catalog.ownedPools.view()
        // Their ids are random, their order must not be.
        const inOrder = thins.toSorted((one, other) => one.thinId - other.thinId)
        const origin = inOrder.length > 0 ? inOrder[chosen % inOrder.length] : undefined
        if (kind === 'volume' || origin === undefined)
          return catalog.ownedPools.begin({ kind: 'create-volume', ...fresh }, at)
        if (kind === 'delete')
          return catalog.ownedPools.begin({ kind: 'delete-thin', pool, thin: origin.id, transactionId }, at)
        return catalog.ownedPools.begin(
          { kind: 'create-snapshot', ...fresh, origin: origin.id, suspends: origin.dmName },
          at
        )
      }
    }
  }
}

/** Carries out an operation; being refused is an outcome like any other. */
export async function carryOut(operation: Operation, catalog: Catalog): Promise<void> {
  try {
    await operation(catalog)
  } catch (error) {
    const { code } = error as { code?: string }
    if (code === undefined || code.startsWith('DM_CATALOG_')) throw error
  }
}
