/**
 * The package that `npm pack` makes, installed where nothing of this checkout is: it must do what the checkout does.
 */
import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { startAgentProcess } from '../demo/agent-process.ts'
import { openEraMetadata } from '../src/devicemapper/era/era-metadata.ts'
import { openPoolMetadata } from '../src/devicemapper/thin/pool-metadata.ts'
import { type CommandResult, runCommand } from './cli/run-command.ts'
import { readPoolDescription, unpackRecordedPool } from './fixtures/recorded-pool.ts'
import { collectExtents } from './support/collect-extents.ts'
import { smallEraDevice } from './support/era-damage.ts'
import { Random } from './support/random.ts'

const project = fileURLToPath(new URL('..', import.meta.url))
const run = promisify(execFile)
const recorded = await unpackRecordedPool()
const pool = await readPoolDescription(recorded)
const metadata = join(recorded, 'metadata.img')
const [base, target] = pool.snapshots.filter((each) => each.volume === pool.volumes[0].name)
// Short, since a socket is put there as well.
const folder = await mkdtemp(join(tmpdir(), 'dm-'))
const packageFolder = join(folder, 'app/node_modules/deltamapper')
let tarball: string
/** The command as a shell finds it. */
const installed = join(folder, 'app/node_modules/.bin/deltamapper')
/** Where `#!/usr/bin/env node` is to find the Node that runs this test. */
const path = `${dirname(process.execPath)}:${process.env['PATH']}`

test.before(async (t) => {
  t.timeout(900_000)
  await run('npm', ['pack', '--pack-destination', folder], { cwd: project })
  tarball = join(folder, (await readdir(folder)).find((name) => name.endsWith('.tgz')) ?? '')
  await mkdir(join(folder, 'app'))
  await writeFile(join(folder, 'app/package.json'), '{"private":true}')
  const options = ['--omit=dev', '--prefer-offline', '--no-audit', '--no-fund']
  await run('npm', ['install', ...options, tarball], { cwd: join(folder, 'app') })
})
test.after.always(() => rm(folder, { recursive: true }))

const installedCommand = (args: string[]) => runCommand(args, { path: installed })

function same(asked: CommandResult, expected: CommandResult): boolean {
  return asked.status === expected.status && asked.stdout === expected.stdout && asked.stderr === expected.stderr
}

test('it ships no TypeScript sources, and no tests', async (t) => {
  const files = await readdir(packageFolder, { recursive: true })
  t.true(files.includes('bin/deltamapper.js'))
  t.true(files.includes('dist/src/cli/main.js'))
  t.deepEqual(
    files.filter((name) => name.endsWith('.ts') && !name.endsWith('.d.ts')),
    []
  )
  t.deepEqual(
    files.filter((name) => /^(test|demo|bench|scripts|src)(\/|$)/.test(name)),
    []
  )
})

