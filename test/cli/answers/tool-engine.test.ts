/**
 * `--engine` from outside: the tools' answers are ours, what they disagree about ends in an error, and so does what they cannot check.
 */
import { join } from 'node:path'
import test from 'ava'
import { scriptedTools, toolCommands, toolVersions } from '../../support/tool-commands.ts'
import { readPoolDescription, unpackRecordedPool } from '../../fixtures/recorded-pool.ts'
import { testFolder } from '../../support/test-folder.ts'
import { type CommandResult, complaint, runCommand } from '../run-command.ts'

const commands = await toolCommands()
const recorded = await unpackRecordedPool()
const image = join(recorded, 'metadata.img')
const { snapshots } = await readPoolDescription(recorded)
const folder = testFolder(test)
const toolTest = typeof commands === 'string' ? test.skip : test
const named = (name: string) => {
  const found = snapshots.find((each) => each.name === name)
  if (!found) throw new Error('the recorded pool tells another story')
  return { id: String(found.thin_id), size: String(found.size_bytes) }
}

/** The environment in which `env WORDS…` would run a tool. */
function environment(words: readonly string[]): NodeJS.ProcessEnv {
  const assigned = words.slice(1).map((word): [string, string] => {
    const at = word.indexOf('=')
    return [word.slice(0, at), word.slice(at + 1)]
  })
  return Object.fromEntries(assigned)
}

for (const version of toolVersions) {
  toolTest(`the same answer from either engine (${version})`, async (t) => {
    if (typeof commands === 'string') return
    const env = environment(commands[version])
    const [shrunk, grown] = [named('tides-shrunk'), named('tides-grown')]
    const sizes = ['--size', grown.size, '--base-size', shrunk.size]
    for (const words of [
      ['delta', '1', '4'],
      ['delta', '1', '4', '--starting-offset', '1MiB'],
      ['delta', '1', '4', '--live-root'],
      ['delta', shrunk.id, grown.id, ...sizes],
      ['allocated', '4']
    ]) {
      const ask = (engine: string) =>
        runCommand([...words, '--metadata', image, '-o', 'json', '--engine', engine], { env })
      const [native, tools, both] = await Promise.all([ask('native'), ask('tools'), ask('both')])
      t.is(native.status, 0, native.stderr)
      t.is(tools.stdout, native.stdout, words.join(' '))
      t.is(both.stdout, native.stdout, words.join(' '))
      const tool = `${words[0] === 'delta' ? 'thin_delta' : 'thin_dump'} ${version}`
      t.true(tools.stderr.includes(`asking ${tool}`))
      t.regex(both.stderr, new RegExp(`${tool} agrees on [0-9]+ extents?`))
      t.is(/calls [0-9]+ blocks? beyond the end of [0-9]+ the same/.test(both.stderr), words[1] === shrunk.id)
    }
  })
}

toolTest('tools that say something else, or nothing: no answer that looks complete', async (t) => {
  if (typeof commands === 'string') return
  const run = async (script: string, engine: string): Promise<CommandResult> => {
    const words = await scriptedTools(folder, { thin_delta: script }, commands['0.9.0'])
    return runCommand(['delta', '1', '4', '--metadata', image, '-o', 'json', '--engine', engine], {
      env: environment(words)
    })
  }
  const leavesOut = String.raw`real "$@" | sed '0,/<different begin/s//<same begin/'`
  const fails = 'asked_version "$@" && echo 0.9.0 && exit; echo no memory >&2; exit 1'
  for (const [script, engine, expected] of [
    [leavesOut, 'both', /they part at byte [0-9]+: .*\(DM_ENGINES_DISAGREE\)$/],
    [fails, 'both', /thin_delta ended with status 1: no memory; .*\(DM_TOOL_FAILED\)$/],
    [fails, 'tools', /thin_delta ended with status 1: no memory; .*\(DM_TOOL_FAILED\)$/],
    ['echo 1.0.3', 'both', /thin_delta 1\.0\.3 .*\(DM_TOOL_UNFIT\)$/],
    ['exit 127', 'tools', /\(DM_TOOL_MISSING\)$/]
  ] as const) {
    const result = await run(script, engine)
    t.is(result.status, 1)
    t.regex(complaint(result), expected)
    t.throws(() => JSON.parse(result.stdout) as unknown)
  }
})

test('--engine goes with --metadata only, and is one of three', async (t) => {
  for (const words of [
    ['delta', 'a/b', 'a/c', '--engine', 'both', '--endpoint', 'unix:///nonexistent.sock'],
    ['allocated', '--xml', join(folder, 'none.xml'), '--engine', 'tools'],
    ['allocated', '1', '--metadata', image, '--engine', 'thin_delta'],
    ['agent', '--engine', 'fast']
  ]) {
    const result = await runCommand(words)
    t.is(result.status, 2)
    t.regex(complaint(result), /--engine/)
  }
})
