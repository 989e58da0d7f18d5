/**
 * Thin snapshots from any source: which may be compared, and how the answer is made.
 *
 *   look up both handles, at one look ─▶ open the metadata ─▶ find the devices in it ─▶ look up again ─▶ the catalog ─▶ first message
 *
 * At any moment a name can go to another volume, and a pool's device node to another pool. The open descriptor proves
 * which metadata it is, because its device keeps its number. The second look proves that the handles mean this
 * metadata, as at the first look.
 */
import { isDeepStrictEqual } from 'node:util'
import { asDeltamapperError, DeltamapperError } from '../../errors.ts'
import type { Aside, Plan } from '../walks/plan.ts'
import type { RecordOutcome } from '../walks/record-keeping.ts'
import type { Snapshot } from '../walks/snapshot.ts'
import {
  fromPortableReport,
  type HeldForTools,
  type PortableReport,
  type ThinAsides,
  type ThinQuestion
} from '../walks/thin-walk.ts'
import type { SeenDevices } from '../walks/seen-devices.ts'
import type { ToolEngine } from '../walks/tool-engine.ts'
import { namedThin } from '../../devicemapper/device-named.ts'
import { sparingly } from '../../sparing-log.ts'
import { checkStillGone, lookAgain } from './second-look.ts'
import type { DeviceKnowledge, FoundRecord, KeptTarget } from './served-target.ts'
import { type AnswerServices, checkOffset, type LookUp, type TargetAnswers } from './target.ts'
import { toPortable } from '../../portable-error.ts'

export function thinAnswers({ knowledge, bases, tools, logger }: AnswerServices): TargetAnswers<Snapshot> {
  const warn = sparingly((fields) => logger?.warn(fields, 'a snapshot that can be written to is asked about'))
  const remarked = (target: Snapshot): Pick<Plan, 'remark'> => {
    const remark = remarkOnWritable(target)
    if (remark === undefined) return {}
    warn({ handle: target.handle, remark })
    return { remark }
  }
  return {
    where: 'is in a thin pool',
    named: ({ live, metadataDevice, thinId }) =>
      live && metadataDevice ? namedThin(metadataDevice, thinId) : undefined,
    plan({ base, target, startingOffset, maxResults, anyVolume, lookUp }) {
      if (base) checkRelated(base, target, anyVolume, logger)
      checkExternalOrigin(base, target)
      checkOffset(startingOffset, target.handle, target.sizeBytes)
      const question = { base, target, startingOffset: Number(startingOffset), maxResults }
      if (!target.live || !knowledge) return thinPlan(question, undefined, tools)
      const second = new SecondLook(base ? [base, target] : [target], knowledge, lookUp, anyVolume)
      const plan = { ...thinPlan(question, second, tools), ...remarked(target) }
      return { ...plan, explained: (error) => second.explained(error) }
    },

    async planWithoutBase({ baseHandle, target, startingOffset, maxResults, anyVolume, lookUp }) {
      if (!target.live || !knowledge || !bases || target.poolIdentity === undefined) return undefined
      checkOffset(startingOffset, target.handle, target.sizeBytes)
      const recorded = await bases.find(baseHandle, target.poolIdentity)
      if (recorded === undefined) return undefined
      const question = { recorded, target, startingOffset: Number(startingOffset), maxResults }
      const second = new SecondLook([target], knowledge, lookUp, anyVolume, recorded)
      // The tools know nothing of records.
      return { ...thinPlan(question, second), ...remarked(target), explained: (error) => second.explained(error) }
    }
  }
}

/**
 * A write to a snapshot is noticed only when it is the base of the next backup, which then has to be a full one. So it
 * is said while it can be prevented.
 */
function remarkOnWritable({ handle, writable }: Snapshot): string | undefined {
  if (writable !== true) return undefined
  return (
    `${handle} is active and can be written to: a write makes it useless as a base, and what was copied of it a mixture; ` +
    `make it read-only (LVM: lvchange -pr ${handle}), or deactivate it`
  )
}

/**
 * The plan of a walk through a pool's metadata.
 *
 * @param knowledge gets a live pool's devices before the first message, and may refuse them
 * @param tools the tools, if they have a part in the answer
 */
export function thinPlan(question: ThinQuestion, knowledge?: DeviceKnowledge, tools?: ToolEngine): Plan {
  let keeping: KeptTarget | undefined
  const asides: Record<keyof ThinAsides, Aside> = {
    seen: async (devices: SeenDevices) => {
      keeping = await knowledge?.check(devices)
      return keeping?.wanted
    },
    kept: (outcome: RecordOutcome) => keeping?.kept(outcome),
    hold: async (devices: SeenDevices, { signal, withdraw }): Promise<HeldForTools> => {
      try {
        if (tools === undefined) throw new Error('the tools have no part in this answer')
        const { heldRoot, signal: lost } = await tools.hold(devices, signal)
        lost.addEventListener('abort', () => {
          withdraw(lost.reason)
        })
        return { heldRoot }
      } catch (error) {
        return { refused: toPortable(asDeltamapperError(error)) }
      }
    },
    report: (report: PortableReport) => tools?.report(question, fromPortableReport(report))
  }
  return {
    kind: question.base || question.recorded ? 'delta' : 'allocated',
    capacityBytes: question.target.sizeBytes,
    task: { target: 'thin', request: { ...question, tools: tools?.requested } satisfies ThinQuestion },
    asides
  }
}

