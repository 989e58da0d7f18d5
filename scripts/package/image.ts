/**
 * Makes the container image, with Debian's `buildah`, of the Debian package's program and a base of a few Debian
 * packages. It wants no image registry and no daemon. What it leaves is an OCI archive for each processor, which
 * podman, skopeo, containerd and `docker load` take.
 *
 *   npm run image -- [--architecture amd64|arm64|all] [--base IMAGE] [--output FOLDER] [--no-run]
 *
 * The image of this machine's processor is run: `--version`, a delta by both engines, and an agent and a router with
 * what their pods may do. That of the other one is emulated.
 */
import { createHash } from 'node:crypto'
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { gunzipSync } from 'node:zlib'
import { completeFolder } from '../../test/lab/complete-folder.ts'
import { runQuietly, unpackRelease } from '../../test/lab/debian-release.ts'
import { type Architecture, architectures, ownArchitecture } from './architecture.ts'
import { tryAsPods } from './as-pod.ts'
import { makeDeb, sourceDate } from './deb.ts'
import { debianComponents, withDebian } from './debian-components.ts'
import { runEmulated } from './emulated.ts'

const project = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')
const cache = join(project, '.cache/packages')

/**
 * Debian 13's: LVM and the thin provisioning tools, what Node is linked with, and `nsenter` for `agent.lvm: nsenter`.
 */
const packages = [
  ...['lvm2', 'thin-provisioning-tools', 'util-linux', 'libstdc++6', 'libgcc-s1'],
  ...['base-files', 'base-passwd', 'dash', 'netbase'],
  // What the agent's report of the node starts by a shell.
  ...['coreutils', 'grep']
]
/** They are needed to install packages, and to serve events: neither happens in a container. */
const without = ['dmeventd', 'debianutils', 'mawk', 'libdebconfclient0', 'sysvinit-utils', 'init-system-helpers']

const USER = '65532'

/** Where buildah keeps what it builds: not among the images of whoever calls this. */
const store = [
  '--root',
  join(cache, 'containers'),
  '--runroot',
  join(tmpdir(), 'deltamapper-buildah'),
  '--storage-driver',
  'vfs'
]

export interface ImageOptions {
  readonly architecture: Architecture
  readonly output: string
  /** An image with LVM and the thin provisioning tools; made here if left out. */
  readonly base?: string | undefined
}

export interface Image {
  readonly name: string
  readonly architecture: Architecture
  readonly archive: string
  /** Of the manifest: `sha256:…` */
  readonly digest: string
}

/** Builds an image. */
export async function makeImage({ architecture, output, base }: ImageOptions): Promise<Image> {
  const { version } = JSON.parse(await readFile(join(project, 'package.json'), 'utf8')) as { version: string }
  const epoch = await sourceDate()
  const work = await mkdtemp(join(tmpdir(), 'deltamapper-image-'))
  try {
    const from = base ?? (await ownBase(architecture, epoch, work))
    const root = join(work, 'context/root')
    await mkdir(root, { recursive: true })
    await layProgram(root, architecture, work, base === undefined)
    await runQuietly('find', [root, '-exec', 'touch', '--no-dereference', `--date=@${epoch}`, '{}', '+'], work)
    const name = `localhost/deltamapper:${version}-${architecture}`
    const labels = Object.entries(await imageLabels(version, epoch)).flatMap((each) => ['--label', each.join('=')])
    const words = [
      'build',
      '--isolation',
      'chroot',
      '--format',
      'oci',
      '--arch',
      architecture,
      '--timestamp',
      String(epoch)
    ]
    const pull = base === undefined ? ['--pull-never'] : []
    const file = ['--file', join(project, 'deploy/image/Dockerfile'), '--build-arg', `BASE=${from}`]
    await buildah([...words, ...pull, ...labels, ...file, '--tag', name, join(work, 'context')], work)
    await mkdir(output, { recursive: true })
    const archive = join(resolve(output), `deltamapper_${version}_${architecture}.oci.tar`)
    await rm(archive, { force: true })
    const digest = join(work, 'digest')
    await buildah(['push', '--digestfile', digest, name, `oci-archive:${archive}:deltamapper:${version}`], work)
    await cp(join(root, 'usr/share/doc/deltamapper/sbom.cdx.json'), archive.replace(/\.oci\.tar$/, '.sbom.cdx.json'))
    return { name, architecture, archive, digest: (await readFile(digest, 'utf8')).trim() }
  } finally {
    await rm(work, { recursive: true })
  }
}

