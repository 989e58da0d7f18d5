/**
 * Debian releases other than the machine's own, each with its kernel: what the lab's own packages are not, because they run on the machine's libc.
 *
 * A release is a root of its own: its kernel, LVM and thin tools run on its libc. It is downloaded and unpacked into `.cache/lab/` with
 * everything that it depends on, never installed; so no script of a package has run, and what those would have made is made here. As with
 * packages.ts, a folder that exists is complete. sid's stays what it was when it was fetched: remove it to get a newer one.
 */
import { createHash } from 'node:crypto'
import { readdir, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { completeFolder } from './complete-folder.ts'
import { runQuietly, unpackRelease } from './debian-release.ts'
import { LabUnavailable, projectFolder } from './packages.ts'

/**
 * `trixie` is Debian 13 (Linux 6.12); `forky` is to become Debian 14, `sid` is whatever comes next (both Linux 7.2 in November 2026).
 */
export const labReleases = ['trixie', 'forky', 'sid'] as const
export type LabRelease = (typeof labReleases)[number]

const packages = [
  ...['user-mode-linux', 'kmod', 'busybox-static', 'udev'],
  ...['dmsetup', 'lvm2', 'thin-provisioning-tools', 'e2fsprogs', 'util-linux', 'mount'],
  // What Node needs, and what scripts expect of any system.
  ...['libstdc++6', 'bash', 'dash', 'coreutils', 'diffutils', 'findutils', 'grep', 'sed', 'mawk', 'tar', 'gzip'],
  ...['procps', 'hostname', 'libc-bin', 'base-files', 'base-passwd', 'perl-base'],
  // For the kernel's own program, which runs on the machine.
  'patchelf'
]

/** The machine's folders that a release has of its own. */
const system = [
  'bin',
  'boot',
  'dev',
  'etc',
  'lib',
  'lib32',
  'lib64',
  'libx32',
  'proc',
  'run',
  'sbin',
  'sys',
  'usr',
  'var'
]

/** @throws Error for a name that is none */
export function releaseOf(text: string | undefined): LabRelease | undefined {
  if (text === undefined || text === '') return undefined
  const release = labReleases.find((each) => each === text)
  if (release === undefined)
    throw new Error(`there is no release ${text} in the lab: give one of ${labReleases.join(', ')}`)
  return release
}

/** PATH and the like inside: nothing but the release's own. */
export function releaseEnvironment(release: LabRelease): Record<string, string> {
  return { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', LAB_RELEASE: release }
}

/** Folders of the machine that are to be seen in a release's root as well: all but its system's, and `needed` wherever they are. */
export async function hostFolders(needed: readonly string[]): Promise<string[]> {
  const top = (await readdir('/', { withFileTypes: true }))
    .filter((each) => each.isDirectory() && !system.includes(each.name) && each.name !== 'lost+found')
    .map((each) => `/${each.name}`)
  const missing = needed.filter((each) => !top.some((folder) => each.startsWith(`${folder}/`)))
  return [...top, ...missing]
}

/** Downloads and unpacks a release unless it is there. Returns its folder; throws LabUnavailable where it cannot be had. */
export async function ensureRelease(release: LabRelease): Promise<string> {
  const cache = join(projectFolder, '.cache', 'lab')
  // (Its kernel names the folder that it was unpacked for.)
  const place = createHash('sha256').update(cache).digest('hex').slice(0, 8)
  const folder = join(cache, `${release}-root-2-${place}`)
  await completeFolder(folder, async (root, work) => {
    await unpackRelease(release, packages, { work, root, whole: true })
    await furnish(root, folder)
  })
  return folder
}

/** What installing the packages would have made, and the first program inside. @param folder where the root will be */
async function furnish(root: string, folder: string): Promise<void> {
  for (const name of ['passwd', 'group']) {
    await runQuietly('cp', [`usr/share/base-passwd/${name}.master`, `etc/${name}`], root)
  }
  await symlink('mawk', join(root, 'usr/bin/awk'))
  const init = `#!/bin/bash
# The machine's folders under their own paths, then what every lab begins with. (util-linux's mount fails on hostfs.)
IFS=: read -ra folders <<<"$LAB_FOLDERS"
for each in "\${folders[@]}"; do busybox mount -t hostfs -o "$each" none "$each"; done
exec "$LAB_JOB/init"
`
  await writeFile(join(root, 'usr/sbin/lab-init'), init, { mode: 0o755 })
  // The kernel is a program of the machine: it finds its release's libc by this. (It does not work when the loader starts it.)
  const libraries = 'usr/lib/x86_64-linux-gnu'
  const loader = join(libraries, 'ld-linux-x86-64.so.2')
  const here = ['--library-path', join(root, libraries), join(root, 'usr/bin/patchelf')]
  const words = ['--set-interpreter', join(folder, loader), '--set-rpath', join(folder, libraries)]
  await runQuietly(join(root, loader), [...here, ...words, join(root, 'usr/bin/linux.uml')], root)
}

// `node test/lab/releases.ts [RELEASE]…` fetches them, trixie by default: how scripts/test.mjs does it before the tests.
if (import.meta.main) {
  try {
    const named = process.argv.slice(2)
    for (const each of named.length > 0 ? named : ['trixie'])
      console.log(await ensureRelease(releaseOf(each) ?? 'trixie'))
  } catch (error) {
    console.error((error as Error).message)
    process.exitCode = error instanceof LabUnavailable ? 3 : 1
  }
}
