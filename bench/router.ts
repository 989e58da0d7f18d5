/**
 * What a router costs: a large answer through it, over mutual TLS from the agent, beside the same answer asked of the agent itself, over the
 * same mutual TLS; what streams cost that nobody reads; and how soon a walk ends on its node when its call is cancelled.
 *
 *   node bench/router.ts [RUNS] [EXTENTS]      prints the figures
 */
import { Client, type ClientReadableStream, credentials } from '@grpc/grpc-js'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { tlsChannel, type TlsFiles } from '../src/grpc/tls.ts'
import { Authority } from '../test/support/certificates.ts'
import { type AgentProcess, startAgentProcess } from './agent-process.ts'
import { fragmentedPool } from './fragmented-pool.ts'
import { cpuSeconds, median, residentMiB } from './measure.ts'

const method = '/csi.v1.SnapshotMetadata/GetMetadataAllocated'
const identity = (bytes: Buffer) => bytes
/** What nobody reads. */
const IDLE_STREAMS = 150
const IDLE_SECONDS = 10
/** The answer that is cancelled. */
const CANCELLED = 20

/** One way to ask: medians of all runs. */
export interface WayFigures {
  milliseconds: number
  /** Seconds of processor time for a GB (10^9 bytes) of answers, by process. */
  cpuPerGB: { agent: number; router: number; client: number }
}

export interface RouterFigures {
  extents: number
  bytes: number
  routed: WayFigures
  direct: WayFigures
  /** Of so many streams that nobody reads, for so many seconds: processor time in seconds, and memory in MiB more than before. */
  idle: { streams: number; seconds: number; cpu: number; agentMiB: number; routerMiB: number }
  /** From the client's cancellation to the agent's line about it, in milliseconds. */
  cancel: { median: number; worst: number }
}

/** Runs in turn, so that both ways see the same machine: routed, direct, routed, … */
export async function measureRouter(extents: number, runs: number): Promise<RouterFigures> {
  const pool = await fragmentedPool(extents)
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-bench-'))
  const authority = await Authority.create(join(folder, 'authority'))
  const [agentTls, routerTls] = [await authority.issue('agent.bench'), await authority.issue('router.bench')]
  const agent = await startAgentProcess({
    listen: ['tcp://127.0.0.1:0'],
    tls: { ...agentTls, clientName: 'router.bench' },
    recorded: { bench: pool },
    logLevel: 'info'
  })
  const [, agentAddress] = agent.addresses
  const router = await startAgentProcess(
    {
      driverName: 'bench.deltamapper.dev',
      tls: { ...routerTls, agentName: 'agent.bench' },
      static: { nodes: { node: agentAddress }, handles: [{ pattern: '.*', node: 'node' }] }
    },
    'router'
  )
  const throughRouter = () =>
    new Client(router.address.replace('unix://', 'unix:'), credentials.createInsecure(), window)
  const material = await readTls(routerTls)
  const straight = () => {
    const { credentials: mutual, options } = tlsChannel(material, 'agent.bench')
    return new Client(agentAddress.replace('tcp://', 'ipv4:'), mutual, { ...window, ...options })
  }
  try {
    const ways = { routed: new Way(throughRouter, agent, router), direct: new Way(straight, agent, router) }
    const { bytes } = await ways.routed.run()
    await ways.direct.run()
    for (const way of Object.values(ways)) way.forget()
    for (let run = 0; run < runs; run++) {
      await ways.routed.run()
      await ways.direct.run()
    }
    return {
      extents,
      bytes,
      routed: ways.routed.figures,
      direct: ways.direct.figures,
      cancel: await measureCancellation(throughRouter, agent),
      idle: await measureIdle(throughRouter, agent, router)
    }
  } finally {
    await router.stop()
    await agent.stop()
    await rm(folder, { recursive: true })
  }
}

const window = { 'grpc-node.flow_control_window': 2 ** 20, 'grpc.use_local_subchannel_pool': 1 }

async function readTls({ certificate, key, ca }: TlsFiles) {
  return { cert: await readFile(certificate), key: await readFile(key), ca: await readFile(ca) }
}

/** Asks for everything, and throws it away undecoded. */
class Way {
  readonly #connect: () => Client
  readonly #agent: AgentProcess
  readonly #router: AgentProcess
  #runs: { milliseconds: number; agent: number; router: number; client: number }[] = []

  constructor(connect: () => Client, agent: AgentProcess, router: AgentProcess) {
    this.#connect = connect
    this.#agent = agent
    this.#router = router
  }