/** The second look at the devices of a question, once its metadata is open; then the catalog's knowledge of them. */
class SecondLook implements DeviceKnowledge {
  readonly #snapshots: readonly Snapshot[]
  readonly #known: DeviceKnowledge
  readonly #lookUp: LookUp
  readonly #anyVolume: boolean
  readonly #recorded: FoundRecord | undefined
  #isTaken = false

  /** @param recorded the record of a base that is gone, which must still be so */
  constructor(
    snapshots: readonly Snapshot[],
    known: DeviceKnowledge,
    lookUp: LookUp,
    anyVolume: boolean,
    recorded?: FoundRecord
  ) {
    this.#snapshots = snapshots
    this.#known = known
    this.#lookUp = lookUp
    this.#anyVolume = anyVolume
    this.#recorded = recorded
  }

  async check(seen: SeenDevices): Promise<KeptTarget | undefined> {
    await this.#take()
    this.#isTaken = true
    return this.#known.check(seen, this.#anyVolume, this.#recorded)
  }

  /** An error from the metadata may be about another pool's metadata: then the client should ask again. */
  async explained(error: unknown): Promise<unknown> {
    if (this.#isTaken) return error
    const found: unknown = await this.#take().catch((thrown: unknown) => thrown)
    return found instanceof DeltamapperError && found.code === 'DM_SNAPSHOT_CHANGED' ? found : error
  }

  /** @throws DM_SNAPSHOT_CHANGED, and what looking up throws */
  async #take(): Promise<void> {
    await lookAgain(this.#snapshots, this.#lookUp)
    if (this.#recorded) await checkStillGone(this.#recorded.handle, this.#lookUp)
  }
}

/**
 * Refuses a mix-up of handles. Any two thin devices of one pool compare exactly, so this protects the caller, not the
 * answer: unknown relations pass, and so does what is meant. (A volume that was rolled back, as Proxmox and Qubes do,
 * is another one to LVM by the same name.)
 *
 * @throws DM_POOLS_DIFFER, DM_VOLUMES_DIFFER, DM_SNAPSHOT_CHANGED
 */
function checkRelated(base: Snapshot, target: Snapshot, anyVolume: boolean, logger: AnswerServices['logger']): void {
  const remedy = 'compare snapshots of one volume'
  if (poolOf(base) !== poolOf(target)) {
    throw new DeltamapperError('DM_POOLS_DIFFER', `${base.handle} and ${target.handle} are in different pools`, remedy)
  }
  // Only the target's is opened, and proven to be the one that was looked up.
  if (!isDeepStrictEqual(base.metadataDevice, target.metadataDevice)) {
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `the pool of ${base.handle} and ${target.handle} was activated anew while they were looked up`,
      'ask again from the beginning'
    )
  }
  if (base.volume === undefined || target.volume === undefined || base.volume === target.volume) return
  // A snapshot and the volume it was taken of are related, even when that volume is itself a snapshot of another.
  if (base.volume === target.identity || target.volume === base.identity) return
  const ofWhat = ({ volume, volumeName }: Snapshot) => volumeName ?? volume
  if (anyVolume) {
    logger?.warn(
      { base: base.handle, target: target.handle, baseOf: ofWhat(base), targetOf: ofWhat(target) },
      'base and target are of different volumes: what differs between them is exact, and is answered'
    )
    return
  }
  throw new DeltamapperError(
    'DM_VOLUMES_DIFFER',
    `${base.handle} is a snapshot of ${ofWhat(base)}, ${target.handle} of ${ofWhat(target)}`,
    remedy
  )
}

function poolOf({ poolIdentity, metadataPath }: Snapshot): string {
  return poolIdentity ?? metadataPath
}

/**
 * Where a snapshot maps nothing, its external origin shows through. With a base over the same origin this cancels out,
 * up to the end of the base. Everything else would be under-reported.
 *
 * @throws DM_NOT_TRACKED
 */
function checkExternalOrigin(base: Snapshot | undefined, target: Snapshot): void {
  const refuse = (what: string): never => {
    throw new DeltamapperError(
      'DM_NOT_TRACKED',
      what,
      'back up every block, or copy what is outside of the pool into a thin volume'
    )
  }
  const origin = target.externalOrigin
  if (base && origin?.identity !== base.externalOrigin?.identity) {
    refuse(
      `${base.handle} and ${target.handle} do not have the same external origin, which shows where they map nothing`
    )
  }
  if (!origin) return
  const shown = `the external origin of ${target.handle} shows where it maps nothing`
  if (!base) refuse(`${shown}, so what it maps is not all it holds`)
  else if (base.sizeBytes < Math.min(target.sizeBytes, origin.sizeBytes ?? Infinity)) {
    refuse(`${shown}, and shows more of itself since ${base.handle}, which is smaller`)
  }
}
