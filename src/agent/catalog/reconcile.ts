/**
 * Compares the catalog with the kernel: decides what becomes of unfinished intents, and reports every other difference.
 *
 * **Unfinished intents.** A pool's transaction id T and its devices show how far creating or deleting thin N got:
 *
 *     create:  N missing, T          not begun           → roll back
 *              N there, T            half done           → set_transaction_id T T+1, complete
 *              N there, T+1          done                → complete
 *     delete:  N there, T            not begun           → roll back
 *              N missing, T          half done           → set_transaction_id T T+1, complete
 *              N missing, T+1        done                → complete
 *
 * Half done always goes forward. Going back would delete a device because of a record that is older than it. Anything
 * else (another transaction id, a device created at another one) means that another process changed the pool: it stays
 * as it is, and is reported. A pool that is inactive or unreadable is reported too, and its intents wait until it can
 * be read.
 *
 * **Other differences** are never resolved here and never dropped: both sides are kept, and a person is told what to
 * do.
 *
 * Pure: the caller carries out the steps, in their order. After a crash between two steps, the same comparison is made
 * again.
 */
import type { CatalogView, Intent, OwnedPool, OwnedThin } from './owned-pools.ts'

/** A thin device as the pool's metadata has it. */
export interface KernelThin {
  readonly creationTime: number
  readonly transactionId: bigint
}

/** An active thin pool that is not LVM's. */
export interface KernelPool {
  readonly dmName: string
  /** From its status line. */
  readonly transactionId: bigint
  /** Everything in its metadata, by thin id; undefined when it cannot be read. */
  readonly thins: ReadonlyMap<number, KernelThin> | undefined
}

/** An active device with a thin target. */
export interface KernelDevice {
  readonly dmName: string
  /** The device-mapper name of its pool. */
  readonly pool: string
  readonly thinId: number
  readonly sizeBytes: number
  readonly suspended: boolean
}

export interface KernelView {
  readonly pools: readonly KernelPool[]
  readonly devices: readonly KernelDevice[]
}

/** `because` is for the log. */
export type Step = { readonly because: string } & (
  | { readonly step: 'resume'; readonly dmName: string }
  | { readonly step: 'set-transaction-id'; readonly dmName: string; readonly from: bigint; readonly to: bigint }
  | { readonly step: 'complete'; readonly pool: string; readonly creationTime: number | undefined }
  | { readonly step: 'roll-back'; readonly pool: string }
)

export type FindingKind =
  /** The catalog has a pool that is not active. */
  | 'pool-inactive'
  /** The pool is active, but its metadata cannot be read. */
  | 'pool-unreadable'
  /** There is a pool that the catalog does not have. */
  | 'pool-unknown'
  /** The catalog has a thin that the pool does not. */
  | 'thin-missing'
  /** The pool has a thin that the catalog does not. */
  | 'thin-unknown'
  /** Both have this thin id, but it is not the same device. */
  | 'thin-replaced'
  /** Another process has changed the pool's transaction id. */
  | 'transaction-differs'
  /** An active device has another size than the catalog says. */
  | 'size-differs'
  /** An intent cannot be decided yet. */
  | 'intent-waits'
  /** An intent contradicts what the kernel shows. */
  | 'intent-contradicted'

export interface Finding {
  readonly kind: FindingKind
  /** The pool's name in the catalog, or its device-mapper name if the catalog does not have it. */
  readonly pool: string
  readonly thinId: number | undefined
  /** What was found, and what to do about it, for a person. */
  readonly what: string
  readonly remedy: string
}

export interface Reconciliation {
  readonly steps: readonly Step[]
  readonly findings: readonly Finding[]
}

export function reconcile(catalog: CatalogView, kernel: KernelView): Reconciliation {
  const steps: Step[] = []
  const findings: Finding[] = []
  for (const pool of catalog.pools) {
    const records = {
      pool,
      thins: catalog.thins.filter((each) => each.pool === pool.name),
      intent: catalog.intents.find((each) => each.pool === pool.name)
    }
    const active = kernel.pools.find((each) => each.dmName === pool.dmName)
    const devices = kernel.devices.filter((each) => each.pool === pool.dmName)
    const result = reconcilePool(records, active, devices)
    steps.push(...result.steps)
    findings.push(...result.findings)
  }
  for (const { dmName } of kernel.pools) {
    if (catalog.pools.some((each) => each.dmName === dmName)) continue
    findings.push({
      kind: 'pool-unknown',
      pool: dmName,
      thinId: undefined,
      what: `pool ${dmName} is active, but was not created by this agent`,
      remedy: 'no action is needed; its snapshots are served from their tables if it is configured as a source'
    })
  }
  return { steps, findings }
}

interface PoolRecords {
  readonly pool: OwnedPool
  readonly thins: readonly OwnedThin[]
  readonly intent: Intent | undefined
}

/** The decision on an intent. */
interface Decision {
  readonly steps: readonly Step[]
  readonly findings: readonly Finding[]
  /** What the pool's transaction id must be afterwards; undefined if a finding already says that it is wrong. */
  readonly transactionId: bigint | undefined
  /** The thin that the intent (or the finding about it) covers; it is left out of the comparison. */
  readonly thinId: number | undefined
  /** The thin whose size becomes this one. */
  readonly resized?: { readonly id: string; readonly sizeBytes: number }
}

