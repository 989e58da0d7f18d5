/**
 * npm packages as package-lock.json has them: exactly this version, with exactly these bytes. What is for another
 * processor than this machine's is not in node_modules, and comes from the registry, through npm's own cache.
 */
import { createHash } from 'node:crypto'
import { cp, mkdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { completeFolder } from '../../test/lab/complete-folder.ts'
import { runQuietly } from '../../test/lab/debian-release.ts'

const project = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')

export interface LockedPackage {
  readonly version: string
  readonly integrity: string
  readonly license?: string
}

/** All packages of package-lock.json, by their folders (`node_modules/NAME`). */
export async function lockedPackages(): Promise<Record<string, LockedPackage>> {
  const lock = JSON.parse(await readFile(join(project, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, LockedPackage>
  }
  return lock.packages
}

/** The folder of a package of the lock file, fetched if need be. */
export async function lockedFolder(name: string): Promise<string> {
  const found = (await lockedPackages())[`node_modules/${name}`]
  if (found === undefined) throw new Error(`package-lock.json has no ${name}`)
  return fetched(name, found)
}

/** The folder of a package, fetched unless it is there. @throws Error if it is not what `integrity` says */
export async function fetched(name: string, { version, integrity }: LockedPackage): Promise<string> {
  const folder = join(project, '.cache/packages', `${name.replace('/', '+')}-${version}`)
  await completeFolder(folder, async (root, work) => {
    const words = ['pack', '--ignore-scripts', '--silent', '--pack-destination', work, `${name}@${version}`]
    const archive = join(work, (await runQuietly('npm', words, work)).trim())
    const [algorithm = '', sum] = integrity.split('-', 2)
    const found = createHash(algorithm)
      .update(await readFile(archive))
      .digest('base64')
    if (found !== sum) throw new Error(`${name}@${version} is not what it is to be: ${algorithm}-${found}`)
    await runQuietly('tar', ['-xzf', archive, '--strip-components=1', '--no-same-owner', '-C', root], work)
  })
  return folder
}

/** Puts a package of the lock file into a folder, as it is. */
export async function copyLocked(name: string, folder: string, wanted = (_path: string) => true): Promise<void> {
  const from = await lockedFolder(name)
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder, { recursive: true })
  await cp(from, folder, { recursive: true, filter: (path) => wanted(path.slice(from.length + 1)) })
}
