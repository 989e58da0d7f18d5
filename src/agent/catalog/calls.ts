/** The calls that the catalog takes, by name: the worker thread's side of `Catalog`. */
import { admit, type Admission } from './admission.ts'
import * as classic from './classic-served.ts'
import type { CatalogDatabase } from './database.ts'
import * as eraHistory from './era-snapshots.ts'
import * as era from './era-volumes.ts'
import * as leases from './lease-records.ts'
import { compareLineage, type Lineage, type LineageFacts, type LineageMember } from './lineage.ts'
import * as pools from './owned-pools.ts'
import * as clocks from './pool-clocks.ts'
import * as served from './served-targets.ts'

/** Arguments and results cross between threads by structured cloning. */
export function catalogCalls(database: CatalogDatabase) {
  const on =
    <A extends unknown[], R>(call: (database: CatalogDatabase, ...rest: A) => R) =>
    (...rest: A): R =>
      call(database, ...rest)
  return {
    remember: on(served.remember),
    findServed: on(served.findServed),
    forgetServed: on(served.forgetServed),
    rememberClassic: on(classic.rememberClassic),
    findClassic: on(classic.findClassic),
    forgetClassic: on(classic.forgetClassic),
    admit: (admission: Admission, at: number) =>
      admit(database, admission, (one, other) => lineage(database, one, other), at),
    lineage: on(lineage),
    sawPoolClock: on(clocks.sawPoolClock),
    poolWentBack: on(clocks.poolWentBack),
    view: on(pools.catalogView),
    findThin: on(pools.findThin),
    findThinByName: on(pools.findThinByName),
    begin: on(pools.begin),
    complete: on(pools.complete),
    rollBack: on(pools.rollBack),
    adoptThin: on(pools.adoptThin),
    forgetThin: on(pools.forgetThin),
    acceptTransactionId: on(pools.acceptTransactionId),
    beginLease: on(leases.beginLease),
    confirmLease: on(leases.confirmLease),
    beginRelease: on(leases.beginRelease),
    keepLease: on(leases.keepLease),
    clearLease: on(leases.clearLease),
    findLease: on(leases.findLease),
    listLeases: on(leases.listLeases),
    beginEra: on(era.beginEra),
    completeEra: on(era.completeEra),
    rollBackEra: on(era.rollBackEra),
    sawEraVolume: on(era.sawEraVolume),
    endEraHistory: on(era.endEraHistory),
    eraView: on(era.eraView),
    findEraVolume: on(era.findEraVolume),
    beginEraHistory: on(eraHistory.beginEraHistory),
    stageEraWrites: on(eraHistory.stageEraWrites),
    recordEraSnapshot: on(eraHistory.recordEraSnapshot),
    eraSnapshots: on(eraHistory.eraSnapshots),
    findEraSnapshot: on(eraHistory.findEraSnapshot),
    deleteEraSnapshot: on(eraHistory.deleteEraSnapshot),
    leastEraSize: on(eraHistory.leastEraSize),
    eraWrites: on(eraHistory.eraWrites),
    forgetEraSnapshots: on(eraHistory.forgetEraSnapshots),
    eraNameUsedBefore: on(eraHistory.eraNameUsedBefore),
    forgetEraNames: on(eraHistory.forgetEraNames),
    compactEraHistory: on(eraHistory.compactEraHistory),
    eraHistoryFacts: on(eraHistory.eraHistoryFacts),
    statistics: () => database.statistics()
  }
}

export type CatalogCalls = ReturnType<typeof catalogCalls>
export type CallName = keyof CatalogCalls

/**
 * An owned thin's id is its identity; other records are known by the time when they were served. `lvconvert --merge`
 * puts another device in a volume's place and keeps its UUID. What was served before that has another creation time,
 * and says nothing of this device.
 */
function lineage(database: CatalogDatabase, one: LineageMember, other: LineageMember): Lineage {
  const facts = ({ identity, creationTime }: LineageMember): LineageFacts[] => {
    const thin = pools.findThin(database, identity)
    if (thin !== undefined) return [{ ...thin, identity }]
    return served.servedWithIdentity(database, identity).filter((each) => each.creationTime === creationTime)
  }
  return compareLineage(facts(one), facts(other))
}
