/**
 * Tools as processes: real ones that fail, in both families, and scripts in their place that hang, flood and die.
 */
import { execFile } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import { checkTool, type ToolCommand, toolOutput } from '../../../src/devicemapper/tools/tool.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { unpackRecordedPool } from '../../fixtures/recorded-pool.ts'
import { writtenPool } from '../../support/random-pool.ts'
import { testFolder } from '../../support/test-folder.ts'
import { scriptedTools, toolCommands, toolVersions } from '../../support/tool-commands.ts'

const commands = await toolCommands()
const recorded = join(await unpackRecordedPool(), 'metadata.img')
const folder = testFolder(test)

/** A test that needs the tools. Where they cannot be had, it is left out, and says so. */
function toolTest(title: string, run: (t: ExecutionContext, command: ToolCommand, version: string) => Promise<void>) {
  for (const version of toolVersions) {
    if (typeof commands === 'string') test.skip(`${title} (${version}: ${commands})`, () => undefined)
    else test(`${title} (${version})`, (t) => run(t, commands[version], version))
  }
}

async function failure(work: Promise<unknown>): Promise<DeltamapperError> {
  const thrown: unknown = await work.then(
    (result) => new Error(`it succeeded: ${String(result)}`),
    (error: unknown) => error
  )
  if (thrown instanceof DeltamapperError) return thrown
  throw thrown
}

/** Everything a tool prints. */
async function printed(command: ToolCommand, args: readonly string[], signal?: AbortSignal): Promise<string> {
  return Buffer.concat(await Array.fromAsync(toolOutput('thin_delta', args, { command, signal }))).toString()
}

toolTest('its output and its version', async (t, command, version) => {
  const xml = await printed(command, ['--thin1', '1', '--thin2', '4', '-m', recorded])
  t.regex(xml, /^<superblock .*<diff left="1" right="4">.*<\/superblock>\n?$/s)
  const { major, minor, patch } = await checkTool('thin_dump', command)
  t.is(`${major}.${minor}.${patch}`, version)
})

toolTest('what it says when it fails is in the error, without its usage', async (t, command, version) => {
  const status = version === '0.9.0' ? 1 : 64
  const missing = await failure(printed(command, ['--thin1', '1', '--thin2', '99', recorded]))
  t.is(missing.code, 'DM_TOOL_FAILED')
  t.is(missing.message, `thin_delta ended with status ${status}: Unable to find mapping tree for snap2 (99)`)

  const { path } = await writtenPool(8, folder, 'deep')
  const notHeld = await failure(printed(command, ['-m', '--thin1', '1', '--thin2', '1', path]))
  t.is(notHeld.code, 'DM_LEASE_LOST')
  t.is(notHeld.message, `thin_delta ended with status ${status}: no current metadata snap`)

  const image = await readFile(recorded)
  image[100] ^= 1
  const damaged = join(folder, `damaged-${version}.img`)
  await writeFile(damaged, image)
  const bad = await failure(printed(command, ['--thin1', '1', '--thin2', '4', damaged]))
  t.is(bad.code, 'DM_METADATA_DAMAGED')
  t.regex(bad.message, /bad checksum in superblock/)

  const option = await failure(printed(command, ['--thin1', '1', '--nosuch', '4', recorded]))
  t.is(option.code, 'DM_TOOL_UNFIT')
  t.regex(option.message, /--nosuch/)
})

