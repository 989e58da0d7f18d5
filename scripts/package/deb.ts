/**
 * Makes the Debian package: one file that needs nothing but a Debian (or a system like it) with libc and libstdc++,
 * and no network.
 *
 *   npm run package -- [--architecture amd64|arm64|all] [--output FOLDER] [--compression xz|gzip|none]
 *
 * The same checkout makes the same bytes: all times are SOURCE_DATE_EPOCH, by default that of the newest commit. It
 * runs the program on this machine only to ask for its commands, so that a package for another processor is made here
 * as well. docs/decisions/0021-packages.md has the reasons.
 */
import { createHash } from 'node:crypto'
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { gzipSync } from 'node:zlib'
import { migrations } from '../../src/agent/catalog/store/migrations.ts'
import { commandLine } from '../../src/cli/main.ts'
import { runQuietly } from '../../test/lab/debian-release.ts'
import { type Architecture, architectures, ownArchitecture } from './architecture.ts'
import { bundle } from './bundle.ts'
import { components, copyright, cycloneDx } from './licences.ts'
import { bashCompletion, manPages } from './man-pages.ts'
import { nodeProgram } from './node-program.ts'

const project = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')

export interface DebOptions {
  readonly architecture: Architecture
  /** Folder that the package is put into. */
  readonly output: string
  /** xz for what is published; the others are quick. */
  readonly compression?: 'xz' | 'gzip' | 'none'
}

/** Makes a package. @returns its path */
export async function makeDeb({ architecture, output, compression = 'xz' }: DebOptions): Promise<string> {
  const manifest = JSON.parse(await readFile(join(project, 'package.json'), 'utf8')) as Manifest
  const { version } = manifest
  const epoch = await sourceDate()
  const work = await mkdtemp(join(tmpdir(), 'deltamapper-deb-'))
  try {
    const root = join(work, 'root')
    const parts = await layProgram(root, architecture)
    await layDocuments(root, { manifest, epoch, parts })
    await layService(root)
    await layControl(root, { ...manifest, architecture })
    await setModes(root)
    await runQuietly('find', [root, '-exec', 'touch', '--no-dereference', `--date=@${epoch}`, '{}', '+'], work)
    await mkdir(output, { recursive: true })
    const path = join(resolve(output), `deltamapper_${version}_${architecture}.deb`)
    const words = [
      '--root-owner-group',
      `-Z${compression}`,
      ...(compression === 'gzip' ? ['-z1'] : []),
      '--build',
      root,
      path
    ]
    await runQuietly('env', [`SOURCE_DATE_EPOCH=${epoch}`, 'dpkg-deb', ...words], work)
    return path
  } finally {
    await rm(work, { recursive: true })
  }
}

interface Manifest {
  readonly version: string
  readonly description: string
  readonly author?: string
  readonly homepage?: string
  readonly bugs?: { readonly email?: string }
}

/** Seconds since 1970. */
export async function sourceDate(): Promise<number> {
  const given = process.env['SOURCE_DATE_EPOCH']
  if (given !== undefined) return Number(given)
  return Number(await runQuietly('git', ['log', '-1', '--format=%ct'], project))
}

const home = 'usr/lib/deltamapper'

/** What is run by its name; all else is only read. */
const executables = [
  `${home}/node`,
  `${home}/bin/deltamapper.js`,
  ...['preinst', 'postinst', 'prerm', 'postrm'].map((each) => `DEBIAN/${each}`)
]

async function setModes(root: string): Promise<void> {
  for (const each of await readdir(root, { recursive: true, withFileTypes: true })) {
    if (each.isSymbolicLink()) continue
    const path = join(each.parentPath, each.name)
    await chmod(path, each.isDirectory() || executables.includes(path.slice(root.length + 1)) ? 0o755 : 0o644)
  }
  await chmod(root, 0o755)
}

