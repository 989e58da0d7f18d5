/**
 * The NBD clients that people have, for tests: qemu-img, nbdinfo, nbdcopy, nbdkit, and Python with libnbd, of a given Debian release.
 *
 * Downloaded and unpacked into `.cache/lab/`, never installed, with everything that they need, libc included: each is started by its own
 * release's loader, so that they run on a machine of any release. As in packages.ts, a folder that exists is complete.
 */
import { existsSync } from 'node:fs'
import { chmod, mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { completeFolder } from './complete-folder.ts'
import { unpackRelease } from './debian-release.ts'
import { LabUnavailable, projectFolder } from './packages.ts'

/** The releases whose tools tests use; `sid` has what comes next. */
export type NbdRelease = 'bookworm' | 'trixie' | 'sid'

const packages = ['qemu-utils', 'libnbd-bin', 'nbdkit', 'python3-libnbd']
const programs = ['qemu-img', 'qemu-nbd', 'qemu-io', 'nbdinfo', 'nbdcopy', 'nbdkit']

const cache = join(projectFolder, '.cache', 'lab')

/** Downloads and unpacks a release's tools unless they are there. Returns a folder for PATH. Throws LabUnavailable where they cannot be had. */
export async function ensureNbdTools(release: NbdRelease): Promise<string> {
  return ensureTools(release, `${release}-nbd-2`, packages, [...programs, 'python3'])
}

/** borg 2 with --map, which no release but sid has. */
export async function ensureBorg2(): Promise<string> {
  return ensureTools('sid', 'sid-borg2-2', ['borgbackup2'], ['borg2'])
}

async function ensureTools(
  release: NbdRelease,
  name: string,
  wanted: readonly string[],
  wrapped: readonly string[]
): Promise<string> {
  const folder = join(cache, name)
  await completeFolder(folder, async (root, work) => {
    await mkdir(join(root, 'bin-for-tests'))
    await unpackRelease(release, wanted, { work, root, whole: true })
    for (const program of wrapped) await writeStarter(root, program)
  })
  return join(folder, 'bin-for-tests')
}

/** A script that starts a program of the tree, wherever that is moved, with the tree's own loader, libraries and Python. */
async function writeStarter(root: string, program: string): Promise<void> {
  const libraries = ['usr/lib/x86_64-linux-gnu', 'lib/x86_64-linux-gnu']
  const loader = ['lib', 'usr/lib']
    .map((each) => `${each}/x86_64-linux-gnu/ld-linux-x86-64.so.2`)
    .find((each) => existsSync(join(root, each)))
  if (loader === undefined) throw new LabUnavailable('the libc of these packages has no loader where one was expected')
  const pythons = await readdir(join(root, 'usr/bin'))
  const python = pythons.find((each) => /^python3\.\d+$/.test(each))
  const isScript = program === 'borg2'
  const started = program === 'python3' || isScript ? `usr/bin/${python}` : `usr/bin/${program}`
  const inTree = (path: string) => `"$tree/${path}"`
  const text = `#!/bin/sh
tree="\${0%/*}/.."
export PYTHONHOME="$tree/usr" PYTHONPATH="$tree/usr/lib/python3/dist-packages:$tree/usr/lib/borgbackup2" PYTHONDONTWRITEBYTECODE=1
exec ${inTree(loader)} --library-path "${libraries.map((each) => `$tree/${each}`).join(':')}" \\
  ${inTree(started)} ${isScript ? `${inTree(`usr/bin/${program}`)} ` : ''}"$@"
`
  const path = join(root, 'bin-for-tests', program)
  await writeFile(path, text)
  await chmod(path, 0o755)
}

// `node test/lab/nbd-tools.ts [RELEASE|borg2]…` fetches them: how scripts/test.mjs does it before the tests.
if (import.meta.main) {
  try {
    const named = process.argv.slice(2)
    for (const each of named.length > 0 ? named : ['bookworm', 'trixie']) {
      console.log(each === 'borg2' ? await ensureBorg2() : await ensureNbdTools(each as NbdRelease))
    }
  } catch (error) {
    console.error((error as Error).message)
    process.exitCode = error instanceof LabUnavailable ? 3 : 1
  }
}