function reconcilePool(
  records: PoolRecords,
  active: KernelPool | undefined,
  devices: readonly KernelDevice[]
): Reconciliation {
  const { pool, thins, intent } = records
  if (intent?.kind === 'create-pool' || intent?.kind === 'delete-pool') {
    return { steps: [decidePool(intent, active !== undefined)], findings: [] }
  }
  const resume = intent === undefined ? [] : resumeOrigin(intent, devices)
  if (active?.thins === undefined) {
    const findings = [active === undefined ? inactive(pool) : unreadable(pool)]
    if (intent !== undefined) findings.push(waits(intent))
    return { steps: resume, findings }
  }

  const decision = decide(records, active, active.thins, devices)
  const findings = [...decision.findings]
  if (decision.transactionId !== undefined && decision.transactionId !== active.transactionId) {
    findings.push({
      kind: 'transaction-differs',
      pool: pool.name,
      thinId: undefined,
      what: `pool ${pool.name} is at transaction ${active.transactionId}, where the catalog has ${decision.transactionId}: another program has changed it`,
      remedy: 'find out which; then `deltamapper pool accept` takes the pool as it is'
    })
  }
  for (const thin of thins) {
    if (thin.thinId === decision.thinId) continue
    const settled = thin.id === decision.resized?.id ? { ...thin, sizeBytes: decision.resized.sizeBytes } : thin
    findings.push(...compareThin(pool, settled, active.thins, devices))
  }
  for (const [thinId, { transactionId }] of active.thins) {
    if (thinId === decision.thinId || thins.some((each) => each.thinId === thinId)) continue
    findings.push({
      kind: 'thin-unknown',
      pool: pool.name,
      thinId,
      what: `pool ${pool.name} has a thin device ${thinId}, created at transaction ${transactionId}, that the catalog does not have`,
      remedy: '`deltamapper volume adopt` gives it a name; it is not served without one'
    })
  }
  return { steps: [...resume, ...decision.steps], findings }
}

/** Creating a pool is done when it is active; deleting one, when it is not. */
function decidePool(intent: Extract<Intent, { kind: 'create-pool' | 'delete-pool' }>, active: boolean): Step {
  const done = intent.kind === 'create-pool' ? active : !active
  const because = `${intent.kind} of ${intent.pool} was begun, and the pool is ${active ? 'active' : 'not active'}`
  return done
    ? { step: 'complete', pool: intent.pool, creationTime: undefined, because }
    : { step: 'roll-back', pool: intent.pool, because }
}

/** A snapshot's origin is suspended while it is taken. Resume it before anything else. */
function resumeOrigin(intent: Intent, devices: readonly KernelDevice[]): Step[] {
  if (intent.kind !== 'create-snapshot' || intent.suspends === undefined) return []
  const { suspends: dmName } = intent
  if (!devices.some((each) => each.dmName === dmName && each.suspended)) return []
  return [{ step: 'resume', dmName, because: `it was suspended to take the snapshot ${intent.pool}/${intent.name}` }]
}

function decide(
  { pool, thins, intent }: PoolRecords,
  active: KernelPool,
  kernelThins: ReadonlyMap<number, KernelThin>,
  devices: readonly KernelDevice[]
): Decision {
  if (intent === undefined) return { steps: [], findings: [], transactionId: pool.transactionId, thinId: undefined }
  switch (intent.kind) {
    case 'create-pool':
    case 'delete-pool':
      // Decided by the function for pools.
      return { steps: [], findings: [], transactionId: undefined, thinId: undefined }
    case 'create-volume':
    case 'create-snapshot': {
      const device = kernelThins.get(intent.thinId)
      // A device created at another transaction is not the one of this intent.
      const contradicted = device !== undefined && device.transactionId !== intent.transactionId
      const what = `${intent.kind} of ${pool.name}/${intent.name} as thin device ${intent.thinId}`
      return decideThin(what, intent, active, contradicted ? 'contradicted' : device !== undefined, {
        thinId: intent.thinId,
        creationTime: device?.creationTime
      })
    }
    case 'delete-thin': {
      const thin = thins.find((each) => each.id === intent.thin)
      const device = thin && kernelThins.get(thin.thinId)
      const contradicted = thin === undefined || (device !== undefined && device.creationTime !== thin.creationTime)
      const what = `${intent.kind} of ${pool.name}/${thin?.name}`
      return decideThin(what, intent, active, contradicted ? 'contradicted' : device === undefined, {
        thinId: thin?.thinId,
        creationTime: undefined
      })
    }
    case 'resize-thin': {
      const thin = thins.find((each) => each.id === intent.thin)
      const device = devices.find((each) => each.thinId === thin?.thinId)
      // An inactive thin has only the catalog's size, and the larger one leaves nothing out.
      const done =
        device === undefined ? intent.sizeBytes > (thin?.sizeBytes ?? 0) : device.sizeBytes === intent.sizeBytes
      const because = `${intent.kind} of ${pool.name}/${thin?.name} to ${intent.sizeBytes} bytes was begun, and it ${
        device === undefined ? 'is not active' : `has ${device.sizeBytes} bytes`
      }`
      return {
        steps: [
          done
            ? { step: 'complete', pool: pool.name, creationTime: undefined, because }
            : { step: 'roll-back', pool: pool.name, because }
        ],
        findings: [],
        transactionId: pool.transactionId,
        thinId: undefined,
        ...(done ? { resized: { id: intent.thin, sizeBytes: intent.sizeBytes } } : {})
      }
    }
  }
}

