/**
 * Hostile clients against a real agent and a real router, each within the memory that our manifests allow, while somebody else asks as usual.
 * Exit status 1 when either is killed, an answer or the stream of the bystander fails, it has to wait ten times as long as at rest, or memory
 * does not come back.
 *
 *   npm run hostile -- [--seconds N] [--only agent|router] [--attack NAME]
 */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { type AgentProcess, startAgentProcess } from '../bench/agent-process.ts'
import { fragmentedPool } from '../bench/fragmented-pool.ts'
import { connect } from '../src/grpc/client.ts'
import { attackNames } from '../test/hostile/attacker.ts'
import { MemoryLimit } from '../test/support/memory-limit.ts'
import { figure, wholeNumber } from './figures.ts'
import { projectFolder } from './setup.mjs'

const usage = `usage: hostile [--seconds N] [--only agent|router] [--attack NAME]
  --seconds N     how long each attack lasts (default 15)
  --only WHICH    attack the agent only, or the router
  --attack NAME   this attack only
`

/** What deploy/ gives an agent and a router. */
const LIMIT_BYTES = 512 * 2 ** 20
const EXTENTS = 2_000_000
const BLOCK_BYTES = 65_536
/** How much longer than at rest the bystander may wait, at the 99th percentile; and what any machine may take. */
const [SLOWER, GRACE_MS] = [10, 20]
/** How long the bystander is watched before each attack, in milliseconds. */
const REST_MS = 5000
/** What may stay of an attack's memory beyond that at rest, and for how long it is waited for. */
const [KEPT_BYTES, RETURN_MS] = [96 * 2 ** 20, 30_000]

const MIB = 2 ** 20
const inMiB = (bytes: number) => `${Math.round(bytes / MIB)} MiB`

/** Answers of a few extents, one after the other, as fast as they come. @returns how long each took, in milliseconds, sorted */
async function asking(address: string, snapshotId: string, until: AbortSignal): Promise<number[]> {
  const client = connect(address)
  const startingOffset = BigInt(2 * (EXTENTS - 20) * BLOCK_BYTES)
  const took: number[] = []
  try {
    while (!until.aborted) {
      const began = performance.now()
      const { batches } = await client.allocated({ snapshotId, startingOffset: Number(startingOffset) })
      let extents = 0
      for await (const { count } of batches) extents += count
      if (extents !== 20) throw new Error(`${extents} extents in place of 20`)
      took.push(performance.now() - began)
      await sleep(5)
    }
  } finally {
    client.close()
  }
  return took.sort((one, other) => one - other)
}

/** A stream that is read slowly, and has to come to its end, however long that is. Ends early when it is no longer wanted. */
async function reading(address: string, snapshotId: string, until: AbortSignal): Promise<void> {
  const client = connect(address)
  try {
    while (!until.aborted) {
      const { batches } = await client.allocated({ snapshotId })
      let extents = 0
      for await (const { count } of batches) {
        extents += count
        await sleep(100, undefined, { signal: until }).catch(() => undefined)
      }
      if (extents !== EXTENTS) throw new Error(`a stream ended after ${extents} of ${EXTENTS} extents`)
    }
  } finally {
    client.close()
  }
}

const p99 = (sorted: readonly number[]) => sorted[Math.floor(sorted.length * 0.99)] ?? Infinity

interface Victim {
  readonly name: string
  readonly process: AgentProcess
  readonly memory: MemoryLimit
  readonly snapshotId: string
}

/** Runs for so long, with a bystander. @returns its 99th percentile */
async function withBystander({ process: { address }, snapshotId }: Victim, ms: number): Promise<number> {
  const over = new AbortController()
  const both = Promise.all([asking(address, snapshotId, over.signal), reading(address, snapshotId, over.signal)])
  try {
    await Promise.race([sleep(ms), both])
  } finally {
    over.abort()
  }
  const [took] = await both
  return p99(took)
}

