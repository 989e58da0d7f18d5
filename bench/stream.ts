/**
 * How fast extents stream: a whole GetMetadataAllocated call over a unix socket, beside the time that grpc-js itself needs to pass on the
 * same bytes when they lie ready-made in memory. The difference is all that reading, checking, comparing and encoding cost.
 */
import { Client, credentials, Server, ServerCredentials, type ServerWritableStream } from '@grpc/grpc-js'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BlockMetadataEncoder } from '../src/grpc/block-metadata.ts'
import { startAgentProcess } from './agent-process.ts'
import { fragmentedPool } from './fragmented-pool.ts'
import { cpuMilliseconds, median, peakMemoryMiB } from './measure.ts'

const method = '/csi.v1.SnapshotMetadata/GetMetadataAllocated'
const identity = (bytes: Buffer) => bytes

export interface StreamFigures {
  extents: number
  bytes: number
  /** Medians, in milliseconds. */
  agentMs: number
  readyMadeMs: number
  /** Median of the ratios of neighbouring runs. */
  ratio: number
  agentPeakMiB: number
  /** Processor time, in milliseconds: medians. */
  agentCpuMs: number
  readyMadeCpuMs: number
}

/** Runs in turn, so that both see the same machine: agent, ready-made, agent, … */
export async function measureStream(extents: number, runs: number): Promise<StreamFigures> {
  const folder = await fragmentedPool(extents)
  const agent = await startAgentProcess({ recorded: { bench: folder }, logLevel: 'info' })
  const readyMade = await startReadyMade(extents)
  try {
    const request = Buffer.concat([Buffer.from([0x0a, 'bench/volume'.length]), Buffer.from('bench/volume')])
    await drain(agent.address, request)
    await drain(readyMade.address, request)
    const agentMs: number[] = []
    const readyMadeMs: number[] = []
    const cpu: { agent: number; readyMade: number }[] = []
    let bytes = 0
    for (let run = 0; run < runs; run++) {
      const before = [agent.pid, readyMade.pid].map(cpuMilliseconds)
      const one = await drain(agent.address, request)
      const other = await drain(readyMade.address, request)
      const [used, usedReadyMade] = [agent.pid, readyMade.pid].map((pid, i) => cpuMilliseconds(pid) - before[i])
      cpu.push({ agent: used, readyMade: usedReadyMade })
      if (one.bytes !== other.bytes)
        throw new Error(`the agent sent ${one.bytes} bytes, ready-made were ${other.bytes}`)
      bytes = one.bytes
      agentMs.push(one.milliseconds)
      readyMadeMs.push(other.milliseconds)
    }
    return {
      extents,
      bytes,
      agentMs: median(agentMs),
      readyMadeMs: median(readyMadeMs),
      ratio: median(agentMs.map((ms, i) => ms / readyMadeMs[i])),
      agentPeakMiB: peakMemoryMiB(agent.pid),
      agentCpuMs: median(cpu.map(({ agent }) => agent)),
      readyMadeCpuMs: median(cpu.map(({ readyMade }) => readyMade))
    }
  } finally {
    await readyMade.stop()
    await agent.stop()
  }
}

/** One call, its messages counted and thrown away undecoded: the client must not be the bottleneck. */
async function drain(address: string, request: Buffer): Promise<{ milliseconds: number; bytes: number }> {
  const client = new Client(address.replace('unix://', 'unix:'), credentials.createInsecure(), {
    'grpc-node.flow_control_window': 2 ** 20,
    'grpc.use_local_subchannel_pool': 1
  })
  const began = performance.now()
  let bytes = 0
  await new Promise<void>((resolve, reject) => {
    const call = client.makeServerStreamRequest(method, identity, identity, request)
    call.on('data', (message: Buffer) => (bytes += message.length))
    call.on('end', resolve)
    call.on('error', reject)
  })
  client.close()
  return { milliseconds: performance.now() - began, bytes }
}

/** A bare grpc-js server in a process of its own that streams messages it has had in memory all along. */
async function startReadyMade(extents: number): Promise<{ address: string; pid: number; stop(): Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-bench-'))
  const path = join(folder, 'ready-made.sock')
  const child = spawn(process.execPath, [import.meta.filename, path, String(extents)], {
    stdio: ['ignore', 'pipe', 'inherit']
  })
  await once(child.stdout, 'data')
  return {
    ...{ address: `unix://${path}`, pid: child.pid! },
    async stop() {
      const gone = once(child, 'exit')
      child.kill()
      await gone
      await rm(folder, { recursive: true })
    }
  }
}

/** The same messages that the agent makes for the fragmented pool. */
function readyMadeMessages(extents: number): Buffer[] {
  const blockBytes = 65536
  const encoder = new BlockMetadataEncoder(2 * extents * blockBytes, 0)
  const messages: Buffer[] = []
  const one = { count: 1, offsets: new Float64Array(1), sizes: Float64Array.of(blockBytes) }
  for (let i = 0; i < extents; i++) {
    one.offsets[0] = 2 * i * blockBytes
    encoder.add(one, 0)
    if (encoder.isFull) messages.push(Buffer.from(encoder.finish().buffer))
  }
  if (encoder.count > 0) messages.push(Buffer.from(encoder.finish().buffer))
  return messages
}

async function serveReadyMade(path: string, extents: number): Promise<void> {
  const messages = readyMadeMessages(extents)
  const server = new Server()
  server.addService(
    {
      GetMetadataAllocated: {
        path: method,
        requestStream: false,
        responseStream: true,
        requestSerialize: identity,
        requestDeserialize: identity,
        responseSerialize: identity,
        responseDeserialize: identity
      }
    },
    {
      GetMetadataAllocated: (call: ServerWritableStream<Buffer, Buffer>) => {
        void (async () => {
          for (const message of messages) await new Promise((taken) => call.write(message, taken))
          call.end()
        })()
      }
    }
  )
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(`unix:${path}`, ServerCredentials.createInsecure(), (error) => (error ? reject(error) : resolve()))
  })
  console.log('listening')
}

if (process.argv[1] === import.meta.filename) await serveReadyMade(process.argv[2], Number(process.argv[3]))
