/** Records of bases as text for people. */
import type { AdminResponse } from '../../grpc/admin.ts'
import { oneLine } from '../command-line/failure.ts'
import { counted, humanSize } from '../command-line/quantities.ts'
import { columns, facts } from './columns.ts'
import { moment } from './moment.ts'

type Base = AdminResponse<'getBase'>

export function basesTable({ bases, folder }: AdminResponse<'listBases'>): string {
  const rows = bases.map(({ handle, state, recordBytes, firstServedAtMs, answers, because }) => [
    handle,
    state,
    recordBytes === undefined ? '-' : humanSize(recordBytes),
    moment(firstServedAtMs),
    String(answers),
    oneLine(because)
  ])
  const heads = [
    ...([['SNAPSHOT'], ['STATE'], ['RECORD', 'right'], ['FIRST SERVED']] as const),
    ...([['ANSWERS', 'right'], ['BECAUSE']] as const)
  ]
  const full = bases.filter(isNextFull)
  return [
    columns(heads, rows),
    ...full.map(({ handle }) => `the next backup after ${handle} has to be a full one, unless it stays\n`),
    `${counted(bases.length, 'snapshot')}; records in ${folder}; complete\n`
  ].join('')
}

/** Of each volume, the newest snapshot is the next base. */
function isNextFull(base: Base, _index: number, all: readonly Base[]): boolean {
  const key = (each: Base) => `${each.pool} ${each.volume === '' ? each.identity : each.volume}`
  const isNewest = all.every((each) => key(each) !== key(base) || each.firstServedAtMs <= base.firstServedAtMs)
  return isNewest && (base.state === 'must-stay' || base.state === 'lost')
}

export function baseFacts(base: Base): string {
  return facts([
    ['snapshot', base.handle],
    ['state', `${base.state}: ${oneLine(base.because)}`],
    ['identity', base.identity],
    ['pool', base.pool],
    ['volume', base.volume === '' ? 'not known' : base.volume],
    ['size', humanSize(base.sizeBytes)],
    ['mapped blocks', String(base.mappedBlocks)],
    ['first served', moment(base.firstServedAtMs)],
    ['gone since', base.goneAtMs === undefined ? '-' : moment(base.goneAtMs)],
    ['record', base.record === '' ? 'none' : `${base.record} (${humanSize(base.recordBytes ?? 0)})`],
    ['answers from it', String(base.answers)]
  ])
}