async function layProgram(root: string, architecture: Architecture) {
  const folder = join(root, home)
  await mkdir(folder, { recursive: true })
  const packages = await bundle(folder, architecture)
  const node = await nodeProgram(architecture)
  await cp(node.path, join(folder, 'node'))
  // One word is all that a first line may have where `env -S` is not in it; and this is the Node that it was tested
  // with.
  const command = join(folder, 'bin/deltamapper.js')
  const text = await readFile(command, 'utf8')
  await writeFile(command, text.replace(/^#!.*?(?= --max)/, `#!/${home}/node`))
  await mkdir(join(root, 'usr/bin'), { recursive: true })
  await symlink('../lib/deltamapper/bin/deltamapper.js', join(root, 'usr/bin/deltamapper'))
  return components(packages, node)
}

interface Edition {
  readonly manifest: Manifest
  readonly epoch: number
  readonly parts: Awaited<ReturnType<typeof components>>
}

/** Docs, man pages, completion, licences, and the metadata that README's first command is shown with. */
async function layDocuments(root: string, { manifest, epoch, parts }: Edition): Promise<void> {
  const { version } = manifest
  const date = new Date(epoch * 1000)
  const doc = join(root, 'usr/share/doc/deltamapper')
  await mkdir(doc, { recursive: true })
  await cp(join(project, 'docs'), join(doc, 'docs'), { recursive: true })
  for (const each of ['README.md', 'SECURITY.md']) await cp(join(project, each), join(doc, each))
  await put(doc, 'copyright', copyright(parts))
  await put(doc, 'sbom.cdx.json', cycloneDx('deltamapper', version, date.toISOString(), parts))
  const changes = await readFile(join(project, 'CHANGELOG.md'), 'utf8')
  const heading = `deltamapper (${version}) stable; urgency=medium\n\n  * What a user notices: CHANGELOG.md.gz beside this.\n`
  const entry = `${heading}\n -- ${maintainer(manifest)}  ${date.toUTCString().replace('GMT', '+0000')}\n`
  await put(doc, 'changelog.gz', packed(entry))
  await put(doc, 'CHANGELOG.md.gz', packed(changes))
  const program = await commandLine(() => undefined)
  const edition = { version, date: date.toISOString().slice(0, 10) }
  for (const { name, text } of manPages(program, edition))
    await put(join(root, 'usr/share/man/man1'), `${name}.gz`, packed(text))
  await put(join(root, 'usr/share/bash-completion/completions'), 'deltamapper', bashCompletion(program))
  const example = join(root, 'usr/share/deltamapper/recorded-pool')
  await mkdir(example, { recursive: true })
  for (const each of ['metadata.img.gz', 'pool.json']) {
    await cp(join(project, 'test/fixtures/recorded-pool', each), join(example, each))
  }
}

/** Units and what belongs to them. */
async function layService(root: string): Promise<void> {
  const own = join(project, 'deploy/systemd')
  const places: readonly [string, string][] = [
    ['deltamapper-agent.service', 'usr/lib/systemd/system/deltamapper-agent.service'],
    ['deltamapper-backup.service', 'usr/lib/systemd/system/deltamapper-backup.service'],
    ['deltamapper-backup.timer', 'usr/lib/systemd/system/deltamapper-backup.timer'],
    ['backup.conf', 'usr/share/deltamapper/backup.conf'],
    ['deltamapper-era.service', 'usr/lib/systemd/system/deltamapper-era.service'],
    ['deltamapper-router.service', 'usr/lib/systemd/system/deltamapper-router.service'],
    ['deltamapper.sysusers', 'usr/lib/sysusers.d/deltamapper.conf'],
    ['deltamapper.tmpfiles', 'usr/lib/tmpfiles.d/deltamapper.conf'],
    ['90-deltamapper-era.rules', 'usr/lib/udev/rules.d/90-deltamapper-era.rules'],
    ['agent.yaml', 'etc/deltamapper/agent.yaml'],
    ['router.yaml', 'usr/share/deltamapper/router.yaml'],
    ['deltamapper-agent.service.d/era.conf', 'usr/share/deltamapper/era.conf']
  ]
  for (const [from, to] of places) {
    await mkdir(dirname(join(root, to)), { recursive: true })
    await cp(join(own, from), join(root, to))
  }
  await mkdir(join(root, 'usr/share/lintian/overrides'), { recursive: true })
  await cp(join(project, 'deploy/debian/lintian-overrides'), join(root, 'usr/share/lintian/overrides/deltamapper'))
}

/** What dpkg reads. */
async function layControl(root: string, manifest: Manifest & { architecture: Architecture }): Promise<void> {
  const { version, description, homepage, architecture } = manifest
  const files = (await readdir(root, { recursive: true, withFileTypes: true }))
    .filter((each) => each.isFile())
    .map((each) => join(each.parentPath, each.name).slice(root.length + 1))
    .sort()
  const sizes = await runQuietly('du', ['--summarize', '--apparent-size', '--block-size=1024', root], project)
  const sums = await Promise.all(
    files.map(async (each) => {
      const sum = createHash('md5').update(await readFile(join(root, each)))
      return `${sum.digest('hex')}  ${each}\n`
    })
  )
  const control = [
    'Package: deltamapper',
    `Version: ${version}`,
    `Architecture: ${architecture}`,
    `Maintainer: ${maintainer(manifest)}`,
    `Installed-Size: ${parseInt(sizes, 10)}`,
    // What the official Node is linked with. A minimal root has all of it, so that one file is enough.
    'Depends: libc6 (>= 2.28), libgcc-s1 (>= 4.2), libstdc++6 (>= 9)',
    'Recommends: lvm2',
    'Suggests: thin-provisioning-tools, nbdkit | qemu-utils',
    'Section: admin',
    'Priority: optional',
    ...(homepage === undefined ? [] : [`Homepage: ${homepage}`]),
    'Description: tells which blocks of a Linux volume are allocated or changed',
    ...folded(`${description}. Backup software copies what changed, not the whole volume.`),
    ' .',
    ...folded('The agent starts by itself and reads only; pools and volumes of its own it makes when it is told to.')
  ]
  const debian = join(root, 'DEBIAN')
  await put(debian, 'control', `${control.join('\n')}\n`)
  await put(debian, 'conffiles', '/etc/deltamapper/agent.yaml\n')
  await put(debian, 'md5sums', sums.join(''))
  for (const each of ['preinst', 'postinst', 'prerm', 'postrm']) {
    const text = await readFile(join(project, 'deploy/debian', each), 'utf8')
    await put(debian, each, text.replaceAll('@SCHEMA@', String(migrations.length)))
  }
}

/** The owner's name and address are for them to fill in, in package.json (CONTRIBUTING.md). */
function maintainer({ author = 'deltamapper contributors', bugs }: Manifest): string {
  return `${author} <${bugs?.email ?? 'deltamapper@users.noreply.invalid'}>`
}

function folded(text: string): string[] {
  return text.match(/\S.{0,74}(?=\s|$)/g)?.map((line) => ` ${line}`) ?? []
}

/** The same bytes for the same text: gzip's header would have a time and a system. */
const packed = (text: string): Buffer => gzipSync(text, { level: 9 })

async function put(folder: string, name: string, content: string | Buffer): Promise<void> {
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, name), content)
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      architecture: { type: 'string', default: 'all' },
      output: { type: 'string', default: join(project, 'packages') },
      compression: { type: 'string', default: 'xz' }
    }
  })
  const chosen =
    values.architecture === 'all' ? architectures : architectures.filter((each) => each === values.architecture)
  const compression = (['xz', 'gzip', 'none'] as const).find((each) => each === values.compression)
  if (chosen.length === 0 || compression === undefined) {
    console.error(
      'usage: npm run package -- [--architecture amd64|arm64|all] [--output FOLDER] [--compression xz|gzip|none]'
    )
    process.exit(2)
  }
  ownArchitecture()
  for (const architecture of chosen) {
    const path = await makeDeb({ architecture, output: values.output, compression })
    const sum = createHash('sha256')
      .update(await readFile(path))
      .digest('hex')
    console.log(`${sum}  ${path}`)
  }
}
