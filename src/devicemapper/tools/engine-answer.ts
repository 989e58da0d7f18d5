/**
 * Which engine gives a walk its extents: our own reading of the metadata, the tools', or ours checked with theirs. Runs
 * in a walker thread.
 *
 * The tools read only a live pool's metadata snapshot. The main thread holds one during the walk (tool-engine.ts), in
 * which the devices are as the walk has seen them. The devices of the live pool must stay the same as well, as without
 * the tools.
 */
import { type MappingStream, openPoolMetadata, type PinnedDevice, type PoolMetadata } from '../thin/pool-metadata.ts'
import type { ExtentBatch } from '../extents.ts'
import { type CheckOutcome, crossChecked } from './cross-check.ts'
import type { Engine } from './engine.ts'
import type { ToolCommand } from './tool.ts'
import { toolAnswer, type ToolDevice } from './tool-answer.ts'
import { DeltamapperError } from '../../errors.ts'

/** The tools' part in a walk's request. */
export interface ToolsRequested {
  readonly engine: Exclude<Engine, 'native'>
  readonly command: ToolCommand
}

/**
 * The outcome of a check, and data blocks called the same beyond a smaller base, as thin_delta always does
 * (ToolAnswer.beyondBase).
 */
export interface EngineReport {
  readonly outcome: CheckOutcome
  readonly beyondBase: number
}

/** What the main thread does for a walk with tools. */
export interface ToolSupport {
  /** Resolves with the block of the metadata snapshot once it is held for the tools. @throws why there is none */
  readonly heldRoot: () => Promise<number>
  /** Aborted when the tools must end: the metadata snapshot is no longer held, or the answer no longer wanted. */
  readonly signal: AbortSignal
  readonly report: (report: EngineReport) => void
}

/** The question to both engines. */
export interface EngineQuestion {
  readonly base: ToolDevice | undefined
  readonly target: ToolDevice
  readonly startingOffset: number
}

/**
 * The extents of an answer, from the requested engine.
 *
 * @param live whether the metadata is that of a pool in use
 * @param native asks our own
 * @throws while they are read, what the engine throws; DM_ENGINES_DISAGREE
 */
export async function engineAnswer(
  { engine, command }: ToolsRequested,
  metadata: PoolMetadata,
  live: boolean,
  question: EngineQuestion,
  { heldRoot, signal, report }: ToolSupport,
  native: () => Promise<MappingStream>
): Promise<AsyncGenerator<ExtentBatch, unknown>> {
  let beyondBase = () => 0
  async function* tools(stop: AbortSignal): AsyncGenerator<ExtentBatch, boolean> {
    const ask = (view: PoolMetadata, devices: Pick<EngineQuestion, 'base' | 'target'>) => {
      const { startingOffset } = question
      const answer = toolAnswer({ metadata: view, ...devices, startingOffset, command, signal: stop })
      beyondBase = answer.beyondBase
      return answer.batches
    }
    if (!live) return yield* ask(metadata, question)
    const held = await openHeld(metadata, await heldRoot())
    try {
      const { base, target } = question
      const devices = {
        base: base && { ...base, device: await held.device(base.device.id, stop) },
        target: { ...target, device: await held.device(target.device.id, stop) }
      }
      const pinned: PinnedDevice[] = base === undefined ? [target] : [base, target]
      return yield* metadata.whileUnchanged(ask(held, devices), pinned, stop)
    } finally {
      await held.close()
    }
  }
  if (engine === 'tools') return tools(signal)
  const own = await native()
  const checking = (over: AbortSignal) => tools(AbortSignal.any([signal, over]))
  return crossChecked(own.batches, checking, (outcome) => {
    report({ outcome, beyondBase: beyondBase() })
  })
}

/** The metadata snapshot that is held for us. @throws DM_LEASE_LOST when there is another one, or none */
async function openHeld({ path, openDevice }: PoolMetadata, heldRoot: number): Promise<PoolMetadata> {
  const held = await openPoolMetadata(path, { device: openDevice })
  if (held.view === 'metadata-snapshot' && held.heldRoot === heldRoot) return held
  await held.close()
  throw new DeltamapperError(
    'DM_LEASE_LOST',
    `the metadata snapshot in ${path} was released before the tools had read it`,
    'ask again from the beginning'
  )
}
