/**
 * Serves what a classic snapshot's store says over the agent's own gRPC, without an agent: nothing is asked of LVM, the
 * kernel or a catalog. Either the list is read and encoded for each call, or the messages have lain in memory all along:
 * then what a call takes is what gRPC and its client take.
 *
 *   node bench/cow-served.ts SOCKET STORE VOLUME-BYTES ENTRIES read|ready-made    says when it listens
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import pino from 'pino'
import { encodedMessages } from '../src/agent/walks/encoded-messages.ts'
import { noStatistics } from '../src/agent/walks/walk-messages.ts'
import { changed } from '../src/devicemapper/cow/delta.ts'
import { openCowStore } from '../src/devicemapper/cow/cow-store.ts'
import { connect } from '../src/grpc/client.ts'
import { startServer } from '../src/grpc/server.ts'
import type { EncodedStream } from '../src/grpc/snapshot-metadata.ts'
import type { Cost } from './load-cow.ts'
import { cpuSeconds } from './measure.ts'

export const servings = ['ready-made', 'read'] as const
export type Served = (typeof servings)[number]
/** Turn by turn. */
export type ServedFigures = Record<Served, Cost[]>

/** A store on an image or a device, and how many entries it has. */
export interface StoreOf {
  readonly path: string
  readonly sizeBytes: number
  readonly entries: number
}

/** What a call costs, until its client has decoded the last extent; processor time is the server's. */
export async function askServed(folder: string, how: Served, rounds: number, store: StoreOf): Promise<Cost[]> {
  const socket = `${folder}/${how}.sock`
  const { path, sizeBytes, entries } = store
  const words = [import.meta.filename, socket, path, String(sizeBytes), String(entries), how]
  const server = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'] })
  const pid = server.pid ?? 0
  await Promise.race([
    once(server.stdout, 'data'),
    once(server, 'exit').then(() => Promise.reject(new Error('it does not serve')))
  ])
  const costs: Cost[] = []
  for (let round = 0; round <= rounds; round++) {
    const client = connect(`unix://${socket}`)
    const [began, cpu] = [performance.now(), cpuSeconds(pid)]
    let extents = 0
    for await (const { count } of (await client.allocated({ snapshotId: 'bench/store' })).batches) extents += count
    // What is done only once is not what is measured.
    if (round > 0) costs.push({ seconds: (performance.now() - began) / 1000, cpu: cpuSeconds(pid) - cpu })
    client.close()
    if (extents === 0) throw new Error('nothing was served')
  }
  const gone = once(server, 'exit')
  server.kill()
  await gone
  return costs
}

async function* read({ path, sizeBytes, entries }: StoreOf): AsyncGenerator<Uint8Array> {
  const store = await openCowStore(path, { direct: true, reads: 'auto' })
  try {
    const { batches, capacityBytes } = changed({ base: { store, sizeBytes, counted: entries } })
    yield* encodedMessages(batches, { capacityBytes, maxResults: 0 }, noStatistics())
  } finally {
    await store.close()
  }
}

/** Parts of one memory, so that none is given away when it has been sent. */
async function readyMade(store: StoreOf): Promise<Uint8Array[]> {
  const messages: Uint8Array[] = []
  for await (const message of read(store)) messages.push(message)
  const all = new Uint8Array(messages.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  return messages.map((message) => {
    all.set(message, at)
    return all.subarray(at, (at += message.length))
  })
}

async function serve(socket: string, store: StoreOf, how: Served): Promise<void> {
  const kept = how === 'ready-made' ? await readyMade(store) : undefined
  const allocated = async (): Promise<EncodedStream> => ({
    capacityBytes: store.sizeBytes,
    messages: kept ? fromMemory(kept) : read(store)
  })
  const backend = { allocated, delta: allocated }
  const identity = { driverName: 'bench.deltamapper' }
  await startServer({ listen: [`unix://${socket}`], backend, identity, logger: pino({ level: 'silent' }) })
  console.log('listening')
}

async function* fromMemory(messages: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  for (const message of messages) yield message
}

if (import.meta.main) {
  const [socket, path, sizeBytes, entries, how] = process.argv.slice(2)
  await serve(socket, { path, sizeBytes: Number(sizeBytes), entries: Number(entries) }, how as Served)
}
