import { mkdir, cp, writeFile } from 'node:fs/promises'
import { readFileSync } from 'node:fs'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { testFolder } from '../support/test-folder.ts'
import { command, complaint, runCommand, startCommand } from './run-command.ts'

const folder = testFolder(test)
const project = fileURLToPath(new URL('../..', import.meta.url))
const { version } = JSON.parse(readFileSync(join(project, 'package.json'), 'utf8')) as { version: string }

test('the help names every command, the exit status and examples', async (t) => {
  const { status, stdout, stderr } = await runCommand(['--help'])
  t.is(status, 0)
  t.is(stderr, '')
  for (const name of ['agent', 'router', 'allocated', 'delta', 'inspect'])
    t.regex(stdout, new RegExp(`^  ${name} `, 'm'))
  t.regex(stdout, /Exit status/)
  t.regex(stdout, /Examples:\n {2}deltamapper /)
})

for (const name of ['agent', 'router', 'allocated', 'delta', 'inspect']) {
  test(`the help of ${name} tells its options, exit status and two examples or more`, async (t) => {
    const { status, stdout, stderr } = await runCommand([name, '--help'])
    t.is(status, 0)
    t.is(stderr, '')
    t.regex(stdout, new RegExp(`^Usage: deltamapper ${name} `))
    t.regex(stdout, /Exit status:\n {2}0 /)
    const examples = stdout.slice(stdout.indexOf('Examples:'))
    t.true(examples.split('\n').filter((line) => line.startsWith(`  deltamapper `)).length >= 2)
    t.is((await runCommand(['help', name])).stdout, stdout)
    t.true(stdout.split('\n').every((line) => line.length <= 100))
  })
}

test('--version is that of the package', async (t) => {
  const { status, stdout } = await runCommand(['--version'])
  t.is(status, 0)
  t.is(stdout, `${version}\n`)
})

const metadata = ['--metadata', '/nowhere']
const wrongUsage: [string, string[], RegExp][] = [
  ['no command', [], /no command was given/],
  ['an unknown command', ['resize'], /unknown command 'resize'/],
  ['a misspelt command', ['detla', '1', '2'], /did you mean delta/i],
  ['an unknown option', ['delta', '1', '2', '--fast'], /unknown option '--fast'.*`deltamapper delta --help`/],
  ['a missing argument', ['delta', '1'], /missing required argument 'TARGET'/],
  ['no argument at all', ['allocated'], /missing required argument 'TARGET'/],
  ['an argument too many', ['inspect', 'a', 'b'], /too many arguments/],
  ['two sources', ['allocated', '1', '--endpoint', 'unix:///x.sock', ...metadata], /cannot be used with/],
  ['an unknown format', ['delta', '1', '2', ...metadata, '-o', 'xml'], /table, json, ndjson, map/],
  ['a size that is no number', ['delta', '1', '2', ...metadata, '--size', 'big'], /byte count/],
  ['a size with a fraction', ['delta', '1', '2', ...metadata, '--size', '1.5GiB'], /byte count/],
  ['a size in hexadecimal', ['delta', '1', '2', ...metadata, '--size', '0x1000'], /byte count/],
  ['a negative size', ['delta', '1', '2', ...metadata, '--size', '-1'], /byte count/],
  ['a unit nobody uses', ['delta', '1', '2', ...metadata, '--size', '5XB'], /byte count/],
  ['a unit of two meanings', ['delta', '1', '2', ...metadata, '--size', '5MB'], /a thousand or 1024/],
  ['a size beyond 2^53', ['delta', '1', '2', ...metadata, '--base-size', '9007199254740992'], /beyond 2\^53/],
  ['a negative offset', ['delta', '1', '2', ...metadata, '--starting-offset', '-65536'], /byte count/],
  ['a negative limit', ['delta', '1', '2', ...metadata, '--max-results', '-1'], /0 to 2147483647/],
  ['a limit beyond int32', ['delta', '1', '2', ...metadata, '--max-results', '2147483648'], /0 to 2147483647/],
  ['no time at all', ['delta', '1', '2', ...metadata, '--timeout', '0'], /seconds above 0/],
  ['a base size without a base', ['allocated', '1', ...metadata, '--base-size', '1'], /unknown option '--base-size'/],
  ['an id that is a name', ['delta', 'demo/monday', '2', ...metadata], /"demo\/monday" is no thin device id/],
  ['an id that is negative', ['delta', '1', ...metadata, '--', '-2'], /"-2" is no thin device id/],
  ['an id beyond 24 bits', ['allocated', '16777216', ...metadata], /is no thin device id/],
  ['an id with a leading zero', ['allocated', '010', ...metadata], /is no thin device id/],
  ['a size for an endpoint', ['allocated', 'a/b', '--size', '1GiB'], /--size goes with --metadata and --xml only/],
  ['a live root for an endpoint', ['allocated', 'a/b', '--live-root'], /--live-root goes with --metadata only/],
  ['an endpoint that is none', ['allocated', 'a/b', '--endpoint', 'localhost'], /"localhost" is no address/],
  ['an agent that listens nowhere', ['agent', '--listen', 'here'], /"here" is no address/],
  ['a recorded pool without a folder', ['agent', '--recorded', 'demo'], /NAME=DIR/],
  [
    'two recorded pools of one name',
    ['agent', '--recorded', 'a=/x', '--recorded', 'a=/y'],
    /a recorded pool a already/
  ],
  ['an option of another command', ['inspect', 'x', '--size', '1'], /unknown option '--size'/]
]