test('it carries the versions that were tested, and `npm ci` takes them; two of the packages have a script', async (t) => {
  interface Lock {
    readonly packages: Record<string, { readonly dev?: boolean; readonly hasInstallScript?: boolean }>
  }
  const shipped = await readFile(join(packageFolder, 'npm-shrinkwrap.json'), 'utf8')
  t.is(shipped, await readFile(join(project, 'package-lock.json'), 'utf8'))
  t.false((await readdir(project)).includes('npm-shrinkwrap.json'), 'a checkout has its lock file alone')
  const unpacked = await mkdtemp(join(tmpdir(), 'dm-'))
  t.teardown(() => rm(unpacked, { recursive: true }))
  for (const name of ['package.json', 'npm-shrinkwrap.json']) {
    await writeFile(join(unpacked, name), await readFile(join(packageFolder, name)))
  }
  // As in docs/install.md: it fails where package and versions do not agree.
  const options = ['--omit=dev', '--ignore-scripts', '--dry-run', '--offline', '--no-audit']
  await run('npm', ['ci', ...options, '--prefix', unpacked], { cwd: tmpdir() })
  const { packages } = JSON.parse(shipped) as Lock
  const scripts = Object.entries(packages).filter(([, each]) => each.hasInstallScript === true && each.dev !== true)
  t.deepEqual(scripts.map(([path]) => path.replace(/^.*node_modules\//, '')).sort(), ['koffi', 'protobufjs'])
})

test('the command is found as a shell would find it', async (t) => {
  const { stdout } = await run(installed, ['--version'], { env: { ...process.env, PATH: path } })
  t.is(stdout, (await runCommand(['--version'])).stdout)
})

test('it answers from metadata what the checkout answers', async (t) => {
  const ids = [String(base.thin_id), String(target.thin_id)]
  for (const args of [
    ['delta', ...ids, '--metadata', metadata, '-o', 'json'],
    ['allocated', ids[1], '--metadata', metadata, '-o', 'map'],
    ['inspect', metadata],
    ['inspect', join(recorded, 'pool.json')],
    ['delta', '--help'],
    ['delta', ids[0]]
  ]) {
    const [asked, expected] = await Promise.all([installedCommand(args), runCommand(args)])
    t.true(same(asked, expected), `${args.join(' ')}: ${JSON.stringify(asked)}`)
  }
})

test('it is a library as well, for backup software', async (t) => {
  const script = `
    import { connectToCluster, DeltamapperError } from 'deltamapper/kubernetes'
    try {
      connectToCluster({ kubeconfig: '/nowhere' })
    } catch (error) {
      console.log(error instanceof DeltamapperError && error.code)
    }`
  const cwd = join(folder, 'app')
  const { stdout } = await run(process.execPath, ['--input-type=module', '--eval', script], { cwd })
  t.is(stdout, 'DM_CONFIG_INVALID\n')
  const { exports } = JSON.parse(await readFile(join(packageFolder, 'package.json'), 'utf8')) as {
    exports: Record<string, { types: string }>
  }
  t.true((await readdir(packageFolder, { recursive: true })).includes(exports['./kubernetes'].types.slice(2)))
})

/** The examples of docs/library.md, by the names of their files, in a folder where the package is installed. */
async function examples(): Promise<string[]> {
  const page = await readFile(join(project, 'docs/library.md'), 'utf8')
  const found = [...page.matchAll(/^```ts (\S+)\n(.*?)^```$/gms)]
  for (const [, name, text] of found) await writeFile(join(folder, 'app', name), text)
  return found.map(([, name]) => name)
}

test('the examples of docs/library.md are right, and their types are for who uses them', async (t) => {
  const cwd = join(folder, 'app')
  t.deepEqual(await examples(), ['thin.ts', 'era.ts'])
  const asked = await run(process.execPath, ['thin.ts', metadata, String(base.thin_id), String(target.thin_id)], {
    cwd
  })
  const opened = await openPoolMetadata(metadata)
  const answer = await opened.delta({ baseId: base.thin_id, targetId: target.thin_id })
  const { capacityBytes } = answer
  const expected = await collectExtents(answer)
  await opened.close()
  t.true(expected.length > 5)
  const lines = [...expected.map((each) => each.join(' ')), `complete: ${capacityBytes} bytes`]
  t.is(asked.stdout, `${lines.join('\n')}\n`)

  const image = join(folder, 'era.img')
  await writeFile(image, smallEraDevice(new Random(1)).bytes)
  const since = await run(process.execPath, ['era.ts', image, '4'], { cwd })
  const device = await openEraMetadata(image)
  const written = await collectExtents(await device.written({ sinceEra: 4 }))
  await device.close()
  t.true(written.length > 5)
  t.is(since.stdout, written.map((each) => `${each.join(' ')}\n`).join(''))

  const settings = [
    '--noEmit',
    '--strict',
    '--module',
    'nodenext',
    '--target',
    'es2024',
    '--lib',
    'es2024,esnext.disposable'
  ]
  const types = ['--types', 'node', '--typeRoots', join(project, 'node_modules/@types')]
  const tsc = join(project, 'node_modules/typescript/bin/tsc')
  await writeFile(join(cwd, 'package.json'), '{"private":true,"type":"module"}')
  await t.notThrowsAsync(run(process.execPath, [tsc, ...settings, ...types, 'thin.ts', 'era.ts'], { cwd }))
})

test('whatever imports it finds every module, and its types', async (t) => {
  const bin = join(project, 'node_modules/.bin')
  const env = { ...process.env, PATH: path }
  const words = ['--profile', 'esm-only', '--no-emoji', '--no-color', '--format', 'ascii', tarball]
  const { stdout } = await run(join(bin, 'attw'), words, { env })
  for (const each of ['thin', 'era', 'kubernetes', 'testing']) t.true(stdout.includes(`deltamapper/${each}`), stdout)
  await t.notThrowsAsync(run(join(bin, 'publint'), ['run', tarball, '--strict'], { env }))
})

test('it is a library for tests, too: the mock and a conformance run', async (t) => {
  const script = `
    import { conforms, runConformance, startMock } from 'deltamapper/testing'
    const mock = await startMock()
    const snapshots = mock.snapshots.slice(0, 2).map(({ id }) => id)
    const { report } = await runConformance({ endpoint: mock.endpoint, snapshots, rules: [1, 4, 10] })
    console.log(conforms(report), report.summary.pass)
    await mock.stop()`
  const cwd = join(folder, 'app')
  const { stdout } = await run(process.execPath, ['--input-type=module', '--eval', script], { cwd })
  t.is(stdout, 'true 3\n')
  t.true((await readdir(packageFolder, { recursive: true })).includes('dist/src/testing.d.ts'))
  const listed = await installedCommand(['mock', '--list'])
  t.is(listed.stdout, (await runCommand(['mock', '--list'])).stdout)
})

test('its agent answers, worker threads included, what the checkout answers', async (t) => {
  const address = `unix://${folder}/agent.sock`
  const agent = await startAgentProcess(address, { name: 'demo', folder: recorded }, installed)
  try {
    const question = ['delta', `demo/${base.name}`, `demo/${target.name}`]
    const asked = await installedCommand([...question, '--endpoint', address, '-o', 'ndjson'])
    const ids = [String(base.thin_id), String(target.thin_id)]
    const sizes = ['--size', String(target.size_bytes), '--base-size', String(base.size_bytes)]
    const expected = await runCommand(['delta', ...ids, '--metadata', metadata, ...sizes, '-o', 'ndjson'])
    t.is(asked.status, 0)
    t.true(asked.stdout.split('\n').length > 5)
    t.is(asked.stdout, expected.stdout)
  } finally {
    t.is(await agent.stop(), 0)
  }
})

test('in a checkout, npx finds the command', async (t) => {
  const env = { ...process.env, PATH: path, npm_config_cache: join(folder, 'npm'), npm_config_update_notifier: 'false' }
  const { stdout } = await run('npx', ['deltamapper', '--version'], { cwd: project, env })
  t.is(stdout, (await runCommand(['--version'])).stdout)
})
