/**
 * The tools as engine, on a pool in use and over a real agent's socket: right answers of both versions, and a metadata snapshot that is held for
 * as long as they need it, never anybody else's. Runs inside the kernel lab: node test/lab/run.ts test/kernel/tool-engine.test.ts
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { collectExtents } from '../support/collect-extents.ts'
import type { Extent } from '../support/expected.ts'
import { scriptedTools, toolCommands, toolVersions } from '../support/tool-commands.ts'
import { answerTo, ask, failure, type Question } from './ask.ts'
import { run, sendMessage } from './dmsetup.ts'
import { LiveAgent, processes } from './live-agent.ts'
import { expectedAllocated, expectedDelta, RawPool } from './raw-pool.ts'

const mebibyte = 2 ** 20
const folder = mkdtempSync(join(tmpdir(), 'tool-engine-'))
const commands = await toolCommands()
/** (A release's lab has only tools of its own.) */
const versions = typeof commands === 'string' ? (['own'] as const) : toolVersions
const engines = ['tools', 'both'] as const
/** What the tools do next: a version's work, fail, or wait at the gate. */
const [mode, gate, reached] = ['mode', 'gate', 'reached'].map((name) => join(folder, name))

interface Started {
  agent: LiveAgent
  client: ReturnType<LiveAgent['client']>
}

let pool: RawPool
let started: Record<(typeof engines)[number], Started>
let nextId = 10

/** One agent for each engine, whose tools do what the mode says: an agent takes long to start here. */
test.before(async () => {
  pool = new RawPool({ name: 'tank', offsetBytes: 0, metadataBytes: 8 * mebibyte, dataBytes: 24 * mebibyte })
  pool.createVolume('docs', 0, 200)
  pool.write('docs', 0, 60)
  pool.snapshot('docs', 'monday', 1)
  for (const block of [0, 7, 8, 9, 30, 61, 62, 100]) pool.write('docs', block)
  pool.discard('docs', 40, 5)
  pool.snapshot('docs', 'tuesday', 2)
  pool.write('docs', 199)
  pool.write('docs', 20, 20)
  pool.snapshot('docs', 'wednesday', 3)
  writeFileSync(mode, '0.9.0')
  started = { tools: await start('tools'), both: await start('both') }
})
test.after.always(async () => {
  for (const each of Object.values(started)) await each.agent.kill()
})

async function start(engine: string): Promise<Started> {
  const newer = (name: string) => (typeof commands === 'string' ? 'false' : [...commands['1.1.0'], name].join(' '))
  const script = (name: string) => `asked_version "$@" && echo 0.9.0 && exit
case $(cat ${mode}) in
  0.9.0 | own) real "$@" ;;
  1.1.0) ${newer(name)} "$@" ;;
  gated) touch ${reached}; while [ ! -e ${gate} ]; do sleep 0.1; done; real "$@" ;;
  failing) echo "out of memory" >&2; exit 1 ;;
esac`
  const scripts = { thin_delta: script('thin_delta'), thin_dump: script('thin_dump') }
  const toolCommand = await scriptedTools(folder, scripts, ['env', `PATH=${process.env['PATH'] ?? ''}`])
  const lease = { freePercent: 10, freeBlocks: 100, waitSeconds: 15 }
  const config = { engine, toolCommand, lease, walkers: 1, logLevel: 'debug', drainSeconds: 0.2, lvmCommand: ['true'] }
  const agent = await LiveAgent.start({ config })
  return { agent, client: agent.client() }
}

const question = (base: string | undefined, target: string): Question => ({
  ...(base === undefined ? {} : { base: pool.handle(base) }),
  target: pool.handle(target)
})

function expected(base: string | undefined, target: string): Extent[] {
  return base === undefined ? expectedAllocated(pool.thin(target)) : expectedDelta(pool.thin(base), pool.thin(target))
}

/** What the pool says is held: a block, or `-`. */
const held = () => run('dmsetup', ['status', 'tank']).trim().split(' ')[6]

async function until(condition: () => boolean, what: string): Promise<void> {
  // (Less than ava's own patience, which says nothing of why.)
  for (const deadline = performance.now() + 600_000; !condition(); await sleep(20)) {
    if (performance.now() > deadline) throw new Error(`not yet: ${what}; processes: ${JSON.stringify(processes())}`)
  }
}

