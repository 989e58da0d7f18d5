/**
 * The agent with `engine: tools` and `engine: both`, asked over its socket about a recorded pool: the same answers, and what happens when the
 * tools fail, say something else, or never end.
 */
import { existsSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import { pino } from 'pino'
import { type Agent, startAgent } from '../../../src/agent/agent.ts'
import { agentConfig } from '../../../src/agent/config.ts'
import type { ToolCommand } from '../../../src/devicemapper/tools/tool.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { connect, type SnapshotMetadataClient } from '../../../src/grpc/client.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { testFolder } from '../../support/test-folder.ts'
import { scriptedTools, toolCommands, toolVersions } from '../../support/tool-commands.ts'
import { type Extent, writeBigPool, writeSamplePool } from '../sample-pool.ts'

const commands = await toolCommands()
const folder = testFolder(test)
const sample = writeSamplePool(join(folder, 'sample'))
const big = writeBigPool(join(folder, 'big'), 300_000)
const toolTest = typeof commands === 'string' ? test.skip : test
let agents = 0

interface Running {
  agent: Agent
  client: SnapshotMetadataClient
  log: Record<string, unknown>[]
}

async function start(t: ExecutionContext, engine: string, toolCommand: ToolCommand): Promise<Running> {
  const log: Record<string, unknown>[] = []
  const logger = pino({ level: 'debug' }, { write: (line: string) => log.push(JSON.parse(line) as (typeof log)[0]) })
  const address = `unix://${join(folder, `agent-${agents++}.sock`)}`
  const recorded = { sample: (await sample).folder, big: (await big).folder }
  const fields = {
    ...{ listen: [address], recorded, walkers: 1, drainSeconds: 0.2, engine, toolCommand },
    monitoring: 'tcp://127.0.0.1:0'
  }
  const agent = await startAgent(agentConfig.parse(fields), logger)
  const client = connect(address)
  t.teardown(async () => {
    client.close()
    await agent.stop()
  })
  return { agent, client, log }
}

/** Both tools as the same script; what it does not do itself, 0.9.0 does. */
async function scripted(script: string): Promise<ToolCommand> {
  if (typeof commands === 'string') throw new Error(commands)
  const whole = `asked_version "$@" && echo 0.9.0 && exit\n${script}`
  return scriptedTools(folder, { thin_delta: whole, thin_dump: whole }, commands['0.9.0'])
}

async function delta(client: SnapshotMetadataClient, base: string, target: string): Promise<Extent[]> {
  return collectExtents(await client.delta({ baseSnapshotId: `sample/${base}`, targetSnapshotId: `sample/${target}` }))
}

async function allocated(client: SnapshotMetadataClient, handle: string): Promise<Extent[]> {
  return collectExtents(await client.allocated({ snapshotId: handle }))
}

async function failure(answer: Promise<unknown>): Promise<DeltamapperError> {
  const thrown: unknown = await answer.then(
    () => new Error('it was answered'),
    (error: unknown) => error
  )
  if (thrown instanceof DeltamapperError) return thrown
  throw thrown
}

/** What monitoring is told of checks: outcome → how many. */
async function counted({ log }: Running): Promise<Record<string, number>> {
  const address = String(log.find(({ msg }) => msg === 'listening')?.['monitoring'])
  const page = await (await fetch(`${address.replace('tcp:', 'http:')}/metrics`)).text()
  const samples = page.matchAll(/^deltamapper_engine_checks_total\{outcome="(\w+)"\} (\d+)$/gm)
  return Object.fromEntries([...samples].map(([, outcome, value]) => [outcome, Number(value)]))
}

const checks = (log: Running['log'], msg: string) => log.filter((line) => line['msg'] === msg)

for (const version of toolVersions) {
  for (const engine of ['tools', 'both']) {
    toolTest(`${engine}, ${version}: every answer is what the metadata says`, async (t) => {
      if (typeof commands === 'string') return
      const running = await start(t, engine, commands[version])
      const { client, log } = running
      const pool = await sample
      const names = ['mon', 'tue', 'wed', 'thu']
      let asked = 0
      for (const [i, target] of names.entries()) {
        for (const base of [undefined, ...names.slice(0, i + 1)]) {
          const answer = base === undefined ? allocated(client, `sample/${target}`) : delta(client, base, target)
          t.deepEqual(await answer, await pool.extents(base, target), `${base ?? 'all'} to ${target}`)
          asked++
        }
      }
      const { sizeBytes } = pool.snapshot('wed')
      const options = { baseSnapshotId: 'sample/mon', targetSnapshotId: 'sample/wed' }
      for (const startingOffset of [1, 65536 * 99 + 5, sizeBytes]) {
        const answer = await client.delta({ ...options, startingOffset })
        t.deepEqual(await collectExtents(answer), await pool.extents('mon', 'wed', startingOffset))
        asked++
      }
      t.is((await allocated(client, 'big/big')).length, 300_000)
      t.like(checks(log, 'the tools have a part in answers')[0], { thin_delta: version, thin_dump: version })
      const agreed = checks(log, 'the tools agree')
      t.is(agreed.length, engine === 'both' ? asked + 1 : 0)
      if (engine === 'tools') return
      t.like(agreed.at(-1)?.['checks'], { agreed: asked + 1, disagreed: 0, unchecked: 0 })
      t.deepEqual(await counted(running), { agreed: asked + 1, disagreed: 0, unchecked: 0 })
    })
  }
}

test('an agent does not start with tools that are missing, or answer wrongly', async (t) => {
  const missing = await failure(start(t, 'both', ['env', 'PATH=/nonexistent']))
  t.is(missing.code, 'DM_TOOL_MISSING')
  const old = await scriptedTools(folder, { thin_delta: 'echo 0.9.0', thin_dump: 'echo 1.0.2' })
  const unfit = await failure(start(t, 'tools', old))
  t.is(unfit.code, 'DM_TOOL_UNFIT')
  t.regex(unfit.message, /^thin_dump 1\.0\.2 /)
})

// What differs becomes the same: a changed block goes unreported. (And a device seems to map one block less.)
const WRONG = String.raw`real "$@" | sed -e '0,/<different begin/s//<same begin/' -e 's/mapped_blocks="150"/mapped_blocks="149"/'`

toolTest(
  'a tool that leaves out a changed block: with `both` the answer ends with an error, and the log has where',
  async (t) => {
    const running = await start(t, 'both', await scripted(WRONG))
    const { client, log } = running
    t.deepEqual(await counted(running), { agreed: 0, disagreed: 0, unchecked: 0 }, 'there from the start')
    const expected = await (await sample).extents('mon', 'tue')
    const error = await failure(delta(client, 'mon', 'tue'))
    t.is(error.code, 'DM_ENGINES_DISAGREE')
    t.is(error.status, 'INTERNAL')
    const [line] = checks(log, 'the tools disagree')
    t.like(line, { level: 50, base: 'sample/mon', target: 'sample/tue', code: 'DM_ENGINES_DISAGREE' })
    t.like(line?.['checks'], { agreed: 0, disagreed: 1, unchecked: 0 })
    t.deepEqual(await counted(running), { agreed: 0, disagreed: 1, unchecked: 0 })
    const [, byte] = /^they part at byte ([0-9]+): the walk says ([0-9]+)\+/.exec(String(line?.['first'])) ?? []
    t.true(expected.some(([offset, size]) => offset <= Number(byte) && Number(byte) <= offset + size))
    t.true(error.message.endsWith(String(line?.['first'])))
  }
)

toolTest('a tool that fails: an error with `tools`, an answer that is said to be unchecked with `both`', async (t) => {
  const broken = await scripted('echo "cannot allocate" >&2; exit 1')
  const tools = await start(t, 'tools', broken)
  const error = await failure(delta(tools.client, 'mon', 'tue'))
  t.is(error.code, 'DM_TOOL_FAILED')
  t.regex(error.message, /^thin_delta ended with status 1: cannot allocate/)

  const both = await start(t, 'both', broken)
  t.deepEqual(await delta(both.client, 'mon', 'tue'), await (await sample).extents('mon', 'tue'))
  const [line] = checks(both.log, 'an answer could not be checked with the tools')
  t.like(line, { level: 40, target: 'sample/tue', code: 'DM_TOOL_FAILED' })
  t.like(line?.['checks'], { unchecked: 1 })
  t.deepEqual(await counted(both), { agreed: 0, disagreed: 0, unchecked: 1 })
  t.deepEqual(await counted(tools), {}, 'nothing is checked')
})

/** A tool that leaves its number and does not end; it has printed half of an answer. */
async function endless(): Promise<{
  command: ToolCommand
  running: () => Promise<boolean>
  ended: () => Promise<void>
}> {
  const file = join(folder, `pid-${agents++}`)
  const script = `echo $$ >${file}.new; real "$@" | head -n 4; mv ${file}.new ${file}; sleep 1000`
  const alive = async () => {
    const pid = existsSync(file) ? Number(await readFile(file, 'utf8')) : undefined
    try {
      if (pid !== undefined) process.kill(pid, 0)
      return pid !== undefined
    } catch {
      return false
    }
  }
  const until = async (condition: () => Promise<boolean>) => {
    for (let patience = 0; !(await condition()); patience++) {
      if (patience > 1000) throw new Error('the tool does not do what it should')
      await sleep(10)
    }
    return true
  }
  return {
    command: await scripted(script),
    running: () => until(alive),
    ended: async () => {
      await until(async () => existsSync(file) && !(await alive()))
    }
  }
}

for (const engine of ['tools', 'both']) {
  toolTest(`${engine}: a tool that does not end is killed when the caller goes away`, async (t) => {
    const { command, running, ended } = await endless()
    const { client } = await start(t, engine, command)
    const call = new AbortController()
    const answer = client.delta({ baseSnapshotId: 'sample/mon', targetSnapshotId: 'sample/tue', signal: call.signal })
    const read = failure(answer.then((stream) => collectExtents(stream)))
    await running()
    call.abort(new DeltamapperError('DM_CANCELLED', 'the caller went away', 'nothing'))
    t.is((await read).code, 'DM_CANCELLED')
    await ended()
  })

  toolTest(`${engine}: a tool that does not end is killed when the agent stops`, async (t) => {
    const { command, running, ended } = await endless()
    const { agent, client } = await start(t, engine, command)
    const read = failure(delta(client, 'mon', 'tue'))
    await running()
    await agent.stop()
    t.like(await read, { status: 'UNAVAILABLE' })
    await ended()
  })
}

toolTest('a tool that takes its time keeps nothing of the answer back but its end', async (t) => {
  const gate = join(folder, 'gate')
  const { client } = await start(t, 'both', await scripted(`while [ ! -e ${gate} ]; do sleep 0.02; done; real "$@"`))
  const { batches } = await client.allocated({ snapshotId: 'big/big' })
  let received = 0
  let ended = false
  const reading = (async () => {
    for await (const { count } of batches) received += count
    ended = true
  })()
  // As far as it may be ahead of its check.
  while (received < 200_000) await sleep(5)
  t.false(ended)
  await writeFile(gate, '')
  await reading
  t.is(received, 300_000)
})
