/**
 * Minimal roots of Debian 12 and 13, in which a package is installed for real: dpkg, its scripts and everything that
 * they call are that release's. There is no init inside, and no network. It takes the rights of root to be in one.
 */
import { cp, mkdtemp, rm } from 'node:fs/promises'
import { execFile } from 'node:child_process'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { promisify } from 'node:util'
import { completeFolder } from './complete-folder.ts'
import { installRelease, runQuietly } from './debian-release.ts'
import { LabUnavailable, projectFolder } from './packages.ts'

export const debianReleases = ['bookworm', 'trixie'] as const
export type DebianRelease = (typeof debianReleases)[number]

const folderOf = (release: DebianRelease) => join(projectFolder, '.cache', 'lab', `${release}-minimal-1`)

/** Makes the root of a release unless it is there. Throws LabUnavailable where it cannot be had. */
export async function ensureDebianRoot(release: DebianRelease): Promise<string> {
  if (process.getuid?.() !== 0) throw new LabUnavailable('a root of Debian is for root: chroot needs the right')
  const folder = folderOf(release)
  await completeFolder(folder, (root, work) => installRelease(release, '', { root, work }))
  return folder
}

export interface Said {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

/** A root of one's own, which goes with the test. */
export class DebianRoot implements AsyncDisposable {
  readonly folder: string

  private constructor(folder: string) {
    this.folder = folder
  }

  static async create(release: DebianRelease): Promise<DebianRoot> {
    const from = await ensureDebianRoot(release)
    const folder = await mkdtemp(join(tmpdir(), `deltamapper-${release}-`))
    await runQuietly('cp', ['--archive', '--reflink=auto', `${from}/.`, folder], folder)
    return new DebianRoot(folder)
  }

  /** Puts a file into its /root. @returns the path inside */
  async put(path: string): Promise<string> {
    const inside = `/root/${basename(path)}`
    await cp(path, this.folder + inside)
    return inside
  }

  /** Runs a script of bash inside, without a network; /proc and /tmp are its own. */
  async run(script: string): Promise<Said> {
    const words = ['--mount', '--net', '--ipc', '--pid', '--fork', 'sh', '-c']
    const enter = `mount -t proc proc "$0/proc" && mount -t tmpfs tmp "$0/tmp" && exec chroot "$0" /bin/bash -euo pipefail -c "$1" </dev/null`
    const env = {
      PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
      LC_ALL: 'C.UTF-8',
      HOME: '/root',
      DEBIAN_FRONTEND: 'noninteractive'
    }
    try {
      const options = { env, maxBuffer: 2 ** 24 }
      const { stdout, stderr } = await promisify(execFile)('unshare', [...words, enter, this.folder, script], options)
      return { status: 0, stdout, stderr }
    } catch (error) {
      const { code, stdout, stderr } = error as { code?: number; stdout?: string; stderr?: string }
      if (typeof code !== 'number') throw error
      return { status: code, stdout: stdout ?? '', stderr: stderr ?? '' }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.folder, { recursive: true, force: true })
  }
}

// `node test/lab/debian-root.ts` makes them: how scripts/test.mjs does it before the tests.
if (import.meta.main) {
  try {
    for (const each of debianReleases) console.log(await ensureDebianRoot(each))
  } catch (error) {
    console.error((error as Error).message)
    process.exitCode = error instanceof LabUnavailable ? 3 : 1
  }
}