const slotIsFree = () => until(() => held() === '-', 'the slot is free')
const noToolIsLeft = () =>
  until(() => !processes().some(({ words, state }) => words.includes(folder) && state !== 'Z'), 'no tool is left')

/** The lines of the agent's log since the last look. */
function logged({ agent }: Started): Record<string, number | undefined> {
  const counts: Record<string, number | undefined> = {}
  for (const { msg } of agent.log.splice(0)) counts[String(msg)] = (counts[String(msg)] ?? 0) + 1
  return counts
}

/** Tools stop at the gate from now on; resolves `waiting` when one is there. */
function closeGate(): { waiting: () => Promise<void>; open: () => void } {
  for (const each of [gate, reached]) rmSync(each, { force: true })
  writeFileSync(mode, 'gated')
  return {
    waiting: () => until(() => existsSync(reached), 'a tool waits at the gate'),
    open: () => {
      writeFileSync(gate, '')
    }
  }
}

for (const version of versions) {
  for (const engine of engines) {
    test.serial(
      `${engine}, ${version}: every answer is right while the pool is written to; then the slot is free`,
      async (t) => {
        const { agent, client } = started[engine]
        writeFileSync(mode, version)
        agent.log = []
        const names = ['monday', 'tuesday', 'wednesday']
        const asked = names.flatMap((target, i) => [undefined, ...names.slice(0, i)].map((base) => ({ base, target })))
        let writing = true
        const writer = (async () => {
          for (let block = 110; writing; block = block === 180 ? 110 : block + 1) {
            pool.write('docs', block)
            await sleep(20)
          }
        })()
        // All at once: they share one.
        const answers = asked.map(async ({ base, target }) => {
          const answer = await answerTo(client, question(base, target))
          t.deepEqual(answer, expected(base, target), `${base ?? 'all'} to ${target}`)
        })
        const startingOffset = 65536 * 30 + 1
        // An answer goes on only where one was begun.
        await Promise.all(answers)
        const rest = await ask(client, question('monday', 'wednesday'), { startingOffset }).then(collectAll)
        t.deepEqual(rest, expectedDelta(pool.thin('monday'), pool.thin('wednesday'), startingOffset))
        writing = false
        await writer
        await slotIsFree()
        if (engine === 'tools') return
        const checks = () => agent.log.flatMap(({ checks, why }) => (checks === undefined ? [] : [why ?? 'agreed']))
        await until(() => checks().length === asked.length + 1, 'every check is in the log')
        t.deepEqual(new Set(checks()), new Set(['agreed']))
      }
    )
  }
}

test.serial(
  'a metadata snapshot of somebody else: refused, or answered and said to be unchecked; it stays',
  async (t) => {
    writeFileSync(mode, '0.9.0')
    sendMessage('tank', 'reserve_metadata_snap')
    const foreign = held()
    try {
      const error = await failure(answerTo(started.tools.client, question('monday', 'tuesday')))
      t.is(error.code, 'DM_DEVICE_BUSY')
      t.regex(
        error.message,
        new RegExp(`snapshot of tank is taken: another program has reserved it \\(block ${foreign}`)
      )
      t.regex(error.line, /dmsetup message tank 0 release_metadata_snap/)
      t.deepEqual(await answerTo(started.both.client, question('monday', 'tuesday')), expected('monday', 'tuesday'))
      // The log comes another way than the answer.
      const warnings = () =>
        started.both.agent.log.filter(({ level, code }) => level === 40 && code !== 'DM_BASE_UNRECORDED')
      await until(() => warnings().length > 0, 'a warning is in the log')
      t.like(warnings()[0], {
        base: 'tank/monday',
        code: 'DM_DEVICE_BUSY',
        msg: 'an answer could not be checked with the tools'
      })
      t.is(held(), foreign)
    } finally {
      sendMessage('tank', 'release_metadata_snap')
    }
    // And then it goes on.
    t.deepEqual(await answerTo(started.tools.client, question('monday', 'tuesday')), expected('monday', 'tuesday'))
    await slotIsFree()
  }
)

