/**
 * A real agent: a process of its own behind a unix socket, asked by our client and by nobody else.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { open, readFile, stat, writeFile } from 'node:fs/promises'
import { connect as connectSocket } from 'node:net'
import { basename, join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import type { Worker } from 'node:worker_threads'

import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'
import { pino } from 'pino'

import { startAgent } from '../../src/agent/agent.ts'
import { loadConfig } from '../../src/agent/config.ts'
import type { ExtentAnswer } from '../../src/devicemapper/extents.ts'
import { DeltamapperError, type ErrorCode, type StatusName } from '../../src/errors.ts'
import { connect, type CallOptions, type SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { command, nodeFlags } from '../cli/run-command.ts'
import { scriptedTools } from '../support/tool-commands.ts'
import { testFolder } from '../support/test-folder.ts'
import { type Extent, KIB_64, type SamplePool, writeBigPool, writeSamplePool } from './sample-pool.ts'

const folder = testFolder(test)
const sample = writeSamplePool(join(folder, 'sample'))
const twin = writeSamplePool(join(folder, 'twin'))
const EXTENTS = 300_000
const big = writeBigPool(join(folder, 'big'), EXTENTS)
let agents = 0

class AgentProcess {
  readonly child: ChildProcess
  readonly address: string
  /** Its log, one entry to a line. */
  readonly log: Record<string, unknown>[] = []
  stderr = ''
  /** How it ended, once all that it said has arrived. */
  readonly exit: Promise<[status: number | null, signal: string | null]>
  readonly #clients: SnapshotMetadataClient[] = []

  private constructor(child: ChildProcess, address: string) {
    this.child = child
    this.address = address
    this.exit = once(child, 'close') as Promise<[number | null, string | null]>
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.stderr += text))
  }

  static async start(
    t: ExecutionContext,
    config: object = {},
    socket = `agent-${agents++}.sock`
  ): Promise<AgentProcess> {
    const file = join(folder, `${socket}.json`)
    await writeFile(file, JSON.stringify({ walkers: 1, drainSeconds: 0.3, ...config }))
    const address = `unix://${join(folder, socket)}`
    const pools = { sample: (await sample).folder, twin: (await twin).folder, big: (await big).folder }
    const recorded = Object.entries(pools).flatMap(([name, path]) => ['--recorded', `${name}=${path}`])
    const args = [...nodeFlags, command, 'agent', '--config', file, '--listen', address, ...recorded]
    const agent = new AgentProcess(spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] }), address)
    t.teardown(async () => {
      for (const client of agent.#clients) client.close()
      agent.child.kill('SIGKILL')
      await agent.exit
    })
    const { stdout } = agent.child
    if (!stdout) throw new Error('the agent has no stdout')
    const listening = new Promise<void>((resolve) => {
      createInterface(stdout).on('line', (line) => {
        agent.log.push(JSON.parse(line) as Record<string, unknown>)
        if (agent.said('listening')) resolve()
      })
    })
    await Promise.race([listening, agent.exit])
    if (!agent.said('listening')) throw new Error(`the agent does not listen: ${agent.stderr}`)
    return agent
  }

  said(what: string): boolean {
    return this.log.some(({ msg }) => msg === what)
  }

  client(): SnapshotMetadataClient {
    const client = connect(this.address)
    this.#clients.push(client)
    return client
  }

  /** Bytes of memory that it holds. */
  async memory(): Promise<number> {
    const status = await readFile(`/proc/${this.child.pid}/status`, 'utf8')
    return 1024 * Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1])
  }

  /** Bytes that it has read so far, from whatever. */
  async bytesRead(): Promise<number> {
    return Number(/^rchar: (\d+)$/m.exec(await readFile(`/proc/${this.child.pid}/io`, 'utf8'))?.[1])
  }
}

/** One agent for every test that leaves it as it was. */
let shared: Promise<AgentProcess> | undefined
const releases: (() => unknown)[] = []
test.after.always(async () => {
  for (const release of releases) await release()
})
function sharedAgent(): Promise<AgentProcess> {
  const teardown = (release: () => unknown) => releases.push(release)
  return (shared ??= AgentProcess.start({ teardown } as unknown as ExecutionContext))
}

interface Asked extends CallOptions {
  base?: string
  target: string
}

function ask(client: SnapshotMetadataClient, { base, target, ...options }: Asked): Promise<ExtentAnswer> {
  return base === undefined
    ? client.allocated({ snapshotId: target, ...options })
    : client.delta({ baseSnapshotId: base, targetSnapshotId: target, ...options })
}

