/**
 * Keeps file systems frozen for as long as the snapshots of several volumes take, so that they are of one moment.
 *
 * A shell does it, by `fsfreeze`, and thaws as soon as this process lets go of it, or ends (however it ends), or hangs.
 * Whoever kills the shell too leaves them frozen. So it is noted in the chain before, and the next run thaws them.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, stat } from 'node:fs/promises'
import { z } from 'zod'
import { decodeDeviceNumber } from '../../native/device.ts'
import { DeltamapperError } from '../errors.ts'
import { childEnvironment } from '../search-path.ts'
import type { Chain } from './chain.ts'

/** Within which the snapshots have to be taken, in seconds: whoever writes to the file systems waits for as long. */
const DEADLINE_SECONDS = 30
/**
 * Freezes its arguments in order, says so, waits for the end of its input or the deadline, and thaws those that it has
 * frozen. (`timeout` sends KILL, because what a shell ignores its children ignore.) Status 9: not in time.
 */
const SCRIPT = `
trap '' INT TERM HUP
deadline=$1
shift
count=0
for each; do fsfreeze --freeze "$each" || break; count=$((count + 1)); done
[ "$count" = $# ] && echo frozen || echo failed
late=0
timeout --signal=KILL "$deadline" cat >/dev/null || late=9
for each; do
  [ "$count" -gt 0 ] || break
  count=$((count - 1))
  fsfreeze --unfreeze "$each" || late=9
done
exit "$late"
`
/** Folders that LVM and this program write to: a file system that has one of them cannot wait for itself. */
const OURS = ['/', '/dev', '/etc', '/run', '/tmp', '/var', '/var/lib', '/var/lib/deltamapper', '/var/log']

/** What is frozen now, in a chain's folder. */
const NOTE = 'frozen.json'
const frozenNote = z.object({ boot: z.string(), mountPoints: z.array(z.string()).readonly() })

export class Frozen {
  readonly #shell: ChildProcess
  readonly #chains: readonly Chain[]

  private constructor(shell: ChildProcess, chains: readonly Chain[]) {
    this.#shell = shell
    this.#chains = chains
  }

  /**
   * @param chains are locked until all is thawed, also where this process has ended
   * @throws DM_FREEZE_FAILED; then nothing is frozen
   */
  static async freeze(mountPoints: readonly string[], chains: readonly Chain[]): Promise<Frozen> {
    const noted = JSON.stringify({ boot: await bootId(), mountPoints } satisfies z.infer<typeof frozenNote>)
    for (const chain of chains) await chain.note(NOTE, noted)
    const shell = spawn('/bin/sh', ['-c', SCRIPT, 'sh', String(DEADLINE_SECONDS), ...mountPoints], {
      detached: true,
      stdio: ['pipe', 'pipe', 'pipe', ...chains.flatMap((chain) => chain.lockDescriptors)],
      env: childEnvironment({ LC_ALL: 'C' })
    })
    const frozen = new Frozen(shell, chains)
    let said = ''
    shell.stderr?.setEncoding('utf8').on('data', (text: string) => (said += text))
    const [answer] = (await Promise.race([once(shell.stdout ?? shell, 'data'), once(shell, 'exit')])) as [unknown]
    if (String(answer).trim() === 'frozen') return frozen
    await frozen.thaw()
    throw new DeltamapperError(
      'DM_FREEZE_FAILED',
      `${mountPoints.join(', ')} could not be frozen: ${said.trim().replaceAll(/\s+/g, ' ')}`,
      'thaw what is frozen already (fsfreeze -u), or say --no-freeze'
    )
  }

  /** Once it is thawed: whether a file system was so before it was asked for. */
  get hasThawedEarly(): boolean {
    return this.#shell.exitCode !== 0
  }

  /** Resolves when all of them are thawed. */
  async thaw(): Promise<void> {
    if (this.#shell.exitCode === null && this.#shell.signalCode === null) {
      const ended = once(this.#shell, 'exit')
      this.#shell.stdin?.end()
      await ended
    }
    // (A shell that was killed has thawed nothing: then the note stays for the next run.)
    if (this.#shell.exitCode !== null) for (const chain of this.#chains) await chain.remove(NOTE)
  }
}

/** Thaws what a run that was killed with all its processes has left frozen. Nothing where there was no such run. */
export async function thawLeft(chain: Chain): Promise<void> {
  const text = await chain.readNote(NOTE)
  if (text === undefined) return
  const note = frozenNote.safeParse(parsed(text))
  // (After a restart of the machine nothing is frozen; and what never was frozen says so, which does not matter.)
  if (note.success && note.data.boot === (await bootId())) {
    for (const each of note.data.mountPoints.toReversed()) {
      const thaw = spawn('fsfreeze', ['--unfreeze', each], { stdio: 'ignore', env: childEnvironment({}) })
      await Promise.race([once(thaw, 'exit'), once(thaw, 'error')]).catch(() => undefined)
    }
  }
  await chain.remove(NOTE)
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

async function bootId(): Promise<string> {
  return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
}

/**
 * Where devices are mounted, each once, but for file systems that LVM or this program writes to.
 *
 * @param devices paths
 * @param written folders on file systems that are written to meanwhile
 */
export async function mountPointsOf(devices: readonly string[], written: readonly string[]): Promise<string[]> {
  const numbers = new Set<string>()
  for (const device of devices) {
    const status = await stat(device).catch(() => undefined)
    if (!status?.isBlockDevice()) continue
    const { major, minor } = decodeDeviceNumber(status.rdev)
    numbers.add(`${major}:${minor}`)
  }
  const ours = new Set(
    await Promise.all(
      [...OURS, ...written].map((path) =>
        stat(path).then(
          ({ dev }) => dev,
          () => undefined
        )
      )
    )
  )
  const found = new Map<string, string>()
  for (const line of (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')) {
    const [, , number = '', , mountPoint = ''] = line.split(' ')
    // Spaces and the like are in octal (proc(5)).
    const path = mountPoint.replaceAll(/\\(\d{3})/g, (_, octal: string) =>
      String.fromCharCode(Number.parseInt(octal, 8))
    )
    if (!numbers.has(number) || found.has(number)) continue
    // What another mount hides cannot be reached by its path.
    const dev = await stat(path).then(
      (status) => status.dev,
      () => undefined
    )
    if (dev !== undefined && !ours.has(dev)) found.set(number, path)
  }
  return [...found.values()]
}