for (const engine of engines) {
  test.serial(
    `${engine}: a call that is cancelled, or whose time is up, leaves no tool, and the slot is free`,
    async (t) => {
      const { agent, client } = started[engine]
      agent.log = []
      const { waiting, open } = closeGate()
      const call = new AbortController()
      const cancelled = failure(ask(client, question('monday', 'tuesday'), { signal: call.signal }).then(collectAll))
      await waiting()
      t.not(held(), '-')
      call.abort(new DeltamapperError('DM_CANCELLED', 'the caller went away', 'nothing'))
      t.is((await cancelled).code, 'DM_CANCELLED')
      await slotIsFree()
      await noToolIsLeft()
      const late = await failure(ask(client, question('monday', 'tuesday'), { deadlineMs: 3000 }).then(collectAll))
      t.is(late.code, 'DM_DEADLINE_EXCEEDED')
      await slotIsFree()
      await noToolIsLeft()
      // An answer that nobody wants needs no check.
      t.is(logged(started[engine])['an answer could not be checked with the tools'], undefined)
      open()
    }
  )

  test.serial(
    `${engine}: somebody else releases it while a tool runs: nothing of what the tool says then`,
    async (t) => {
      const { client, agent } = started[engine]
      agent.log = []
      const { waiting, open } = closeGate()
      const settled = answerTo(client, question('monday', 'tuesday')).catch((error: unknown) => error)
      await waiting()
      sendMessage('tank', 'release_metadata_snap')
      // Another one takes its place at once: the tool would read that.
      sendMessage('tank', `create_snap ${nextId} 0`)
      sendMessage('tank', 'reserve_metadata_snap')
      const foreign = held()
      try {
        open()
        const outcome = await settled
        if (engine === 'tools') t.like(outcome, { status: 'ABORTED' })
        else {
          t.deepEqual(outcome, expected('monday', 'tuesday'))
          // (The answer may be here before the agent's line about it.)
          const said = () => agent.log.filter(({ msg }) => msg === 'an answer could not be checked with the tools')
          await until(() => said().length > 0, 'what could not be checked is in the log')
          t.is(said().length, 1)
        }
        t.is(held(), foreign)
      } finally {
        sendMessage('tank', 'release_metadata_snap')
        sendMessage('tank', `delete ${nextId++}`)
      }
    }
  )
}

function collectAll(answer: Awaited<ReturnType<typeof ask>>): Promise<Extent[]> {
  return collectExtents(answer)
}

test.serial('a tool that fails: its words in the error, and the slot is free', async (t) => {
  writeFileSync(mode, 'failing')
  const error = await failure(answerTo(started.tools.client, question('monday', 'tuesday')))
  t.is(error.code, 'DM_TOOL_FAILED')
  t.regex(error.message, /ended with status 1: out of memory/)
  await slotIsFree()
})

test.serial('a snapshot that is younger than the metadata snapshot that is held waits for a newer one', async (t) => {
  const { client } = started.tools
  const { waiting, open } = closeGate()
  const old = answerTo(client, question('monday', 'tuesday'))
  await waiting()
  pool.write('docs', 3)
  pool.snapshot('docs', 'thursday', nextId++)
  const young = answerTo(client, question('wednesday', 'thursday'))
  await sleep(300)
  open()
  t.deepEqual(await old, expected('monday', 'tuesday'))
  t.deepEqual(await young, expected('wednesday', 'thursday'))
  await slotIsFree()
})

test.serial('a snapshot that is written to while the tool reads its metadata snapshot: no answer', async (t) => {
  pool.deactivate('wednesday')
  pool.activate('wednesday')
  const { waiting, open } = closeGate()
  const answer = failure(answerTo(started.tools.client, question('monday', 'wednesday')))
  await waiting()
  pool.write('wednesday', 5)
  // Has the pool commit.
  t.not(held(), '-')
  open()
  t.is((await answer).code, 'DM_SNAPSHOT_CHANGED')
  await slotIsFree()
})

test.serial(
  'the agent is killed while a tool runs: the slot is free, and the tool ends with its next word',
  async (t) => {
    const { agent, client } = started.tools
    const { waiting, open } = closeGate()
    const answer = failure(answerTo(client, question('monday', 'tuesday')))
    await waiting()
    t.not(held(), '-')
    await agent.kill()
    await answer
    await slotIsFree()
    open()
    await noToolIsLeft()
  }
)
