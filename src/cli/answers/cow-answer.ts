/**
 * `deltamapper delta --cow STORE`: what differs between two classic snapshots of one volume, straight from their
 * stores.
 */
import { type CowStore, openCowStore } from '../../devicemapper/cow/cow-store.ts'
import { changed } from '../../devicemapper/cow/delta.ts'
import type { CompareBudget } from '../../devicemapper/cow/old-contents.ts'
import type { ExtentStream } from '../../devicemapper/extents.ts'
import { UsageError } from '../command-line/failure.ts'
import { counted } from '../command-line/quantities.ts'
import type { AnswerOptions, Question, Remark } from './question.ts'
import { refuseStray } from './stray-options.ts'

/**
 * Hands the answer to `use`.
 *
 * @throws UsageError where the command line says more or less than it has to; what reading stores throws
 */
export async function answerFromStores(
  basePath: string,
  question: Question,
  options: AnswerOptions,
  signal: AbortSignal,
  remark: Remark,
  use: (answer: ExtentStream) => Promise<void>
): Promise<void> {
  const { targetCow, baseSize, startingOffset } = options
  const sizeBytes = checkOptions(question, options)
  const opened: CowStore[] = []
  try {
    for (const path of targetCow === undefined ? [basePath] : [basePath, targetCow]) {
      opened.push(await openCowStore(path))
    }
    const [base, target] = opened
    remarkRest(opened, options, remark)
    const compare: CompareBudget | undefined = options.compare
      ? { bytes: Infinity, equal: 0, different: 0, left: 0 }
      : undefined
    await use(
      changed({
        base: { store: base, sizeBytes: baseSize ?? sizeBytes },
        ...(opened.length > 1 && { target: { store: target, sizeBytes } }),
        ...{ sizeBytes, startingOffset, compare, signal }
      })
    )
    if (compare) remark(`${counted(compare.equal + compare.different, 'chunk')} compared, ${compare.equal} the same`)
  } finally {
    for (const store of opened) await store.close()
  }
}

/** @returns the target's size */
function checkOptions({ base, target }: Question, options: AnswerOptions): number {
  const { size, targetCow, compare, liveRoot, engine, blockSize } = options
  if (base !== undefined) {
    throw new UsageError(
      `--cow names the stores, and ${target ?? base} was named as well`,
      'leave out BASE and TARGET; or leave out --cow, to ask the agent'
    )
  }
  refuseStray({ '--live-root': liveRoot, '--engine': engine, '--block-size': blockSize }, '--cow')
  if (compare && targetCow === undefined) {
    throw new UsageError('--compare goes with --target-cow only', "name the newer snapshot's store with --target-cow")
  }
  if (size === undefined) {
    throw new UsageError(
      '--cow wants --size: a store does not say how large its snapshot is',
      'give the size of TARGET in bytes (`lvs --units b`)',
      'DM_ARGUMENT_MISSING'
    )
  }
  return size
}

/** What the answer rests on, which nothing here can check. */
function remarkRest([base, target]: readonly CowStore[], { compare }: AnswerOptions, remark: Remark): void {
  const older = 'taken to be the older of two snapshots of one volume'
  if (target === undefined) {
    remark(
      `${base.path} is ${older}; what somebody has written into the newer one is missing: --target-cow names its store`
    )
    return
  }
  remark(`${base.path} is ${older}, ${target.path} the newer one's`)
  if (base.header.chunkBytes !== target.header.chunkBytes) {
    remark('their chunks are of different sizes: what cannot be told apart counts as changed')
  }
  if (compare) remark(`${base.path} is taken to hold what was backed up: nobody has written into it since`)
}
