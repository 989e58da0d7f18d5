/**
 * Debian 13's thin-provisioning-tools (1.1.0, written in Rust) beside the lab's own, on a machine of any Debian release: another program
 * with other bugs, for tests on the host.
 *
 * They are downloaded and unpacked into `.cache/lab/`, never installed (debian-release.ts). They want Debian 13's libc, so that is unpacked too, and each tool is started through its
 * loader: by a small script in its name, so that whoever starts it need not know. As with packages.ts, a folder that exists is complete.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { completeFolder } from './complete-folder.ts'
import { unpackRelease } from './debian-release.ts'
import { projectFolder } from './packages.ts'
import type { ThinTool, ThinToolName } from './tools.ts'

const release = 'trixie'
const packages = ['thin-provisioning-tools', 'libc6', 'libgcc-s1', 'libudev1', 'libcap2']
const names: readonly ThinToolName[] = [
  ...(['thin_check', 'thin_delta', 'thin_dump', 'thin_ls', 'thin_metadata_size', 'thin_repair'] as const),
  ...(['thin_restore', 'thin_rmap', 'era_check', 'era_dump', 'era_invalidate', 'era_restore'] as const)
]
const folder = join(projectFolder, '.cache', 'lab', `${release}-tools-1`)

/** Downloads and unpacks the tools unless they are there. Throws LabUnavailable where they cannot be had. */
export async function ensureTrixieTools(): Promise<void> {
  await completeFolder(folder, async (root, work) => {
    const unpacked = join(root, 'root')
    await mkdir(unpacked)
    await unpackRelease(release, packages, { work, root: unpacked })
    for (const name of names) await writeFile(join(root, name), script(name), { mode: 0o755 })
  })
}

/** Where a tool is. They must be there (`ensureTrixieTools()`). */
export function trixieTool(name: ThinToolName): ThinTool {
  return { path: join(folder, name), env: { ...process.env, LC_ALL: 'C' } }
}

/** One program is all of the tools; it takes the name of the one that is wanted as its first word. */
function script(name: ThinToolName): string {
  return `#!/bin/sh
root="\${0%/*}/root"
exec "$root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" \\
  "$root/usr/sbin/pdata_tools" ${name} "$@"
`
}