async function collect({ batches }: ExtentAnswer): Promise<Extent[]> {
  const extents: Extent[] = []
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) extents.push([offsets[i], sizes[i]])
  }
  return extents
}

test('over the socket: every snapshot and every pair in order, as the metadata has it', async (t) => {
  const client = (await sharedAgent()).client()
  const pool = await sample
  const names = ['mon', 'tue', 'wed', 'thu']
  for (const [index, target] of names.entries()) {
    for (const base of [undefined, ...names.slice(0, index + 1)]) {
      const handles = { ...(base !== undefined && { base: `sample/${base}` }), target: `sample/${target}` }
      const stream = await ask(client, handles)
      t.is(stream.capacityBytes, pool.listed(target).size_bytes)
      t.deepEqual(await collect(stream), await pool.extents(base, target), `${base} to ${target}`)
    }
  }
})

test('resumed anywhere, with any number of results, the extents are those of one whole stream', async (t) => {
  const client = (await sharedAgent()).client()
  const pool = await sample
  const names = ['mon', 'tue', 'wed', 'thu']
  const stretch = fc.record({ maxResults: fc.constantFrom(0, 1, 2, 3, 17, 1000), taken: fc.nat({ max: 60 }) })
  const question = fc.record({
    base: fc.option(fc.nat({ max: 3 })),
    target: fc.nat({ max: 3 }),
    stretches: fc.array(stretch, { minLength: 1, maxLength: 6 }),
    from: fc.double({ min: 0, max: 1, noNaN: true })
  })
  await fc.assert(
    fc.asyncProperty(question, async ({ base, target, stretches, from }) => {
      const baseName = base === null ? undefined : names[Math.min(base, target)]
      const handles = {
        ...(baseName !== undefined && { base: `sample/${baseName}` }),
        target: `sample/${names[target]}`
      }
      const whole = await pool.extents(baseName, names[target])

      // Left after some extents and taken up at the end of the last one, until it comes to its end.
      const pieces: Extent[] = []
      for (let round = 0; ; round++) {
        const { maxResults, taken } = stretches[round % stretches.length]
        const [begin, size] = pieces.at(-1) ?? [0, 0]
        const stream = await ask(client, { ...handles, startingOffset: begin + size, maxResults })
        const most = taken + 1
        const piece: Extent[] = []
        for await (const { count, offsets, sizes } of stream.batches) {
          t.true(maxResults === 0 || count <= maxResults)
          for (let i = 0; i < count && piece.length < most; i++) piece.push([offsets[i], sizes[i]])
          if (piece.length === most) break
        }
        pieces.push(...piece)
        if (piece.length < most) break
      }
      t.deepEqual(pieces, whole)

      // From anywhere at all: the same, but for the extent that the offset lies in, which may be cut at a block.
      const startingOffset = Math.floor(from * pool.listed(names[target]).size_bytes)
      const ahead = await collect(await ask(client, { ...handles, startingOffset }))
      const expected = whole.filter(([begin, size]) => begin + size > startingOffset)
      t.deepEqual(ahead.slice(1), expected.slice(1))
      t.is(ahead.length, expected.length)
      if (ahead.length > 0) {
        t.is(ahead[0][0] + ahead[0][1], expected[0][0] + expected[0][1])
        t.is(ahead[0][0], Math.max(expected[0][0], Math.floor(startingOffset / KIB_64) * KIB_64))
      }
    }),
    { numRuns: 40 }
  )
})

