/**
 * What one agent does for many: a small answer by itself, as the first of a fresh agent, and beside 64 large ones that
 * are asked for at once; and what an agent takes that nobody asks.
 *
 *   node bench/many-clients.ts FOLDER      prints the figures; FOLDER: a recorded pool, as bench/kernel-grown-pool.ts makes it
 */
import { readdirSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect, type SnapshotMetadataClient } from '../src/grpc/client.ts'
import { startAgentProcess } from './agent-process.ts'
import { cpuMilliseconds, median, residentMiB } from './measure.ts'

const CLIENTS = 64
/** Connections that they share: an agent takes a limited number of them from one process. */
const CONNECTIONS = 8
const FRESH_AGENTS = 5
const SMALL_CALLS = 300
/** Calls until V8 has compiled all that is hot. */
const CALLS_BEFORE = 20
const ALONE = 9
/** What a fresh agent is given to come to rest, in milliseconds. */
const REST_MS = 3000

export interface ManyFigures {
  /** Fresh agents' first answer, in milliseconds: median. */
  readonly firstMs: number
  /** An unchanged pair over an open connection, in milliseconds; `cpu`: processor time of the agent. */
  readonly small: { readonly median: number; readonly p99: number; readonly cpu: number }
  /** An agent that has answered once. */
  readonly rest: { readonly mib: number; readonly threads: number }
  readonly clients: number
  /** One large answer alone, in milliseconds: medians. */
  readonly alone: { readonly wall: number; readonly cpu: number }
  /** All of them at once: until the last one ended, processor time of the agent, and each one's time. */
  readonly together: { readonly wall: number; readonly cpu: number; readonly slowest: number; readonly median: number }
  /** Small calls one after the other beside them. */
  readonly beside: { readonly count: number; readonly median: number; readonly p99: number }
}

/** @param folder a recorded pool whose snapshots are base, identical and scattered */
export async function measureMany(folder: string): Promise<ManyFigures> {
  const recorded = { recorded: { bench: folder }, logLevel: 'info' }
  const first: number[] = []
  let rest = { mib: 0, threads: 0 }
  // The first one makes this process ready, too.
  for (let i = 0; i <= FRESH_AGENTS; i++) {
    const agent = await startAgentProcess(recorded)
    const client = connect(agent.address)
    try {
      await sleep(REST_MS)
      const milliseconds = await asked(client, 'identical')
      if (i > 0) first.push(milliseconds)
      await sleep(REST_MS)
      rest = { mib: residentMiB(agent.pid), threads: readdirSync(`/proc/${agent.pid}/task`).length }
    } finally {
      client.close()
      await agent.stop()
    }
  }
  const agent = await startAgentProcess(recorded)
  const clients = Array.from({ length: 1 + CONNECTIONS }, () => connect(agent.address))
  const [one] = clients
  const timed = async (name: string, count: number) => {
    const calls: { wall: number; cpu: number }[] = []
    for (let call = 0; call < count; call++) {
      const before = cpuMilliseconds(agent.pid)
      const wall = await asked(one, name)
      calls.push({ wall, cpu: cpuMilliseconds(agent.pid) - before })
    }
    return calls
  }
  try {
    for (const name of ['identical', 'scattered']) await timed(name, CALLS_BEFORE)
    const small = await timed('identical', SMALL_CALLS)
    const alone = await timed('scattered', ALONE)
    const walls = small.map(({ wall }) => wall)
    return {
      ...{ firstMs: median(first), rest, clients: CLIENTS },
      small: { median: median(walls), p99: percentile(walls, 99), cpu: median(small.map(({ cpu }) => cpu)) },
      alone: { wall: median(alone.map(({ wall }) => wall)), cpu: median(alone.map(({ cpu }) => cpu)) },
      ...(await together(agent.pid, clients))
    }
  } finally {
    for (const client of clients) client.close()
    await agent.stop()
  }
}

/** Over all connections but the first much is asked for at once; over the first little, until they have it. */
async function together(
  pid: number,
  [one, ...many]: readonly SnapshotMetadataClient[]
): Promise<Pick<ManyFigures, 'together' | 'beside'>> {
  const before = cpuMilliseconds(pid)
  const began = performance.now()
  let left = CLIENTS
  const large = Array.from({ length: CLIENTS }, async (_, i) =>
    asked(many[i % many.length], 'scattered').finally(() => left--)
  )
  const small: number[] = []
  while (left > 0) small.push(await asked(one, 'identical'))
  const times = await Promise.all(large)
  const wall = performance.now() - began
  return {
    together: { wall, cpu: cpuMilliseconds(pid) - before, slowest: Math.max(...times), median: median(times) },
    beside: { count: small.length, median: median(small), p99: percentile(small, 99) }
  }
}

/** @returns milliseconds until the last extent was decoded */
async function asked(client: SnapshotMetadataClient, target: string): Promise<number> {
  const began = performance.now()
  const { batches } = await client.delta({ baseSnapshotId: 'bench/base', targetSnapshotId: `bench/${target}` })
  for await (const batch of batches) void batch
  return performance.now() - began
}

function percentile(values: readonly number[], percent: number): number {
  return [...values].sort((a, b) => a - b)[Math.ceil((values.length * percent) / 100) - 1]
}

/** Rows of the table of what is aimed at: what, the bound, the figure. */
export function manyRows(figures: ManyFigures): string[][] {
  const { firstMs, small, rest, clients, alone, together, beside } = figures
  const ms = (value: number) => `${value < 100 ? value.toFixed(1) : value.toFixed(0)} ms`
  return [
    [
      'an unchanged pair, over an open connection: median',
      '≤ 2 ms',
      `${ms(small.median)} (p99 ${ms(small.p99)}, CPU ${ms(small.cpu)})`
    ],
    ['the first answer of a fresh agent: median', '≤ 30 ms', ms(firstMs)],
    ['agent at rest', '≤ 80 MiB, 20 threads', `${rest.mib.toFixed(0)} MiB, ${rest.threads} threads`],
    [
      `${clients} scattered deltas at once, beside ${clients} times one alone`,
      '≤ 1.2 ×',
      `${(together.wall / clients / alone.wall).toFixed(2)} × (CPU ${(together.cpu / clients / alone.cpu).toFixed(2)} ×)`
    ],
    ['the slowest of them, beside their median', '≤ 1.5 ×', `${(together.slowest / together.median).toFixed(2)} ×`],
    [`small calls beside them (${beside.count}): median`, '≤ 50 ms', ms(beside.median)],
    ['small calls beside them: p99', '≤ 200 ms', ms(beside.p99)]
  ]
}

if (import.meta.main) {
  for (const row of manyRows(await measureMany(process.argv[2]))) console.log(row.join(' | '))
}
