/**
 * Boots a machine that tracks a volume, ends that boot one way or another, and boots it again, perhaps with a rescue system in between: what
 * happens inside is in test/kernel/era-restart-life.ts.
 */
import { mkdtemp, open, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { projectFolder, startLab } from './boot.ts'
import { labVariables } from './run.ts'

const DISK_BYTES = 128 * 2 ** 20
/** A boot that has not come to its end by then has failed. Seconds. */
const PATIENCE_S = 1200

export interface Restart {
  /** How the first boot ends: in order, after `era deactivate` by hand, or with the volume active. */
  readonly ends: 'shutdown' | 'deactivated' | 'crash'
  /** Whether another system is booted in between, and writes. */
  readonly rescue: boolean
}

export interface AfterRestart {
  /** `answered`, or the code that there is instead. */
  readonly outcome: string
  readonly lineBecause: string
  /** Blocks that differ, and how many of them were not in the answer. */
  readonly differ: number
  readonly missed: number
}

/** @throws what a boot says is wrong; LabUnavailable where this machine cannot run a lab */
export async function restart({ ends, rescue }: Restart, seed: number): Promise<AfterRestart> {
  const folder = await mkdtemp(join(tmpdir(), 'era-restarts-'))
  const [disk, journal] = [join(folder, 'disk'), join(folder, 'journal')]
  try {
    const file = await open(disk, 'w')
    await file.truncate(DISK_BYTES)
    await file.close()
    for (const boot of ['first', ...(rescue ? ['rescue'] : []), 'last']) {
      await live(disk, ['--boot', boot, '--ends', ends, '--journal', journal, '--seed', String(seed)], boot === 'first')
    }
    return JSON.parse(await readFile(journal, 'utf8')) as AfterRestart
  } finally {
    await rm(folder, { recursive: true })
  }
}

/** @param killed whether it is killed once it says that it is done, as in a power cut; it ends by itself otherwise */
async function live(disk: string, words: readonly string[], killed: boolean): Promise<void> {
  const done = Promise.withResolvers<void>()
  let [said, complaint] = ['', '']
  const lab = await startLab({
    command: [process.execPath, join(projectFolder, 'test/kernel/era-restart-life.ts'), ...words],
    disk,
    environment: labVariables(process.env),
    timeoutSeconds: PATIENCE_S,
    onOutput: (stream, chunk) => {
      if (stream === 'stderr') complaint += chunk.toString()
      else said += chunk.toString()
      if (said.split('\n').includes('done')) done.resolve()
    }
  })
  const ended = lab.result.then(({ status }) => {
    if (killed || status !== 0)
      throw new Error(`${words.join(' ')}: it ended by itself (${status}): ${complaint.trim()}`)
  })
  if (!killed) return ended
  await Promise.race([ended, done.promise])
  lab.kill()
  await lab.result.catch((error: unknown) => {
    if (!/\(killed\)/.test((error as Error).message)) throw error
  })
  // (It says that it ended, having been killed.)
  await ended.catch(() => undefined)
}
