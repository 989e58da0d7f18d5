/**
 * Kills a whole kernel, again and again, at random moments: what its lives find on the disk is checked inside (test/kernel/kernel-life.ts,
 * and era-life.ts where a volume is tracked), from here it is only started and killed, as a power cut would.
 */
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CowKernelJournal } from '../kernel/cow-kernel-journal.ts'
import { EraLifeJournal } from '../kernel/era-life-journal.ts'
import { type LifeChecked, readJournal } from '../kernel/kernel-life-journal.ts'
import type { RecordLifeEntry } from '../kernel/record-kernel-life.ts'
import { Random } from '../support/random.ts'
import { projectFolder, startLab } from './boot.ts'
import { labVariables } from './run.ts'

const DISK_BYTES = 256 * 2 ** 20
/** How long after it was up, or was at work, a kernel is killed at most, in milliseconds. */
const LONGEST_MOMENT = 5000
/** A life that has not come so far by then has failed. Seconds. */
const PATIENCE_S = 1200

type OnProgress = (line: string) => void

interface Kills {
  kills: number
  /** Killed while the agent started, or soon after. */
  whileStarting: number
}

export interface KernelKillsReport extends Kills {
  /** Answers after a start that were right. */
  answers: number
  /** Leases that a kill left behind, and what the catalog had on record of them. */
  leasesLeft: Record<string, number>
  /** Of those, how many could not be told from somebody else's. */
  ambiguous: number
}

/** @throws what a life says is wrong; LabUnavailable where this machine cannot run a lab */
export function killKernels(seed: number, kills: number, onProgress?: OnProgress): Promise<KernelKillsReport> {
  return killAgainAndAgain('kernel-life.ts', seed, kills, onProgress, (journal) => {
    const checked = readJournal(journal).filter((entry): entry is LifeChecked => entry.kind === 'checked')
    const leasesLeft: Record<string, number> = {}
    for (const { lease, heldBefore } of checked) {
      if (!heldBefore) continue
      leasesLeft[lease] = (leasesLeft[lease] ?? 0) + 1
    }
    return {
      leasesLeft,
      answers: checked.reduce((sum, { answers }) => sum + answers, 0),
      ambiguous: checked.filter(({ ambiguous }) => ambiguous).length
    }
  })
}

export interface EraKernelKillsReport extends Kills {
  /** Answers that had every block that differs, how many blocks those were, and answers that were refused because the history is void. */
  answers: number
  differing: number
  refused: number
  /** Snapshots that a kernel was killed in, and how many lives had something to settle. */
  lost: number
  settled: number
  /** Metadata snapshots that were left to a person. */
  ambiguous: number
}

/** The same with a volume that is tracked. @throws the same */
export function killKernelsThatTrack(
  seed: number,
  kills: number,
  onProgress?: OnProgress
): Promise<EraKernelKillsReport> {
  return killAgainAndAgain('era-life.ts', seed, kills, onProgress, (path) => {
    const { checked, lost } = new EraLifeJournal(path)
    const sum = (of: 'answers' | 'differing' | 'refused') => checked.reduce((all, each) => all + each[of], 0)
    return {
      ...{ answers: sum('answers'), differing: sum('differing'), refused: sum('refused'), lost },
      settled: checked.filter(({ settled }) => settled).length,
      ambiguous: checked.filter(({ ambiguous }) => ambiguous).length
    }
  })
}

export interface CowKernelKillsReport extends Kills {
  /** Pairs of classic snapshots whose answers were right after a start, or refused as they have to be. */
  pairs: number
  refused: Record<string, number>
  /** Kernels that were killed while they merged a snapshot. */
  merging: number
}

/** The same with a volume that has classic snapshots. @throws the same */
export function killKernelsWithClassicSnapshots(
  seed: number,
  kills: number,
  onProgress?: OnProgress
): Promise<CowKernelKillsReport> {
  return killAgainAndAgain('cow-kernel-life.ts', seed, kills, onProgress, (path) => {
    const { checked } = new CowKernelJournal(path)
    const refused: Record<string, number> = {}
    for (const each of checked) {
      for (const [code, count] of Object.entries(each.refused)) refused[code] = (refused[code] ?? 0) + count
    }
    return {
      pairs: checked.reduce((sum, { pairs }) => sum + pairs, 0),
      refused,
      merging: checked.filter(({ merging }) => merging).length
    }
  })
}

