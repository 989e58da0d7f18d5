/**
 * Debian 13's LVM (2.03.31) beside the lab's own: what it prints differs from 2.03.26 on.
 *
 * Downloaded and unpacked into `.cache/lab/` as in trixie-tools.ts, with every library it needs, libc included: only the kernel is the
 * machine's or the lab's.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { completeFolder } from './complete-folder.ts'
import { unpackRelease } from './debian-release.ts'
import { LabUnavailable, projectFolder } from './packages.ts'

const release = 'trixie'
const packages = [
  ...['lvm2', 'dmsetup', 'libdevmapper1.02.1', 'libdevmapper-event1.02.1', 'libc6', 'libaio1t64', 'libblkid1'],
  ...[
    'libedit2',
    'libselinux1',
    'libsystemd0',
    'libudev1',
    'libpcre2-8-0',
    'libcap2',
    'libtinfo6',
    'libbsd0',
    'libmd0'
  ],
  'libgcc-s1'
]
const folder = join(projectFolder, '.cache', 'lab', `${release}-lvm-1`)

/** Downloads and unpacks it unless it is there. Throws LabUnavailable where it cannot be had. */
export async function ensureTrixieLvm(): Promise<void> {
  await completeFolder(folder, (root, work) => unpackRelease(release, packages, { work, root }))
}

/** The words that start it; undefined where it has not been fetched. */
export function trixieLvm(): readonly string[] | undefined {
  if (!existsSync(folder)) return undefined
  const libraries = join(folder, 'usr/lib/x86_64-linux-gnu')
  return [join(libraries, 'ld-linux-x86-64.so.2'), '--library-path', libraries, join(folder, 'usr/sbin/lvm')]
}

// `node test/lab/trixie-lvm.ts` fetches it: how scripts/test.mjs does it before the tests.
if (import.meta.main) {
  try {
    await ensureTrixieLvm()
  } catch (error) {
    console.error((error as Error).message)
    process.exitCode = error instanceof LabUnavailable ? 3 : 1
  }
}
