/**
 * fio, a load generator, for benchmarks in the kernel lab: Debian's package and the libraries that it wants beside the machine's own,
 * unpacked into `.cache/lab/`, never installed. Apart from packages.ts, because tests do not need it and it brings 20 MB of libraries. As
 * there, a folder that exists is complete.
 */
import { execFile } from 'node:child_process'
import { mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { completeFolder } from './complete-folder.ts'
import { LabUnavailable, projectFolder } from './packages.ts'

const cache = join(projectFolder, '.cache', 'lab')
const folder = join(cache, 'fio-1')

/** Where fio is, and what its LD_LIBRARY_PATH has to begin with. Downloads it first if need be; throws LabUnavailable where it cannot be had. */
export async function ensureFio(): Promise<{ path: string; libraries: string }> {
  await completeFolder(folder, unpack).catch((error: Error) => {
    throw new LabUnavailable(`fio could not be fetched from Debian: ${error.message}`, { cause: error })
  })
  const folders = ['usr/lib/x86_64-linux-gnu', 'usr/lib/x86_64-linux-gnu/ceph', 'lib/x86_64-linux-gnu']
  const libraries = folders.map((each) => join(folder, each)).join(':')
  return { path: join(folder, 'usr/bin/fio'), libraries }
}

async function unpack(root: string, work: string): Promise<void> {
  const archives = join(work, 'archives')
  await mkdir(join(archives, 'partial'), { recursive: true })
  // What an installation would bring, so that all its libraries come with it; only downloaded, so that it locks nothing.
  const options = ['APT::Sandbox::User=root', `Dir::Cache::archives=${archives}`, 'Debug::NoLocking=1']
  const words = ['install', '--download-only', '--yes', '--no-install-recommends', '-q', 'fio']
  await run('apt-get', [...options.flatMap((each) => ['-o', each]), ...words])
  for (const file of await readdir(archives)) {
    if (file.endsWith('.deb')) await run('dpkg', ['-x', join(archives, file), root])
  }
}

async function run(program: string, args: readonly string[]): Promise<void> {
  await promisify(execFile)(program, args, { env: { ...process.env, LC_ALL: 'C' }, maxBuffer: 2 ** 24 })
}