async function attacked(victim: Victim, attack: string, seconds: number, restBytes: number) {
  // Before each: the machine has other things to do too, now more, now less.
  const restMs = await withBystander(victim, REST_MS)
  const {
    memory,
    process: { address },
    snapshotId
  } = victim
  const attacker = fork(join(projectFolder, 'test/hostile/attacker.ts'), [
    address.slice('unix://'.length),
    attack,
    snapshotId
  ])
  const gone = once(attacker, 'exit')
  let waited: number
  try {
    waited = await withBystander(victim, seconds * 1000)
  } finally {
    attacker.kill('SIGKILL')
    await gone
  }
  const most = memory.held
  const giveUp = performance.now() + RETURN_MS
  while (memory.held > restBytes + KEPT_BYTES && performance.now() < giveUp) await sleep(200)
  const left = memory.held
  const figures = `p99 ${waited.toFixed(1)} ms (rest ${restMs.toFixed(1)}), ${inMiB(most)} at its end, ${inMiB(left)} after`
  const faults: string[] = []
  if (waited > SLOWER * restMs + GRACE_MS) faults.push('the bystander waited too long')
  if (left > restBytes + KEPT_BYTES) faults.push(`memory stays, of ${inMiB(restBytes)} at rest`)
  console.log(`${victim.name}, ${attack}: ${figures}${faults.map((fault) => ` — ${fault}`).join('')}`)
  return faults.length
}

/** @returns how many things went wrong */
async function attackAll(victim: Victim, attacks: readonly string[], seconds: number): Promise<number> {
  const {
    name,
    memory,
    process: { pid }
  } = victim
  // The first answers compile the code.
  await withBystander(victim, 3000)
  await withBystander(victim, REST_MS)
  const restBytes = memory.held
  console.log(`${name} (${pid}): limit ${inMiB(LIMIT_BYTES)} by ${memory.means}; at rest ${inMiB(restBytes)}`)
  let faults = 0
  for (const attack of attacks) faults += await attacked(victim, attack, seconds, restBytes)
  console.log(`${name}: ${inMiB(memory.peak)} at the most`)
  return faults
}

export async function hostile(seconds: number, only?: string, attack?: string): Promise<number> {
  const attacks = attack === undefined ? attackNames : [attack]
  const pool = await fragmentedPool(EXTENTS)
  const common = { logLevel: 'info' }
  const agent = await startAgentProcess({
    ...{ recorded: { bench: pool }, listen: ['tcp://127.0.0.1:0'], allowLoopbackTcp: true, directReads: true },
    ...common
  })
  const limits: MemoryLimit[] = []
  let router: AgentProcess | undefined
  try {
    const limited = (process: AgentProcess) => {
      const limit = new MemoryLimit(process.pid, LIMIT_BYTES)
      limits.push(limit)
      return limit
    }
    const agentMemory = limited(agent)
    let faults = 0
    if (only !== 'router') {
      const victim = { name: 'agent', process: agent, memory: agentMemory, snapshotId: 'bench/volume' }
      faults += await attackAll(victim, attacks, seconds)
    }
    if (only !== 'agent') {
      const nodes = { node: agent.addresses.find((address) => address.startsWith('tcp:')) ?? '' }
      const fixed = { nodes, handles: [{ pattern: '.+', node: 'node' }] }
      router = await startAgentProcess(
        { driverName: 'hostile.test', static: fixed, allowLoopbackTcp: true, ...common },
        'router'
      )
      const victim = { name: 'router', process: router, memory: limited(router), snapshotId: 'bench/volume' }
      faults += await attackAll(victim, attacks, seconds)
      console.log(`the agent behind it: ${inMiB(agentMemory.peak)} at the most`)
    }
    return faults
  } finally {
    await router?.stop()
    await agent.stop()
    for (const limit of limits) limit.end()
  }
}

if (process.argv[1] === import.meta.filename) {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '15' },
      only: { type: 'string' },
      attack: { type: 'string' },
      help: { type: 'boolean' }
    }
  })
  if (values.help) console.log(usage)
  else {
    const faults = await hostile(wholeNumber(values.seconds), values.only, values.attack)
    console.log(`hostile: ${figure(faults)} faults`)
    process.exitCode = faults === 0 ? 0 : 1
  }
}
