/**
 * Lives of a thin pool in which nothing goes wrong, told as what is done to it: the simulated pool and the kernel's go through the same ones
 * (test/kernel/simulated-pools.test.ts), and have to end up alike.
 */
import { Random } from '../../support/random.ts'
import type { ThinPool } from './thin-pool.ts'

export const METADATA_BLOCKS = 700
export const DATA_BLOCKS = 4000
/** Of each device: more than three leaves hold. */
export const VOLUME_BLOCKS = 900
const MOST_DEVICES = 10

export type PoolStep =
  | { readonly kind: 'create' | 'delete'; readonly id: number }
  | { readonly kind: 'snapshot'; readonly id: number; readonly of: number }
  | { readonly kind: 'write'; readonly id: number; readonly blocks: readonly number[] }
  | { readonly kind: 'discard'; readonly id: number; readonly first: number; readonly count: number }
  | { readonly kind: 'reserve' | 'release' | 'transaction' | 'commit' | 'reload' }

/** What is done in the life of a seed. Numbers of devices are used again, as LVM uses them. */
export function poolLifeOf(seed: number): PoolStep[] {
  const random = new Random(seed)
  const steps: PoolStep[] = [{ kind: 'create', id: 0 }]
  const ids = new Set([0])
  let isHeld = false
  const free = () => Array.from({ length: MOST_DEVICES }, (_, id) => id).filter((id) => !ids.has(id))
  for (let length = random.integer(10, 50); steps.length < length;) {
    const id = random.pick([...ids])
    const kind = random.pick([
      ...([
        'write',
        'write',
        'write',
        'write',
        'discard',
        'discard',
        'snapshot',
        'snapshot',
        'create',
        'delete'
      ] as const),
      ...(['slot', 'transaction', 'commit', 'reload'] as const)
    ])
    switch (kind) {
      case 'write':
        steps.push({ kind, id, blocks: blocksOf(random) })
        break
      case 'discard': {
        const first = random.integer(0, VOLUME_BLOCKS - 1)
        const count = Math.min(random.pick([1, 3, 40, 300, VOLUME_BLOCKS]), VOLUME_BLOCKS - first)
        steps.push({ kind, id, first, count })
        break
      }
      case 'create':
      case 'snapshot': {
        if (ids.size === MOST_DEVICES) break
        const next = random.pick(free())
        ids.add(next)
        steps.push(kind === 'create' ? { kind, id: next } : { kind, id: next, of: id })
        break
      }
      case 'delete':
        if (ids.size === 1) break
        ids.delete(id)
        steps.push({ kind, id })
        break
      case 'slot':
        steps.push({ kind: isHeld ? 'release' : 'reserve' })
        isHeld = !isHeld
        break
      case 'transaction':
      case 'commit':
      case 'reload':
        steps.push({ kind })
    }
  }
  return [...steps, { kind: 'commit' }]
}

function blocksOf(random: Random): number[] {
  const first = random.integer(0, VOLUME_BLOCKS - 1)
  const [length, stride] = [random.pick([1, 3, 40, 300]), random.pick([1, 1, 7])]
  return Array.from({ length }, (_, i) => (first + i * stride) % VOLUME_BLOCKS)
}

/** Whether the kernel commits by itself at the end of a step: with each message, and when a pool goes. */
export function commits({ kind }: PoolStep): boolean {
  return kind !== 'write' && kind !== 'discard'
}

/** Does a step to a simulated pool, but for `reload`. @param version of the first block that is written; one more for each other */
export function doTo(pool: ThinPool, step: PoolStep, version: number): void {
  switch (step.kind) {
    case 'create':
      pool.createThin(step.id)
      break
    case 'snapshot':
      pool.createSnap(step.id, step.of)
      break
    case 'delete':
      pool.delete(step.id)
      break
    case 'write':
      step.blocks.forEach((block, i) => {
        if (pool.write(step.id, block, version + i) !== 'written') throw new Error('the simulated pool is full')
      })
      break
    case 'discard':
      pool.discard(step.id, step.first, step.count)
      break
    case 'reserve':
      pool.reserve()
      break
    case 'release':
      pool.release()
      break
    case 'transaction':
      pool.setTransactionId(pool.transactionId, pool.transactionId + 1)
      break
    case 'commit':
    case 'reload':
      break
  }
  if (commits(step)) pool.commitNow()
}
