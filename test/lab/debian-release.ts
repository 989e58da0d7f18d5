/**
 * Packages of a given Debian release, on a machine of any: downloaded from where the machine's own come from, with private package lists, and
 * unpacked, never installed. What is in them may want that release's libraries, which is the caller's business.
 */
import { execFile } from 'node:child_process'
import { mkdir, readdir, writeFile } from 'node:fs/promises'
import { arch, platform } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { LabUnavailable } from './packages.ts'

/**
 * Unpacks into `root`; `work` is a folder for what is needed meanwhile. Throws LabUnavailable where the packages cannot be had.
 *
 * @param whole bring everything that they depend on as well, libc included, as on a system without a single package
 * @param architecture Debian's name of another processor than this machine's
 * @param without with `whole`: what is left out all the same
 * @returns the files of the packages, in `work`
 */
export async function unpackRelease(
  release: string,
  packages: readonly string[],
  {
    work,
    root,
    whole = false,
    architecture,
    without = []
  }: {
    work: string
    root: string
    whole?: boolean
    architecture?: string
    without?: readonly string[]
  }
): Promise<string[]> {
  if (platform() !== 'linux' || arch() !== 'x64') {
    throw new LabUnavailable(`Debian's tools need x86-64 Linux; this is ${platform()} on ${arch()}`)
  }
  const own = join(work, release)
  for (const each of ['lists/partial', 'archives/partial']) await mkdir(join(own, each), { recursive: true })
  const format = ['--format', '$(ORIGIN) $(LABEL) $(REPO_URI)', 'Created-By: Packages']
  const targets = await runQuietly('apt-get', ['indextargets', ...format], own)
  const archive = /^Debian Debian (\S+)$/m.exec(targets)?.[1]
  if (archive === undefined) throw new LabUnavailable('apt-get knows no Debian archive on this machine')
  const keys = '/usr/share/keyrings/debian-archive-keyring.gpg'
  await writeFile(join(own, 'sources.list'), `deb [signed-by=${keys}] ${archive} ${release} main\n`)
  // As root, apt would otherwise drop to a user that may not write here.
  const options = [
    ...['APT::Sandbox::User=root', `Dir::Etc::sourcelist=${own}/sources.list`, 'Dir::Etc::sourceparts=/dev/null'],
    ...[`Dir::State::Lists=${own}/lists`, `Dir::Cache=${own}`, 'APT::Update::Error-Mode=any'],
    ...(whole ? [`Dir::State::status=${own}/status`] : []),
    ...(architecture === undefined ? [] : [`APT::Architecture=${architecture}`, `APT::Architectures=${architecture}`])
  ].flatMap((each) => ['-o', each])
  try {
    if (whole) await writeFile(join(own, 'status'), '')
    await runQuietly('apt-get', [...options, 'update', '-q'], own)
    const all = whole ? await withDependencies(packages, options, own) : packages
    const names = all.filter((each) => !without.includes(each.replace(/:.*/, '')))
    await runQuietly('apt-get', [...options, 'download', '-q', ...names], own)
  } catch (error) {
    if (error instanceof LabUnavailable) throw error
    throw new LabUnavailable(`Debian ${release}'s packages could not be fetched: ${(error as Error).message}`)
  }
  const files = (await readdir(own)).filter((file) => file.endsWith('.deb')).map((file) => join(own, file))
  for (const file of files) await runQuietly('dpkg', ['-x', file, root], own)
  return files
}

/**
 * Installs a minimal system of a release into `root`, as on a machine of its own: packages are configured, which wants the rights of root.
 *
 * @param packages names joined by commas; none for what every Debian has
 */
export async function installRelease(
  release: string,
  packages: string,
  { work, root }: { work: string; root: string }
): Promise<void> {
  try {
    // (A script for perl and apt. It is unpacked like all else, so that nothing need be installed.)
    const tools = join(work, 'tools')
    await mkdir(tools)
    await unpackRelease('bookworm', ['mmdebstrap'], { work, root: tools })
    const include = packages === '' ? [] : [`--include=${packages}`]
    await runQuietly(join(tools, 'usr/bin/mmdebstrap'), ['--variant=minbase', ...include, release, root], work)
  } catch (error) {
    if (error instanceof LabUnavailable) throw error
    throw new LabUnavailable(`a root of Debian ${release} could not be made: ${(error as Error).message}`)
  }
}

/** What installing them would bring. */
async function withDependencies(packages: readonly string[], options: string[], own: string): Promise<string[]> {
  const words = [...options, '--simulate', '--no-install-recommends', 'install', ...packages]
  const plan = await runQuietly('apt-get', words, own)
  return [...plan.matchAll(/^Inst (\S+)/gm)].map(([, name]) => name)
}

/** Returns stdout. Throws LabUnavailable where there is no such program. */
export async function runQuietly(program: string, args: readonly string[], cwd: string): Promise<string> {
  try {
    const env = { ...process.env, LC_ALL: 'C' }
    return (await promisify(execFile)(program, args, { cwd, env, maxBuffer: 2 ** 24 })).stdout
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    throw new LabUnavailable(`these tools come from packages, and this machine has no ${program}`)
  }
}
