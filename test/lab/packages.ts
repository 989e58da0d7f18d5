/**
 * What the kernel lab is made of: Debian packages, downloaded and unpacked into `.cache/lab/`, never installed.
 *
 * apt-get picks the versions of the machine's own release, so that everything unpacked runs on the machine's own libc. The
 * folder's name carries the release and a hash of the list below; a folder that exists is complete, because it is renamed into
 * place only at the end. So two processes may prepare the lab at the same time: the second throws its own work away.
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { mkdir, readdir } from 'node:fs/promises'
import { arch, platform } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { completeFolder } from './complete-folder.ts'

/** Debian's names; `a|b` takes the first one that the release has (library names changed with the 64-bit time_t). */
const packages = [
  // the kernel and its modules
  'user-mode-linux',
  'kmod',
  // mount, ip, poweroff in one program that needs only libc: minimal systems lack some of them
  'busybox-static|busybox',
  // device-mapper and LVM
  'dmsetup',
  'lvm2',
  'thin-provisioning-tools',
  'libdevmapper1.02.1',
  'libdevmapper-event1.02.1',
  // device nodes and events as on a real host: one test starts a udevd of its own
  'udev',
  // ext4 and block devices
  'e2fsprogs',
  'libext2fs2t64|libext2fs2',
  'libss2',
  'libcom-err2',
  // what those need and a minimal system may not have
  'libaio1t64|libaio1',
  'libedit2',
  'libbsd0',
  'libmd0',
  'libexpat1',
  'liblzma5',
  'libreadline8t64|libreadline8',
  'libssl3t64|libssl3',
  'libtinfo6',
  'libkmod2',
  'libblkid1',
  'libacl1',
  'libcap2',
  'libselinux1',
  'libpcre2-8-0',
  'libzstd1'
]

export const projectFolder = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')

/** This machine cannot run the lab, and why: a reason to skip what needs it, not a failure of what is tested. */
export class LabUnavailable extends Error {
  override name = 'LabUnavailable'
}

/** Where the programs of the unpacked packages are, most specific first. */
export const programFolders = ['usr/sbin', 'usr/bin', 'sbin', 'bin']
const libraryFolders = ['usr/lib/x86_64-linux-gnu', 'lib/x86_64-linux-gnu']

/** PATH and LD_LIBRARY_PATH that find the lab's programs and libraries first, on the host as well as inside the lab. */
export function labEnvironment(folder: string): { PATH: string; LD_LIBRARY_PATH: string } {
  const inLab = (folders: string[]) => folders.map((each) => join(folder, each)).join(':')
  return {
    PATH: `${inLab(programFolders)}:${process.env.PATH ?? ''}:/usr/sbin:/usr/bin:/sbin:/bin`,
    LD_LIBRARY_PATH: inLab(libraryFolders)
  }
}

/** The folder the packages are (or would be) unpacked in. Throws LabUnavailable where no lab is possible. */
export function labFolder(): string {
  if (platform() !== 'linux' || arch() !== 'x64') {
    throw new LabUnavailable(`the kernel lab needs x86-64 Linux; this is ${platform()} on ${arch()}`)
  }
  const list = createHash('sha256').update(packages.join('\n')).digest('hex').slice(0, 8)
  return join(projectFolder, '.cache', 'lab', `${release()}-${list}`)
}

/** Downloads and unpacks the lab unless it is there. Returns its folder; throws LabUnavailable where it cannot be had. */
export async function ensureLab(): Promise<string> {
  const folder = labFolder()
  await completeFolder(folder, async (root, work) => {
    await download(work)
    for (const file of await readdir(work)) {
      if (file.endsWith('.deb')) await run('dpkg', ['-x', file, root], work)
    }
  })
  return folder
}

/** First with the machine's own package lists; when they are missing or stale, with private ones fetched for this purpose. */
async function download(work: string): Promise<void> {
  // As root, apt would otherwise drop to a user that may not write here, and say so on every call.
  const options = ['-o', 'APT::Sandbox::User=root', '-o', `Dir::Cache=${work}/apt-cache`]
  await mkdir(join(work, 'apt-cache', 'archives', 'partial'), { recursive: true })
  try {
    await downloadWith(options, work)
  } catch (error) {
    if (error instanceof LabUnavailable) throw error
    options.push('-o', `Dir::State::Lists=${work}/lists`)
    await mkdir(join(work, 'lists', 'partial'), { recursive: true })
    try {
      await run('apt-get', [...options, '-o', 'APT::Update::Error-Mode=any', 'update', '-q'], work)
      await downloadWith(options, work)
    } catch (again) {
      throw new LabUnavailable(`the kernel lab's Debian packages could not be fetched: ${(again as Error).message}`)
    }
  }
}

async function downloadWith(options: string[], work: string): Promise<void> {
  const alternatives = packages.map((each) => each.split('|'))
  const policy = await run('apt-cache', [...options, 'policy', ...alternatives.flat()], work)
  const known = new Set([...policy.matchAll(/^(\S+):\n.*\n +Candidate: (?!\(none\))/gm)].map((match) => match[1]))
  const names = alternatives.map((names) => {
    const name = names.find((each) => known.has(each))
    if (name === undefined) throw new Error(`no package ${names.join(' or ')} in the package lists`)
    return name
  })
  await run('apt-get', [...options, 'download', '-q', ...names], work)
}

async function run(program: string, args: string[], cwd: string): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(program, args, {
      cwd,
      env: { ...process.env, LC_ALL: 'C' },
      maxBuffer: 2 ** 24
    })
    return stdout
  } catch (error) {
    const { code, stderr } = error as NodeJS.ErrnoException & { stderr?: string }
    if (code === 'ENOENT') {
      throw new LabUnavailable(`the kernel lab is made of Debian packages, and this machine has no ${program}`)
    }
    const said = (stderr ?? '').trim().split('\n').slice(-3).join(' / ')
    throw new Error(`${program} ${args.find((each) => /^[a-z]/.test(each)) ?? ''} failed: ${said}`, { cause: error })
  }
}

function release(): string {
  const text = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : ''
  const field = (name: string) => new RegExp(`^${name}="?([^"\n]*)`, 'm').exec(text)?.[1] ?? 'unknown'
  return `${field('ID')}-${field('VERSION_ID')}`
}

// `node test/lab/packages.ts` prepares the lab and prints its folder: how scripts/setup.mjs calls it from an older Node.
if (import.meta.main) {
  try {
    console.log(await ensureLab())
  } catch (error) {
    console.error(error instanceof LabUnavailable ? error.message : error)
    process.exitCode = error instanceof LabUnavailable ? 3 : 1
  }
}