for (const [what, args, expected] of wrongUsage) {
  test(`wrong usage, exit status 2: ${what}`, async (t) => {
    const result = await runCommand(args)
    t.is(result.status, 2)
    t.is(result.stdout, '')
    t.regex(complaint(result), expected)
    t.is(result.stderr.split('\n').length, 2)
  })
}

test('an endpoint in the environment that is none is named as such', async (t) => {
  const result = await runCommand(['allocated', 'a/b'], { env: { DELTAMAPPER_ENDPOINT: 'somewhere' } })
  t.is(result.status, 2)
  t.regex(complaint(result), /"somewhere" is no address; correct the environment variable DELTAMAPPER_ENDPOINT/)
})

test('an agent that cannot start says why', async (t) => {
  const args = ['agent', '--listen', `unix://${folder}/a.sock`, '--recorded', `demo=${folder}/nothing`]
  const result = await runCommand(args)
  t.is(result.status, 1)
  t.regex(complaint(result), /\(DM_RECORDED_POOL_INVALID\)$/)
})

test('whoever does not read the help is not told off', async (t) => {
  const child = startCommand(['--help'])
  child.stdout.destroy()
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [status] = (await once(child, 'close')) as [number | null]
  // It may be written before the pipe is closed.
  t.true(status === 141 || status === 0)
  t.is(stderr, '')
})

/** Makes a process believe that it runs on Node 20. */
const oldNode = `data:text/javascript,Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '20.1.0' } })`

test('in a checkout, an older Node hands over to the one of the checkout', async (t) => {
  const { status, stdout, stderr } = await runCommand(['--version'], { nodeOptions: ['--import', oldNode] })
  t.is(stderr, '')
  t.is(status, 0)
  t.is(stdout, `${version}\n`)
  const failing = await runCommand(['resize'], { nodeOptions: ['--import', oldNode] })
  t.is(failing.status, 2)
  t.regex(complaint(failing), /unknown command/)
})

test('elsewhere, an older Node gets one clear line', async (t) => {
  const elsewhere = join(folder, 'elsewhere')
  await mkdir(join(elsewhere, 'bin'), { recursive: true })
  await cp(command, join(elsewhere, 'bin/deltamapper.js'))
  await writeFile(join(elsewhere, 'package.json'), '{"type":"module"}')
  const result = await runCommand(['--version'], {
    nodeOptions: ['--import', oldNode],
    path: join(elsewhere, 'bin/deltamapper.js')
  })
  t.is(result.status, 1)
  t.is(result.stdout, '')
  t.regex(complaint(result), /needs Node\.js 24 or later/)
})
