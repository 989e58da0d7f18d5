/** The calls that the catalog takes, by concern and name: the catalog's thread's side of `concerns.ts`. */
import { admit, admitFromRecord } from './admission.ts'
import * as bases from './bases.ts'
import * as classic from './classic-served.ts'
import type { CatalogDatabase } from './database.ts'
import * as eraHistory from './era-snapshots.ts'
import * as era from './era-volumes.ts'
import * as leases from './lease-records.ts'
import * as pools from './owned-pools.ts'
import * as clocks from './pool-clocks.ts'
import * as served from './served-targets.ts'

/** Arguments and results cross between threads by structured cloning. */
// eslint-disable-next-line max-lines-per-function -- a table, with a line for each call
export function catalogCalls(database: CatalogDatabase) {
  const on =
    <A extends unknown[], R>(call: (database: CatalogDatabase, ...rest: A) => R) =>
    (...rest: A): R =>
      call(database, ...rest)
  return {
    served: {
      admit: on(admit),
      admitFromRecord: on(admitFromRecord),
      remember: on(served.remember),
      find: on(served.findServed),
      forget: on(served.forgetServed)
    },
    classicSnapshots: {
      remember: on(classic.rememberClassic),
      giveUp: on(classic.giveUpClassic),
      sawWritable: on(classic.sawWritableClassic),
      find: on(classic.findClassic),
      refuseServedAsThin: on(classic.refuseServedAsThin),
      forget: on(classic.forgetClassic)
    },
    bases: {
      byHandle: on(bases.baseByHandle),
      find: on(bases.findBase),
      list: on(bases.listBases),
      watched: on(bases.watchedBases),
      saw: on(bases.sawBase),
      sawGone: on(bases.sawBaseGone),
      spoil: on(bases.spoilBase),
      spoilPool: on(bases.spoilPool),
      kept: on(bases.keptRecord),
      notKept: on(bases.notKeptRecord),
      lost: on(bases.lostRecord),
      forget: on(bases.forgetBases)
    },
    poolClocks: {
      saw: on(clocks.sawPoolClock),
      wentBack: on(clocks.poolWentBack)
    },
    ownedPools: {
      view: on(pools.catalogView),
      findThin: on(pools.findThin),
      findThinByName: on(pools.findThinByName),
      begin: on(pools.begin),
      complete: on(pools.complete),
      rollBack: on(pools.rollBack),
      adoptThin: on(pools.adoptThin),
      forgetThin: on(pools.forgetThin),
      acceptTransactionId: on(pools.acceptTransactionId)
    },
    eraVolumes: {
      begin: on(era.beginEra),
      complete: on(era.completeEra),
      rollBack: on(era.rollBackEra),
      saw: on(era.sawEraVolume),
      endHistory: on(era.endEraHistory),
      view: on(era.eraView),
      find: on(era.findEraVolume)
    },
    eraSnapshots: {
      beginHistory: on(eraHistory.beginEraHistory),
      stageWrites: on(eraHistory.stageEraWrites),
      record: on(eraHistory.recordEraSnapshot),
      list: on(eraHistory.eraSnapshots),
      find: on(eraHistory.findEraSnapshot),
      delete: on(eraHistory.deleteEraSnapshot),
      leastSize: on(eraHistory.leastEraSize),
      writes: on(eraHistory.eraWrites),
      forget: on(eraHistory.forgetEraSnapshots),
      nameUsedBefore: on(eraHistory.eraNameUsedBefore),
      forgetNames: on(eraHistory.forgetEraNames),
      compact: on(eraHistory.compactEraHistory),
      facts: on(eraHistory.eraHistoryFacts)
    },
    leases: {
      begin: on(leases.beginLease),
      confirm: on(leases.confirmLease),
      beginRelease: on(leases.beginRelease),
      keep: on(leases.keepLease),
      clear: on(leases.clearLease),
      find: on(leases.findLease),
      list: on(leases.listLeases)
    },
    file: { statistics: () => database.statistics() }
  }
}

export type CatalogCalls = ReturnType<typeof catalogCalls>
export type Concern = keyof CatalogCalls
/** A call as it is sent: `leases.begin`. */
export type CallName = { [C in Concern]: `${C}.${keyof CatalogCalls[C] & string}` }[Concern]

/** Runs a call by its name. */
export function runCall(calls: CatalogCalls, name: CallName, args: unknown[]): unknown {
  const [concern, call] = name.split('.') as [Concern, string]
  return (calls[concern] as Record<string, (...args: unknown[]) => unknown>)[call](...args)
}
