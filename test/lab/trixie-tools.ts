/**
 * Debian 13's thin-provisioning-tools (1.1.0, written in Rust) beside the lab's own, on a machine of any Debian release: another program
 * with other bugs, for tests on the host.
 *
 * They are downloaded from where this machine's own packages come from, with the release's name changed and private package lists, and
 * unpacked into `.cache/lab/`, never installed. They want Debian 13's libc, so that is unpacked too, and each tool is started through its
 * loader: by a small script in its name, so that whoever starts it need not know. As with packages.ts, a folder that exists is complete.
 */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, rename, rm, writeFile } from 'node:fs/promises'
import { arch, platform } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { LabUnavailable, projectFolder } from './packages.ts'
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
  if (existsSync(folder)) return
  if (platform() !== 'linux' || arch() !== 'x64') {
    throw new LabUnavailable(`Debian's tools need x86-64 Linux; this is ${platform()} on ${arch()}`)
  }
  const cache = join(folder, '..')
  await mkdir(cache, { recursive: true })
  const work = await mkdtemp(join(cache, 'new-'))
  try {
    await download(work)
    const root = join(work, 'unpacked', 'root')
    await mkdir(root, { recursive: true })
    for (const file of await readdir(work)) {
      if (file.endsWith('.deb')) await run('dpkg', ['-x', join(work, file), root], work)
    }
    for (const name of names) await writeFile(join(work, 'unpacked', name), script(name), { mode: 0o755 })
    await rename(join(work, 'unpacked'), folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error
    })
  } finally {
    await rm(work, { recursive: true, force: true })
  }
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

async function download(work: string): Promise<void> {
  const format = ['--format', '$(ORIGIN) $(LABEL) $(REPO_URI)', 'Created-By: Packages']
  const targets = await run('apt-get', ['indextargets', ...format], work)
  const archive = /^Debian Debian (\S+)$/m.exec(targets)?.[1]
  if (archive === undefined) throw new LabUnavailable('apt-get knows no Debian archive on this machine')
  const keys = '/usr/share/keyrings/debian-archive-keyring.gpg'
  await writeFile(join(work, 'sources.list'), `deb [signed-by=${keys}] ${archive} ${release} main\n`)
  for (const each of ['lists/partial', 'archives/partial']) await mkdir(join(work, each), { recursive: true })
  // As root, apt would otherwise drop to a user that may not write here.
  const options = [
    ...['APT::Sandbox::User=root', `Dir::Etc::sourcelist=${work}/sources.list`, 'Dir::Etc::sourceparts=/dev/null'],
    ...[`Dir::State::Lists=${work}/lists`, `Dir::Cache=${work}`, 'APT::Update::Error-Mode=any']
  ].flatMap((each) => ['-o', each])
  try {
    await run('apt-get', [...options, 'update', '-q'], work)
    await run('apt-get', [...options, 'download', '-q', ...packages], work)
  } catch (error) {
    if (error instanceof LabUnavailable) throw error
    throw new LabUnavailable(`Debian ${release}'s packages could not be fetched: ${(error as Error).message}`)
  }
}

async function run(program: string, args: string[], cwd: string): Promise<string> {
  try {
    const env = { ...process.env, LC_ALL: 'C' }
    return (await promisify(execFile)(program, args, { cwd, env, maxBuffer: 2 ** 24 })).stdout
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    throw new LabUnavailable(`these tools come from Debian's packages, and this machine has no ${program}`)
  }
}