  async run(): Promise<{ bytes: number }> {
    const cpu = () => [this.#agent.pid, this.#router.pid, process.pid].map(cpuSeconds)
    const client = this.#connect()
    const before = cpu()
    const began = performance.now()
    const bytes = await drain(client)
    const milliseconds = performance.now() - began
    const [agent, router, own] = cpu().map((seconds, i) => (seconds - before[i]) / (bytes / 1e9))
    client.close()
    this.#runs.push({ milliseconds, agent, router, client: own })
    return { bytes }
  }

  forget(): void {
    this.#runs = []
  }

  get figures(): WayFigures {
    const of = (name: 'milliseconds' | 'agent' | 'router' | 'client') => median(this.#runs.map((run) => run[name]))
    return {
      milliseconds: of('milliseconds'),
      cpuPerGB: { agent: of('agent'), router: of('router'), client: of('client') }
    }
  }
}

function ask(client: Client): ClientReadableStream<Buffer> {
  const request = Buffer.concat([Buffer.from([0x0a, 'bench/volume'.length]), Buffer.from('bench/volume')])
  return client.makeServerStreamRequest(method, identity, identity, request)
}

async function drain(client: Client): Promise<number> {
  let bytes = 0
  await new Promise<void>((resolve, reject) => {
    const call = ask(client)
    call.on('data', (message: Buffer) => (bytes += message.length))
    call.on('end', resolve)
    call.on('error', reject)
  })
  return bytes
}

async function measureCancellation(connect: () => Client, agent: AgentProcess): Promise<RouterFigures['cancel']> {
  const client = connect()
  const times: number[] = []
  for (let i = 0; i < CANCELLED; i++) {
    const call = ask(client)
    call.on('error', () => undefined)
    for (let messages = 0; messages < 50;) {
      await new Promise((resolve) => call.once('data', resolve))
      messages++
    }
    const logged = agent.nextCall()
    const began = performance.now()
    call.cancel()
    const { status } = await logged
    if (status !== 'CANCELLED') throw new Error(`a call that was cancelled ended with ${status}`)
    times.push(performance.now() - began)
  }
  client.close()
  return { median: median(times), worst: Math.max(...times) }
}

async function measureIdle(
  connect: () => Client,
  agent: AgentProcess,
  router: AgentProcess
): Promise<RouterFigures['idle']> {
  const memory = () => [residentMiB(agent.pid), residentMiB(router.pid)]
  const before = memory()
  const client = connect()
  const calls = Array.from({ length: IDLE_STREAMS }, () => ask(client))
  for (const call of calls) call.on('error', () => undefined)
  // One message of each: a client of grpc-js that has never asked for any takes them all, and keeps them.
  await Promise.all(calls.map((call) => new Promise((resolve) => call.once('data', () => resolve(call.pause())))))
  // Until all of them have come to rest.
  const cpu = () => cpuSeconds(agent.pid) + cpuSeconds(router.pid)
  for (let last = -1; last !== cpu();) {
    last = cpu()
    await sleep(1000)
  }
  const [agentMiB, routerMiB] = memory().map((now, i) => now - before[i])
  const began = cpu()
  await sleep(IDLE_SECONDS * 1000)
  const spent = cpu() - began
  for (const call of calls) call.cancel()
  client.close()
  return { streams: IDLE_STREAMS, seconds: IDLE_SECONDS, cpu: spent, agentMiB, routerMiB }
}

export const routerHeading = '## Through the router'

/** The section of docs/benchmarks.md. */
export function renderRouter({ extents, bytes, routed, direct, idle, cancel }: RouterFigures): string {
  const count = (value: number) => Math.round(value).toLocaleString('en-US')
  const row = (title: string, { milliseconds, cpuPerGB }: WayFigures) => {
    const { agent, router, client } = cpuPerGB
    const cells = [
      ...[
        title,
        `${count(milliseconds)} ms`,
        count(bytes / 1e3 / milliseconds),
        count((extents / milliseconds) * 1000)
      ],
      ...[agent, router, client, agent + router + client].map((seconds) => seconds.toFixed(1))
    ]
    return `| ${cells.join(' | ')} |`
  }
  return `${routerHeading}

The same answer of ${count(extents)} extents (${count(bytes / 1e6)} MB) over mutual TLS on loopback: asked of the router, which asks the agent, and asked of the agent
itself. The client throws messages away undecoded. CPU in seconds for each GB of answers; the walk is part of the agent's.

| | time | MB/s | extents/s | CPU agent | router | client | together |
|---|--:|--:|--:|--:|--:|--:|--:|
${row('through the router', routed)}
${row('of the agent itself', direct)}

${idle.streams} streams that nobody reads, through the router, for ${idle.seconds} s: ${idle.cpu.toFixed(2)} s of CPU in agent and router together; they hold ${idle.agentMiB.toFixed(0)} MiB in the
agent and ${idle.routerMiB.toFixed(0)} MiB in the router. A walk ends on its node ${cancel.median.toFixed(1)} ms after its client has cancelled the call (median of ${CANCELLED}; at worst ${cancel.worst.toFixed(1)} ms).
`
}

if (import.meta.main) {
  console.log(renderRouter(await measureRouter(Number(process.argv[3] ?? 20_000_000), Number(process.argv[2] ?? 3))))
}