const refusals: [name: string, asked: Asked, code: ErrorCode, status: StatusName, says: RegExp][] = [
  ['an empty id', { target: '' }, 'DM_ARGUMENT_MISSING', 'INVALID_ARGUMENT', /snapshot_id is empty/],
  ['an empty base', { base: '', target: 'sample/mon' }, 'DM_ARGUMENT_MISSING', 'INVALID_ARGUMENT', /base_snapshot_id/],
  ['an id of 129 bytes', { target: `s/${'x'.repeat(127)}` }, 'DM_HANDLE_INVALID', 'INVALID_ARGUMENT', /129 bytes/],
  ['no handle', { target: '../..' }, 'DM_HANDLE_INVALID', 'INVALID_ARGUMENT', /is no snapshot handle/],
  ['an unknown source', { target: 'x/mon' }, 'DM_SNAPSHOT_NOT_FOUND', 'NOT_FOUND', /no source x/],
  ['an unknown snapshot', { target: 'sample/x' }, 'DM_SNAPSHOT_NOT_FOUND', 'NOT_FOUND', /no snapshot x/],
  [
    'an unknown base',
    { base: 'sample/x', target: 'sample/mon' },
    'DM_SNAPSHOT_NOT_FOUND',
    'NOT_FOUND',
    /no snapshot x/
  ],
  [
    'another pool',
    { base: 'twin/mon', target: 'sample/mon' },
    'DM_POOLS_DIFFER',
    'INVALID_ARGUMENT',
    /different pools/
  ],
  [
    'another volume',
    { base: 'sample/other-mon', target: 'sample/thu' },
    'DM_VOLUMES_DIFFER',
    'INVALID_ARGUMENT',
    /is a snapshot of sample\/other/
  ],
  [
    'reversed order',
    { base: 'sample/thu', target: 'sample/mon' },
    'DM_ORDER_REVERSED',
    'INVALID_ARGUMENT',
    /sample\/thu was taken after target sample\/mon/
  ],
  ['a lost base', { base: 'sample/gone', target: 'sample/thu' }, 'DM_BASE_LOST', 'FAILED_PRECONDITION', /no longer in/],
  ['a lost target', { target: 'sample/gone' }, 'DM_SNAPSHOT_NOT_FOUND', 'NOT_FOUND', /no longer in/],
  ['a negative offset', { target: 'sample/mon', startingOffset: -1 }, 'DM_OFFSET_OUT_OF_RANGE', 'OUT_OF_RANGE', /-1/],
  [
    'an offset beyond the end',
    { target: 'sample/mon', startingOffset: 300 * KIB_64 + 1 },
    'DM_OFFSET_OUT_OF_RANGE',
    'OUT_OF_RANGE',
    /19660801 is outside sample\/mon, which has 19660800 bytes/
  ],
  [
    'the last offset there is',
    { base: 'sample/mon', target: 'sample/tue', startingOffset: 2n ** 63n - 1n },
    'DM_OFFSET_OUT_OF_RANGE',
    'OUT_OF_RANGE',
    /9223372036854775807/
  ],
  [
    'negative results',
    { target: 'sample/mon', maxResults: -1 },
    'DM_ARGUMENT_INVALID',
    'INVALID_ARGUMENT',
    /max_results/
  ]
]

for (const [name, asked, code, status, says] of refusals) {
  test(`refused over the socket, and the next call works: ${name}`, async (t) => {
    const client = (await sharedAgent()).client()
    const error = await t.throwsAsync<DeltamapperError>(ask(client, asked), { instanceOf: DeltamapperError })
    t.is(error?.code, code, error?.message)
    t.is(error?.status, status)
    t.regex(error?.message ?? '', says)
    t.not(error?.remedy, '')
    t.deepEqual(
      await collect(await ask(client, { target: 'sample/mon' })),
      await (await sample).extents(undefined, 'mon')
    )
  })
}

test('at the very end of the volume there is nothing, and the capacity is told', async (t) => {
  const client = (await sharedAgent()).client()
  for (const name of ['mon', 'tue']) {
    const { size_bytes } = (await sample).listed(name)
    const stream = await ask(client, { target: `sample/${name}`, startingOffset: size_bytes })
    t.is(stream.capacityBytes, size_bytes)
    t.deepEqual(await collect(stream), [])
  }
})

test('many callers at once are all answered right', async (t) => {
  const agent = await sharedAgent()
  const pool: SamplePool = await sample
  const expected = await pool.extents('mon', 'thu')
  await Promise.all(
    Array.from({ length: 8 }, async (_, caller) => {
      const client = agent.client()
      for (let call = 0; call < 5; call++) {
        const asked = { base: 'sample/mon', target: 'sample/thu', maxResults: 1 + caller }
        t.deepEqual(await collect(await ask(client, asked)), expected)
      }
    })
  )
})

test('a call is logged with what it cost, and a refused one with why', async (t) => {
  const agent = await AgentProcess.start(t)
  const client = agent.client()
  await collect(await ask(client, { base: 'sample/mon', target: 'sample/tue' }))
  await ask(client, { target: 'sample/nope' }).catch(() => undefined)
  for (let waited = 0; agent.log.filter(({ msg }) => msg === 'call').length < 2 && waited < 300_000; waited += 10) {
    await setTimeout(10)
  }
  const [good, bad] = agent.log.filter(({ msg }) => msg === 'call')
  t.like(good, {
    status: 'OK',
    baseSnapshotId: 'sample/mon',
    targetSnapshotId: 'sample/tue',
    name: 'deltamapper-agent'
  })
  t.true((good['statistics'] as { nodesRead: number }).nodesRead > 0)
  t.like(bad, { status: 'NOT_FOUND', code: 'DM_SNAPSHOT_NOT_FOUND', snapshotId: 'sample/nope' })
})

