/**
 * The snapshots that an agent serves, as its examination of the node has them: by what each is asked for. The agent's
 * own pools and tracked volumes are left to whoever manages them, unless they are wanted as well.
 */
import type { Examination } from '../../agent/inventory/examination.ts'
import { humanSize } from '../command-line/quantities.ts'
import { columns } from './columns.ts'

export interface ServedSnapshot {
  readonly handle: string
  /** A thin device is a snapshot or a volume: not everything that makes them tells. */
  readonly kind: 'thin snapshot' | 'thin device' | 'classic snapshot' | 'recorded snapshot'
  readonly sizeBytes?: number
  /** Why it cannot be asked about now; empty where nothing is known against it. */
  readonly problem: string
}

/** Findings that stand for a classic snapshot each (store-findings.ts). */
const ofClassicSnapshots = ['classic-snapshot', 'store-nearly-full', 'store-lost']

/** By handle. @param own also those in pools of the agent's own */
export function servedSnapshots({ pools, findings, recordedPools }: Examination, own: boolean): ServedSnapshot[] {
  const thin = pools
    .filter(({ kind }) => own || kind !== 'own')
    .flatMap(({ state, thins }) =>
      thins.flatMap(({ handle, kind, sizeBytes, asBase, because }) => {
        if (kind === 'volume') return []
        const problem = state === 'inactive' ? 'its pool is not active' : asBase === 'not-trackable' ? because : ''
        return [{ handle, kind: kind === 'snapshot' ? 'thin snapshot' : 'thin device', sizeBytes, problem } as const]
      })
    )
  const classic = findings
    .filter(({ kind }) => ofClassicSnapshots.includes(kind))
    .map(({ about, kind }) => {
      const problem = kind === 'store-lost' ? 'the kernel has given it up' : ''
      return { handle: about, kind: 'classic snapshot', problem } as const
    })
  const recorded = recordedPools.flatMap(({ name, snapshots }) =>
    snapshots.map((each) => ({ handle: `${name}/${each}`, kind: 'recorded snapshot', problem: '' }) as const)
  )
  return [...thin, ...classic, ...recorded].sort((one, other) => (one.handle < other.handle ? -1 : 1))
}

export function servedTable(served: readonly ServedSnapshot[]): string {
  const rows = served.map(({ handle, kind, sizeBytes, problem }) => [
    ...[handle, kind, sizeBytes === undefined ? '-' : humanSize(sizeBytes), problem || '-']
  ])
  const heads = [['SERVED AS WELL'], ['KIND'], ['SIZE', 'right'], ['CANNOT BE ASKED ABOUT']] as const
  return `${columns(heads, rows)}${served.length} served; \`deltamapper doctor\` says more of each\n`
}
