/**
 * Where a CSI question becomes an answer: handles are looked up, and whoever answers for snapshots of their kind makes
 * a plan of it.
 */
import { defect, DeltamapperError } from '../../errors.ts'
import type { CallContext } from '../../grpc/call-context.ts'
import type { EncodedStream, SnapshotMetadataBackend } from '../../grpc/snapshot-metadata.ts'
import { parseHandle } from '../../handle.ts'
import type { Plan } from '../walks/plan.ts'
import type { FoundSnapshot } from '../walks/snapshot.ts'
import type { Walkers } from '../walks/walkers.ts'
import { checkIsMeant } from '../../devicemapper/device-named.ts'
import type { Sources } from './sources.ts'
import type { AnswersOf, LookUp, Question, TargetAnswers } from './target.ts'

/** @param answersOf who answers for which kind of snapshots (targets.ts) */
export function snapshotMetadataBackend(
  sources: Sources,
  walkers: Pick<Walkers, 'stream'>,
  answersOf: AnswersOf
): SnapshotMetadataBackend {
  return {
    async allocated({ snapshotId, startingOffset, maxResults }, signal, call) {
      const lookUp = lookUpFor(call)
      const [target] = await lookUp([snapshotId])
      const question = { base: undefined, target, startingOffset, maxResults, anyVolume: false, lookUp }
      return answer(question, signal, call)
    },

    async delta({ baseSnapshotId, targetSnapshotId, startingOffset, maxResults }, signal, call) {
      const lookUp = lookUpFor(call)
      const rest = { startingOffset, maxResults, anyVolume: call?.anyVolume ?? false, lookUp }
      const look = sources.look(call?.party)
      const [base, target] = await Promise.all([ifThere(baseSnapshotId, look), resolve(targetSnapshotId, look)])
      const volume = startingOffset === 0n ? target.volumeName : undefined
      if (!(base instanceof DeltamapperError)) return answer({ base, target, ...rest }, signal, call, volume)
      checkDevice(target, call)
      const plan = await kindOf(target).planWithoutBase?.({ baseHandle: baseSnapshotId, target, ...rest })
      if (plan === undefined) throw base
      return streamed(plan, signal, call, volume)
    }
  }

  async function answer(question: Question, signal: AbortSignal, call?: CallContext, volume?: string) {
    const answers = whoAnswers(question)
    checkDevice(question.target, call)
    return streamed(await answers.plan(question), signal, call, volume)
  }

  /** @throws DM_NO_SUCH_DEVICE where the caller has the data of something else */
  function checkDevice(target: FoundSnapshot, call: CallContext | undefined): void {
    checkIsMeant(target.handle, call?.device, kindOf(target).named(target))
  }

  /** @param volume as in a plan */
  function streamed(plan: Plan, signal: AbortSignal, call?: CallContext, volume?: string): EncodedStream {
    const { device, party } = call ?? {}
    const stream = walkers.stream(volume === undefined ? plan : { ...plan, volume }, signal, party)
    return device === undefined ? stream : { ...stream, device }
  }

  /** @throws DM_POOLS_DIFFER where base and target are of two kinds */
  function whoAnswers({ base, target }: Question): TargetAnswers {
    const answers = kindOf(target)
    if (base === undefined || base.kind === target.kind) return answers
    throw new DeltamapperError(
      'DM_POOLS_DIFFER',
      `${base.handle} ${kindOf(base).where}, ${target.handle} ${answers.where}`,
      'compare snapshots of one volume'
    )
  }

  function kindOf({ kind, handle }: FoundSnapshot): TargetAnswers {
    const answers = answersOf(kind)
    if (answers) return answers
    throw defect(`nobody answers for ${handle}, which is of kind ${kind}`)
  }

  function lookUpFor(call: CallContext | undefined): LookUp {
    return async (handles) => {
      const look = sources.look(call?.party)
      return Promise.all(handles.map((handle) => resolve(handle, look)))
    }
  }
}

/** @throws DM_SNAPSHOT_NOT_FOUND, and what its source throws */
async function resolve(handle: string, look: Sources): Promise<FoundSnapshot> {
  const { source, name } = parseHandle(handle)
  const found = await look.find(source)
  const snapshot = await found?.snapshot(name)
  if (!snapshot) {
    throw new DeltamapperError(
      'DM_SNAPSHOT_NOT_FOUND',
      found ? `${source} has no snapshot ${name}` : `this agent has no source ${source}`,
      `check the handle; ${look.description}; \`deltamapper snapshot list\` lists its snapshots`,
      { forOthers: { remedy: 'check the handle; the log of the agent says what it serves' } }
    )
  }
  // The client will ask again by the name that it used.
  return { ...snapshot, handle, ownHandle: snapshot.handle }
}

/** The error, where there is no such snapshot. @throws any other */
async function ifThere(handle: string, look: Sources): Promise<FoundSnapshot | DeltamapperError> {
  return resolve(handle, look).catch((error: unknown) => {
    if (isNotFound(error)) return error
    throw error
  })
}

function isNotFound(error: unknown): error is DeltamapperError {
  return error instanceof DeltamapperError && error.code === 'DM_SNAPSHOT_NOT_FOUND'
}