/** The keys of the OCI image specification. */
async function imageLabels(version: string, epoch: number): Promise<Record<string, string>> {
  const manifest = JSON.parse(await readFile(join(project, 'package.json'), 'utf8')) as {
    description: string
    license: string
    repository?: { url?: string }
  }
  const { description, license, repository } = manifest
  const known = {
    title: 'deltamapper',
    description,
    version,
    licenses: license,
    created: new Date(epoch * 1000).toISOString(),
    ...(repository?.url === undefined ? {} : { source: repository.url })
  }
  return Object.fromEntries(Object.entries(known).map(([name, value]) => [`org.opencontainers.image.${name}`, value]))
}

const baseFolder = (architecture: Architecture) => join(cache, `image-base-${architecture}-2`)

/**
 * The packages are unpacked, not installed: no script of theirs runs, above all not lvm2's, which looks at all
 * devices that it sees.
 */
async function ownBase(architecture: Architecture, epoch: number, work: string): Promise<string> {
  const folder = baseFolder(architecture)
  await completeFolder(folder, async (root, place) => {
    const [files, system] = ['packages', 'root'].map((each) => join(root, each))
    for (const each of [files, system]) await mkdir(each ?? '')
    const options = { work: place, root: system ?? '', whole: true, architecture, without }
    for (const each of await unpackRelease('trixie', packages, options))
      await cp(each, join(files ?? '', each.replace(/.*\//, '')))
    for (const each of [
      'usr/share/doc-base',
      'usr/share/man',
      'usr/share/info',
      'usr/share/locale',
      'usr/share/bash-completion'
    ]) {
      await rm(join(system ?? '', each), { recursive: true, force: true })
    }
    for (const each of ['passwd', 'group']) {
      const text = await readFile(join(system ?? '', `usr/share/base-passwd/${each}.master`), 'utf8')
      const own =
        each === 'passwd' ? `deltamapper:x:${USER}:${USER}::/:/usr/sbin/nologin\n` : `deltamapper:x:${USER}:\n`
      await writeFile(join(system ?? '', 'etc', each), text + own)
    }
  })
  const system = join(folder, 'root')
  await runQuietly('find', [system, '-exec', 'touch', '--no-dereference', `--date=@${epoch}`, '{}', '+'], work)
  const name = `localhost/deltamapper-base:${architecture}`
  const container = (await buildah(['from', '--arch', architecture, 'scratch'], work)).trim()
  try {
    await buildah(['copy', '--quiet', container, system, '/'], work)
    await buildah(['config', '--arch', architecture, '--os', 'linux', '--created-by', 'npm run image', container], work)
    await buildah(['commit', '--quiet', '--format', 'oci', '--timestamp', String(epoch), container, name], work)
  } finally {
    await buildah(['rm', container], work)
  }
  return name
}

/** What the image has of the Debian package, and the folders that pods mount. */
async function layProgram(root: string, architecture: Architecture, work: string, isOwnBase: boolean): Promise<void> {
  const deb = await makeDeb({ architecture, output: work, compression: 'none' })
  await runQuietly('dpkg-deb', ['--extract', deb, root], work)
  for (const each of [
    'etc',
    'usr/lib/systemd',
    'usr/lib/udev',
    'usr/lib/sysusers.d',
    'usr/lib/tmpfiles.d',
    'usr/share/man'
  ]) {
    await rm(join(root, each), { recursive: true })
  }
  for (const each of ['usr/share/lintian', 'usr/share/bash-completion', 'usr/share/doc/deltamapper/docs']) {
    await rm(join(root, each), { recursive: true })
  }
  for (const each of ['etc/deltamapper/tls', 'run/deltamapper', 'var/lib/deltamapper']) {
    await mkdir(join(root, each), { recursive: true })
  }
  if (!isOwnBase) return
  const bill = join(root, 'usr/share/doc/deltamapper/sbom.cdx.json')
  const debian = await debianComponents(join(baseFolder(architecture), 'packages'))
  await writeFile(bill, withDebian(await readFile(bill, 'utf8'), debian))
}

/**
 * Runs the image of this machine's processor: the command, both engines, an agent that answers, and agent and router
 * with what their pods may do. That of another processor is emulated, without the tools that it would start.
 *
 * @returns what was tried, a line each
 */
export async function tryImage({ name, architecture }: Image): Promise<string[]> {
  const work = await mkdtemp(join(tmpdir(), 'deltamapper-try-'))
  const container = (await buildah(['from', '--pull-never', '--arch', architecture, name], work)).trim()
  try {
    const fixture = join(project, 'test/fixtures/recorded-pool')
    const pool = join(work, 'pool')
    await mkdir(pool)
    await writeFile(join(pool, 'metadata.img'), gunzipSync(await readFile(join(fixture, 'metadata.img.gz'))))
    await cp(join(fixture, 'pool.json'), join(pool, 'pool.json'))
    const root = (await buildah(['mount', container], work)).trim()
    if (architecture !== ownArchitecture()) return await tryEmulated(root, architecture, pool)
    const { answer, seen } = await tryCommands(container, pool, work)
    const ask = async (endpoint: string) => {
      const asked = await run(command, ['delta', ...asAgentHasIt, '--endpoint', endpoint], work)
      if (asked.trim() !== answer) throw new Error(`by the router the answer is ${asked}`)
    }
    return [...seen, ...(await tryAsPods({ root, project, pool, work, ask }))]
  } finally {
    await buildah(['rm', container], work)
    await rm(work, { recursive: true })
  }
}

const command = join(project, 'bin/deltamapper.js')
/** One question, of metadata and of an agent. */
const ofMetadata = (file: string) => ['2', '4', '--metadata', file, '--size', '50360320', '-o', 'ndjson']
const asAgentHasIt = ['demo/tuesday', 'demo/thursday', '-o', 'ndjson']

async function tryEmulated(root: string, architecture: Architecture, pool: string): Promise<string[]> {
  const question = ['delta', ...ofMetadata(join(pool, 'metadata.img'))]
  const version = await runEmulated(root, architecture, cache, ['--version'])
  const answer = await runEmulated(root, architecture, cache, question)
  if (answer !== (await run(command, question, pool)).trim()) throw new Error(`emulated, the answer is ${answer}`)
  return [`emulated, --version: ${version}`, `emulated, delta: ${answer.split('\n').length} lines, the same as here`]
}

/** @returns what was tried, and the answer */
async function tryCommands(container: string, pool: string, work: string): Promise<{ answer: string; seen: string[] }> {
  const inside = async (words: string[], user = USER) => {
    const options = ['--isolation', 'chroot', '--user', user, '--volume', `${pool}:/pool:ro`]
    return (await buildah(['run', ...options, container, '--', ...words], work)).trim()
  }
  const version = await inside(['deltamapper', '--version'])
  const question = ['deltamapper', 'delta', ...ofMetadata('/pool/metadata.img')]
  const both = await inside([...question, '--engine', 'both'])
  if (both !== (await inside(question)) || !both.includes('"complete":true'))
    throw new Error(`engines disagree: ${both}`)
  const lvm = await inside(['lvm', 'version'], '0')
  const script = `cd /run/deltamapper
      deltamapper agent --listen unix:///run/deltamapper/agent.sock --recorded demo=/pool >/dev/null 2>log & agent=$!
      until deltamapper delta ${asAgentHasIt.join(' ')} 2>/dev/null; do kill -0 $agent || exit 1; done
      kill $agent; wait $agent`
  const asked = await inside(['sh', '-c', script], '0')
  if (asked !== both) throw new Error(`its agent says ${asked}`)
  const seen = [
    `--version: ${version}`,
    `delta --engine both: ${both.split('\n').length} lines, the same from its agent`,
    lvm.split('\n')[0]?.trim() ?? ''
  ]
  return { answer: both, seen }
}

async function run(program: string, words: readonly string[], cwd: string): Promise<string> {
  return runQuietly(process.execPath, [program, ...words], cwd)
}

async function buildah(words: readonly string[], cwd: string): Promise<string> {
  return runQuietly('buildah', [...store, ...words], cwd)
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      architecture: { type: 'string', default: 'all' },
      base: { type: 'string' },
      output: { type: 'string', default: join(project, 'packages') },
      'no-run': { type: 'boolean', default: false }
    }
  })
  const chosen =
    values.architecture === 'all' ? architectures : architectures.filter((each) => each === values.architecture)
  if (chosen.length === 0) {
    console.error(
      'usage: npm run image -- [--architecture amd64|arm64|all] [--base IMAGE] [--output FOLDER] [--no-run]'
    )
    process.exit(2)
  }
  for (const architecture of chosen) {
    const image = await makeImage({ architecture, output: values.output, base: values.base })
    const bytes = createHash('sha256')
      .update(await readFile(image.archive))
      .digest('hex')
    console.log(`${image.digest}  ${image.name}\n${bytes}  ${image.archive}`)
    if (values['no-run']) continue
    for (const each of await tryImage(image)) console.log(`  tried: ${each}`)
  }
}