test('a slow client costs no memory: its walk waits for it', async (t) => {
  const agent = await AgentProcess.start(t)
  const image = (await stat((await big).metadataPath)).size
  // So that what a first call allocates for good is there already.
  await collect(await ask(agent.client(), { target: 'sample/mon' }))
  const [memory, read] = [await agent.memory(), await agent.bytesRead()]
  const stream = await ask(agent.client(), { target: 'big/big', maxResults: 100 })
  const batches = stream.batches[Symbol.asyncIterator]()
  const first = await batches.next()
  let extents = first.done ? 0 : first.value.count
  t.true(extents > 0)

  // It goes on until the buffers between us are full, and then stops.
  let before = -1
  for (let now = await agent.bytesRead(); now !== before; now = await agent.bytesRead()) {
    before = now
    await setTimeout(300)
  }
  const walked = before - read
  t.true(walked < 0.7 * image, `${walked} of ${image} bytes of metadata were read for a client that took one message`)
  const growth = (await agent.memory()) - memory
  t.log(`${walked} of ${image} bytes of metadata read, ${growth} bytes of memory more`)
  t.true(growth < 64 * 2 ** 20, `${growth} bytes of memory more`)

  // Others are served meanwhile, and in the end so is this one.
  t.is((await collect(await ask(agent.client(), { target: 'big/big' }))).length, EXTENTS)
  for (let next = await batches.next(); !next.done; next = await batches.next()) extents += next.value.count
  t.is(extents, EXTENTS)
  const inTheEnd = await agent.memory()
  t.true(inTheEnd < 200 * 2 ** 20, `${inTheEnd} bytes of memory in the end`)
})

test('SIGTERM lets a stream finish, takes no new one, and ends 0', async (t) => {
  const agent = await AgentProcess.start(t, { drainSeconds: 20 })
  const client = agent.client()
  const stream = await ask(client, { target: 'big/big', maxResults: 1000 })
  const batches = stream.batches[Symbol.asyncIterator]()
  const first = await batches.next()
  let extents = first.done ? 0 : first.value.count
  agent.child.kill('SIGTERM')
  for (let waited = 0; !agent.said('stopping') && waited < 300_000; waited += 10) await setTimeout(10)
  t.false(existsSync(agent.address.slice('unix://'.length)), 'the socket is gone')
  const refused = await t.throwsAsync<DeltamapperError>(ask(client, { target: 'sample/mon' }), {
    instanceOf: DeltamapperError
  })
  t.is(refused?.status, 'UNAVAILABLE')
  t.is(agent.child.exitCode, null)
  for (let next = await batches.next(); !next.done; next = await batches.next()) extents += next.value.count
  t.is(extents, EXTENTS)
  t.deepEqual(await agent.exit, [0, null])
  t.true(agent.said('stopped'))
  t.is(agent.stderr, '')
})

test('SIGTERM does not wait for ever: what has not ended in time is told so, and it still ends 0', async (t) => {
  const agent = await AgentProcess.start(t, { drainSeconds: 0.2 })
  const stream = await ask(agent.client(), { target: 'big/big', maxResults: 10 })
  const batches = stream.batches[Symbol.asyncIterator]()
  t.false((await batches.next()).done)
  // (Without a limit it would wait for whoever reads the stream.)
  agent.child.kill('SIGTERM')
  t.deepEqual(await agent.exit, [0, null])
  const error = await t.throwsAsync<DeltamapperError>(
    async () => {
      while (!(await batches.next()).done);
    },
    { instanceOf: DeltamapperError }
  )
  // Whether its last words come through or only its end: never an OK.
  t.is(error?.status, 'UNAVAILABLE', error?.message)
  t.true(agent.said('stopped'))
})