export interface RecordKernelKillsReport extends Kills {
  /** Deltas after a start whose base was served before: right, or refused by code. */
  right: number
  refused: Record<string, number>
}

/** The same with a volume whose snapshots are removed as soon as their answer has ended. @throws the same */
export function killKernelsWithBasesThatGo(
  seed: number,
  kills: number,
  onProgress?: OnProgress
): Promise<RecordKernelKillsReport> {
  return killAgainAndAgain('record-kernel-life.ts', seed, kills, onProgress, (journal) => {
    const checked = readJournal<RecordLifeEntry>(journal).filter((entry) => entry.kind === 'checked')
    const refused: Record<string, number> = {}
    for (const each of checked) {
      for (const [code, count] of Object.entries(each.refused)) refused[code] = (refused[code] ?? 0) + count
    }
    return { right: checked.reduce((sum, { right }) => sum + right, 0), refused }
  })
}

async function killAgainAndAgain<Report>(
  script: string,
  seed: number,
  kills: number,
  onProgress: OnProgress = () => undefined,
  report: (journal: string) => Report
): Promise<Kills & Report> {
  const random = new Random(seed)
  const folder = await mkdtemp(join(tmpdir(), 'kernel-kills-'))
  const disk = join(folder, 'disk')
  const journal = join(folder, 'journal')
  const file = await open(disk, 'w')
  await file.truncate(DISK_BYTES)
  await file.close()
  let whileStarting = 0
  try {
    for (let life = 0; life <= kills; life++) {
      const last = life === kills
      // (The first one has to set everything up.)
      const early = !last && life > 0 && random.chance(0.3)
      const moment = random.integer(0, LONGEST_MOMENT)
      try {
        await live({ script, disk, journal, seed, life, last }, early ? 'up' : 'busy', moment)
      } catch (error) {
        throw new Error(`life ${life} of seed ${seed}, ${kills} kills: ${(error as Error).message}`, { cause: error })
      }
      if (early) whileStarting++
      if (!last) onProgress(`kernel killed ${life + 1} times, ${moment} ms after it was ${early ? 'up' : 'busy'}`)
    }
    return { kills, whileStarting, ...report(journal) }
  } finally {
    await rm(folder, { recursive: true })
  }
}

interface LifeOptions {
  /** In test/kernel/. */
  script: string
  disk: string
  journal: string
  seed: number
  life: number
  /** This one ends by itself. */
  last: boolean
}

/** One life, killed some milliseconds after it has said a word. @throws when it ends before that */
async function live(options: LifeOptions, word: string, moment: number): Promise<void> {
  const { disk, journal, seed, life, last } = options
  let said = ''
  let complaint = ''
  const hears = Promise.withResolvers<void>()
  const script = join(projectFolder, 'test/kernel', options.script)
  const words = ['--journal', journal, '--seed', String(seed), '--life', String(life), ...(last ? ['--last'] : [])]
  const lab = await startLab({
    command: [process.execPath, script, ...words],
    disk,
    environment: labVariables(process.env),
    timeoutSeconds: PATIENCE_S,
    onOutput: (stream, chunk) => {
      if (stream === 'stderr') complaint += chunk.toString()
      else said += chunk.toString()
      if (said.split('\n').includes(word)) hears.resolve()
    }
  })
  const ended = lab.result.then(({ status }) => {
    if (!last || status !== 0) throw new Error(`it ended by itself (${status}): ${complaint.trim()}`)
  })
  await Promise.race([ended, hears.promise])
  if (!last) await Promise.race([ended, sleep(moment)])
  if (last) return ended
  lab.kill()
  // That it was killed is what it is to say; whatever else it says is a failure of its own.
  await lab.result.then(
    ({ status }) => {
      throw new Error(`it ended by itself (${status}): ${complaint.trim()}`)
    },
    (error: unknown) => {
      if (!/\(killed\)/.test((error as Error).message)) throw error
    }
  )
}