/** The table at the top: how far creating or deleting one thin got. */
function decideThin(
  what: string,
  { pool, transactionId }: { pool: string; transactionId: bigint },
  active: KernelPool,
  kernelDidIt: boolean | 'contradicted',
  { thinId, creationTime }: { thinId: number | undefined; creationTime: number | undefined }
): Decision {
  const next = transactionId + 1n
  const shown = `the pool is at transaction ${active.transactionId}`
  if (kernelDidIt === false && active.transactionId === transactionId) {
    const because = `${what} was begun, and not carried out: ${shown}`
    return { steps: [{ step: 'roll-back', pool, because }], findings: [], transactionId, thinId: undefined }
  }
  if (kernelDidIt === true && (active.transactionId === transactionId || active.transactionId === next)) {
    const because = `${what} was begun, and carried out: ${shown}`
    const steps: Step[] = [{ step: 'complete', pool, creationTime, because }]
    if (active.transactionId === transactionId) {
      steps.unshift({ step: 'set-transaction-id', dmName: active.dmName, from: transactionId, to: next, because })
    }
    return { steps, findings: [], transactionId: active.transactionId, thinId }
  }
  const finding: Finding = {
    kind: 'intent-contradicted',
    pool,
    thinId,
    what: `${what}, begun at transaction ${transactionId}, contradicts what the kernel shows (${shown}): another program has changed it`,
    remedy: 'find out which; then `deltamapper pool accept` takes the pool as it is and forgets what was begun'
  }
  return { steps: [], findings: [finding], transactionId: undefined, thinId }
}

function compareThin(
  pool: OwnedPool,
  thin: OwnedThin,
  kernelThins: ReadonlyMap<number, KernelThin>,
  devices: readonly KernelDevice[]
): Finding[] {
  const there = kernelThins.get(thin.thinId)
  if (there === undefined) {
    return [
      {
        kind: 'thin-missing',
        pool: pool.name,
        thinId: thin.thinId,
        what: `${thin.kind} ${pool.name}/${thin.name} (thin device ${thin.thinId}) is in the catalog, but not in the pool`,
        remedy: '`deltamapper volume forget` removes it from the catalog; its data is gone'
      }
    ]
  }
  if (there.creationTime !== thin.creationTime || there.transactionId !== thin.transactionId) {
    return [
      {
        kind: 'thin-replaced',
        pool: pool.name,
        thinId: thin.thinId,
        what: `thin device ${thin.thinId} of pool ${pool.name} is not the ${thin.kind} ${thin.name} that it was: it was created at ${there.creationTime}/${there.transactionId}, not at ${thin.creationTime}/${thin.transactionId}`,
        remedy:
          '`deltamapper volume forget` removes the old one from the catalog, `deltamapper volume adopt` gives the new one a name'
      }
    ]
  }
  // Others may have made a second device of it.
  const device = devices.find((each) => each.thinId === thin.thinId && each.sizeBytes !== thin.sizeBytes)
  if (device === undefined) return []
  return [
    {
      kind: 'size-differs',
      pool: pool.name,
      thinId: thin.thinId,
      what: `${thin.kind} ${pool.name}/${thin.name} has ${thin.sizeBytes} bytes in the catalog, and its device ${device.dmName} has ${device.sizeBytes}`,
      remedy:
        '`deltamapper volume grow` to the larger size sets both; deactivated and activated, it has the size in the catalog'
    }
  ]
}

function inactive(pool: OwnedPool): Finding {
  return {
    kind: 'pool-inactive',
    pool: pool.name,
    thinId: undefined,
    what: `pool ${pool.name} is in the catalog, but ${pool.dmName} is not active`,
    remedy: '`deltamapper pool activate` activates it; `deltamapper pool remove` forgets it once it is empty'
  }
}

function unreadable(pool: OwnedPool): Finding {
  return {
    kind: 'pool-unreadable',
    pool: pool.name,
    thinId: undefined,
    what: `what pool ${pool.name} holds cannot be read from its metadata device ${pool.metadataDevice}`,
    remedy: 'look into the kernel log; `thin_check` tells what is damaged'
  }
}

function waits(intent: Intent): Finding {
  return {
    kind: 'intent-waits',
    pool: intent.pool,
    thinId: 'thinId' in intent ? intent.thinId : undefined,
    what: `${intent.kind} in pool ${intent.pool} was begun, and what became of it cannot be told yet`,
    remedy: 'it is recovered as soon as the pool is active and can be read'
  }
}