test('asked to stop while it starts, it does so once it has started, and ends 0', async (t) => {
  const config = join(folder, 'slow.json')
  const gate = join(folder, 'gate')
  await promisify(execFile)('mkfifo', [gate])
  // It asks its tools for their versions; one of them waits.
  const toolCommand = await scriptedTools(folder, { thin_delta: `cat '${gate}'`, thin_dump: 'echo 0.9.0' })
  const listen = [`unix://${join(folder, 'slow.sock')}`]
  await writeFile(config, JSON.stringify({ engine: 'both', toolCommand, listen }))
  const args = [...nodeFlags, command, 'agent', '--config', config, '--recorded', `sample=${(await sample).folder}`]
  const child = spawn(process.execPath, args, { stdio: 'ignore' })
  t.teardown(() => child.kill('SIGKILL'))
  const exit = once(child, 'exit')
  // It can be opened once the tool has opened it.
  const file = await open(gate, 'w')
  child.kill('SIGTERM')
  await file.writeFile('0.9.0\n')
  await file.close()
  t.deepEqual(await exit, [0, null])
})

test('a second signal ends it at once', async (t) => {
  const agent = await AgentProcess.start(t, { drainSeconds: 60 })
  const batches = (await ask(agent.client(), { target: 'big/big', maxResults: 10 })).batches[Symbol.asyncIterator]()
  t.false((await batches.next()).done)
  agent.child.kill('SIGINT')
  for (let waited = 0; !agent.said('stopping') && waited < 300_000; waited += 10) await setTimeout(10)
  agent.child.kill('SIGINT')
  t.deepEqual(await agent.exit, [null, 'SIGINT'])
  await t.throwsAsync(async () => {
    while (!(await batches.next()).done);
  })
})

test('what a killed agent left behind is replaced, what a living one holds is not', async (t) => {
  const first = await AgentProcess.start(t)
  const socket = first.address.slice('unix://'.length)
  t.is((await stat(socket)).mode & 0o777, 0o600)
  await t.throwsAsync(AgentProcess.start(t, {}, basename(socket)), {
    message: /another process is listening on .*\(DM_SOCKET_IN_USE\)/
  })
  t.is((await collect(await ask(first.client(), { base: 'sample/mon', target: 'sample/mon' }))).length, 0)
  first.child.kill('SIGKILL')
  await first.exit
  t.true(existsSync(socket))
  const second = await AgentProcess.start(t, { socketMode: '0660' }, basename(socket))
  t.is((await stat(socket)).mode & 0o777, 0o660)
  t.deepEqual(
    await collect(await ask(second.client(), { target: 'sample/tue' })),
    await (await sample).extents(undefined, 'tue')
  )
})

test('an agent that cannot start says why in one line, and leaves nothing', async (t) => {
  for (const [config, says] of [
    [{ walkres: 1 }, /Unrecognized key: "walkres".*\(DM_CONFIG_INVALID\)$/],
    [{ recorded: { broken: join(folder, 'nothing') } }, /ENOENT.*\(DM_RECORDED_POOL_INVALID\)$/],
    [{ driverName: 'not a name' }, /no CSI driver name.*\(DM_CONFIG_INVALID\)$/]
  ] as const) {
    const error = await t.throwsAsync(AgentProcess.start(t, config))
    const line = (error?.message ?? '').replace('the agent does not listen: ', '').trimEnd()
    t.regex(line, says)
    t.notRegex(line, /\n/)
  }
})

test.serial('in this process: a start that fails and a stop leave neither thread nor socket', async (t) => {
  const threads: Worker[] = []
  const started = (worker: Worker) => threads.push(worker)
  process.on('worker', started)
  t.teardown(() => process.off('worker', started))
  const logger = pino({ level: 'silent' })
  const socket = join(folder, 'in-process.sock')
  const options = { listen: [`unix://${socket}`], recorded: { sample: (await sample).folder } }
  const config = { ...(await loadConfig(options)), walkers: 2, drainSeconds: 0 }

  const bad = { ...config, listen: [`unix://${join(folder, 'no-such-folder', 'x.sock')}`] }
  const error = await t.throwsAsync<DeltamapperError>(startAgent(bad, logger), { instanceOf: DeltamapperError })
  t.is(error?.code, 'DM_CONFIG_INVALID')
  t.deepEqual(
    threads.map(({ threadId }) => threadId),
    [-1, -1]
  )

  const agent = await startAgent(config, logger)
  t.deepEqual(agent.addresses, [`unix://${socket}`])
  const client = connect(agent.addresses[0])
  t.true((await collect(await ask(client, { target: 'sample/mon' }))).length > 0)
  client.close()
  await agent.stop()
  // (Beside the walkers there is one that looks at the node.)
  t.true(threads.length >= 4)
  t.deepEqual([...new Set(threads.map(({ threadId }) => threadId))], [-1])
  t.false(existsSync(socket))
  const gone = connectSocket(socket)
  t.like(await once(gone, 'error').then(([reason]) => reason as Error), { code: 'ENOENT' })
})
