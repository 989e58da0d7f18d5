/**
 * The Debian package of this checkout, made once for all tests of a run, and variants of it: as another version, or
 * one that knows fewer catalogs.
 */
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { makeDeb } from '../../scripts/package/deb.ts'
import { ownArchitecture } from '../../scripts/package/architecture.ts'
import { runQuietly } from './debian-release.ts'

/** Makes this machine's package into a folder, quickly rather than small. @returns its path */
export function quickDeb(output: string): Promise<string> {
  return makeDeb({ architecture: ownArchitecture(), output, compression: 'none' })
}

export interface Variant {
  readonly version: string
  /** The newest schema of a catalog that it is to know. */
  readonly schema?: number
}

/** The same program as a package of another version. @returns its path */
export async function variantOf(deb: string, { version, schema }: Variant, folder: string): Promise<string> {
  const root = join(folder, `variant-${version}`)
  await runQuietly('dpkg-deb', ['--raw-extract', deb, root], folder)
  const control = join(root, 'DEBIAN/control')
  await writeFile(control, (await readFile(control, 'utf8')).replace(/^Version: .*$/m, `Version: ${version}`))
  if (schema !== undefined) {
    const preinst = join(root, 'DEBIAN/preinst')
    const text = (await readFile(preinst, 'utf8'))
      .replace(/-gt \d+/, `-gt ${schema}`)
      .replace(/up to \d+/g, `up to ${schema}`)
    await writeFile(preinst, text)
  }
  const path = join(folder, `deltamapper_${version}.deb`)
  await runQuietly('dpkg-deb', ['--root-owner-group', '-Znone', '--build', root, path], folder)
  return path
}

/** The paths that a package puts on a system, without folders. */
export async function filesOf(deb: string, folder: string): Promise<string[]> {
  const root = join(folder, 'files')
  await runQuietly('dpkg-deb', ['--extract', deb, root], folder)
  const entries = await readdir(root, { recursive: true, withFileTypes: true })
  return entries
    .filter((each) => !each.isDirectory())
    .map((each) => join(each.parentPath, each.name).slice(root.length))
    .sort()
}

/**
 * What a command loads as it is called, threads and helpers left out: the texts of the files of the bundle, by their paths.
 *
 * @param root of the bundle (`dist`)
 */
export async function loadedBy(command: string, root: string): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  const load = async (file: string): Promise<void> => {
    if (found.has(file)) return
    const text = await readFile(file, 'utf8')
    found.set(file, text)
    for (const [, path = ''] of text.matchAll(/\b(?:from|import)"(\.[^"]+)"/g)) await load(join(dirname(file), path))
  }
  const dynamic = (text: string) => [...text.matchAll(/\bimport\("(\.[^"]+)"\)/g)].map(([, path = '']) => path)
  const main = join(root, 'src/cli/main.js')
  const [, definition = ''] =
    new RegExp(`${command}:async\\(\\)=>\\(await import\\("([^"]+)"`).exec(await readFile(main, 'utf8')) ?? []
  const defined = join(dirname(main), definition)
  for (const each of [main, defined]) await load(each)
  // What its action loads.
  for (const each of dynamic(found.get(defined) ?? '')) await load(join(dirname(defined), each))
  return found
}