test('a tool that is not there', async (t) => {
  for (const [command, says] of [
    [['/nonexistent/nsenter'], /^thin_delta could not be started \(.*ENOENT/],
    [['env', 'PATH=/nonexistent'], /^thin_delta could not be started \(env: .*No such file/]
  ] as const) {
    const error = await failure(printed(command, []))
    t.is(error.code, 'DM_TOOL_MISSING')
    t.regex(error.message, says)
  }
})

test('no descriptors are left for it: it is not the tool that is missing', async (t) => {
  // In a process of its own, which uses up all that it may have.
  const module = JSON.stringify(new URL('../../../src/devicemapper/tools/tool.ts', import.meta.url).href)
  const script = `
    import { closeSync, openSync } from 'node:fs'
    import { checkTool } from ${module}
    await checkTool('thin_delta', ['true'])
      .catch((error) => console.log(error.code))
    const opened = []
    try { for (;;) opened.push(openSync('/dev/null')) } catch {}
    const { code, message } = await checkTool('thin_delta', ['true']).catch((error) => error)
    for (const descriptor of opened) closeSync(descriptor)
    console.log(code + '; ' + message)`
  const limited = ['-c', 'ulimit -n 80; exec "$0" "$@"', process.execPath, '--input-type=module', '-e', script]
  const { stdout } = await promisify(execFile)('/bin/sh', limited)
  t.regex(stdout, /^DM_TOOL_UNFIT\nDM_SYSTEM_REFUSED; thin_delta could not be started \(.*EMFILE\)\n$/)
})

test('versions that answer wrongly, or say nothing that is understood, are refused', async (t) => {
  for (const [says, expected] of [
    ['1.0.3', /^thin_delta 1\.0\.3 reports changed blocks as the same$/],
    ['0.7.0', /^thin_delta 0\.7\.0 leaves out/],
    ['thin_delta 1.0.5', /--thin2/],
    ['version two', /^thin_delta says "version two\\n"$/]
  ] as const) {
    const error = await failure(checkTool('thin_delta', await scriptedTools(folder, { thin_delta: `echo ${says}` })))
    t.is(error.code, 'DM_TOOL_UNFIT')
    t.regex(error.message, expected)
    t.regex(error.remedy, /0\.9\.0, or 1\.0\.6 or later/)
  }
})

test('killed by somebody else, for want of memory perhaps', async (t) => {
  const error = await failure(printed(await scriptedTools(folder, { thin_delta: 'echo "<a>"; kill -9 $$' }), []))
  t.is(error.code, 'DM_TOOL_FAILED')
  t.is(error.message, 'thin_delta ended with SIGKILL')
})

test('a flood on stderr keeps nothing back, and is cut short', async (t) => {
  const script = 'head -c 3000000 /dev/zero | tr "\\0" x >&2; echo out; exit 3'
  const error = await failure(printed(await scriptedTools(folder, { thin_delta: script }), []))
  t.regex(error.message, /^thin_delta ended with status 3: x{400}$/)
})

/** Runs a script that leaves its number, and never ends by itself. */
async function endless(script: string): Promise<{ command: ToolCommand; gone: () => Promise<boolean> }> {
  const file = join(folder, `pid-${endlessTools++}`)
  const command = await scriptedTools(folder, { thin_delta: `echo $$ >${file}\n${script}` })
  return {
    command,
    async gone() {
      const pid = Number(await readFile(file, 'utf8'))
      for (let patience = 0; patience < 1000; patience++) {
        try {
          process.kill(pid, 0)
        } catch {
          return true
        }
        await sleep(10)
      }
      return false
    }
  }
}
let endlessTools = 0

test('nobody wants more: it is killed, and writes no further than the pipe', async (t) => {
  const { command, gone } = await endless('trap "" TERM INT; while :; do echo "<same/>"; done')
  let taken = 0
  for await (const chunk of toolOutput('thin_delta', [], { command })) {
    taken += chunk.length
    if (taken > 1000) break
  }
  t.true(await gone())
})

test('the call ends: it is killed, with what it has started, and the error is the call’s', async (t) => {
  const { command, gone } = await endless('echo "<a>"; sleep 1000 | cat')
  const call = new AbortController()
  const output = toolOutput('thin_delta', [], { command, signal: call.signal })
  t.is(String((await output.next()).value), '<a>\n')
  const waiting = output.next()
  const why = new DeltamapperError('DM_CANCELLED', 'the caller went away', 'nothing')
  call.abort(why)
  t.is(await failure(waiting), why)
  t.true(await gone())
})

test('it has closed its output and does not end: the call still can', async (t) => {
  const { command, gone } = await endless('echo "<a>"; exec >&-; sleep 1000')
  const why = new DeltamapperError('DM_DEADLINE_EXCEEDED', 'the time is up', 'nothing')
  const call = new AbortController()
  const output = toolOutput('thin_delta', [], { command, signal: call.signal })
  await output.next()
  const waiting = output.next()
  setTimeout(() => {
    call.abort(why)
  }, 50)
  t.is(await failure(waiting), why)
  t.true(await gone())
})

test('a call that is over before it begins starts nothing', async (t) => {
  const why = new DeltamapperError('DM_CANCELLED', 'the caller went away', 'nothing')
  t.is(await failure(printed(['/nonexistent'], [], AbortSignal.abort(why))), why)
})
