/**
 * Base records: how large they are, what making one costs, and a delta from a record beside `allocated` of the target and
 * beside the delta from the living base. All in one process, warm, in turn, by our own reading of an image.
 */
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pino from 'pino'
import type { ExtentAnswer } from '../src/devicemapper/extents.ts'
import { BaseRecordReader } from '../src/devicemapper/thin/base-record/reader.ts'
import { BaseRecordWriter } from '../src/devicemapper/thin/base-record/writer.ts'
import { openPoolMetadata, type PoolMetadata } from '../src/devicemapper/thin/pool-metadata.ts'
import { WholeRecordSink } from '../src/devicemapper/thin/record-sinks.ts'
import { projectFolder } from '../scripts/setup.mjs'
import type { Snapshot } from '../src/agent/walks/snapshot.ts'
import { walkMessages } from '../src/agent/walks/thin-walk.ts'
import { noStatistics } from '../src/agent/walks/walk-messages.ts'
import { connect } from '../src/grpc/client.ts'
import { startServer } from '../src/grpc/server.ts'
import type { SnapshotMetadataBackend } from '../src/grpc/snapshot-metadata.ts'
import { agedPool, fragmentedPool, mappedPool, shuffledPool } from './fragmented-pool.ts'
import { kernelGrownPool } from './kernel-grown-pool.ts'
import { median, timeProcess } from './measure.ts'

/** The heading of its section in docs/benchmarks.md. */
export const recordsHeading = '## Base records'

/** Data blocks of 64 KiB. */
const BLOCKS = 4_200_000
const BLOCK_BYTES = 65536
const HUGE = 100_000_000

interface Description {
  snapshots: { name: string; thin_id: number; size_bytes: number }[]
}

/** @returns its section */
export async function measureRecords(runs: number): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-records-'))
  try {
    const grown = await kernelGrownPool()
    const pools = [
      ['written in order, by a kernel', grown, 'base'],
      ['written in order', await mappedPool(BLOCKS), 'volume'],
      ['in order, then 1 % of it written at random, 20 times', await agedPool(BLOCKS), 'volume'],
      ['written at random from the beginning', await shuffledPool(BLOCKS), 'volume'],
      ['every other block of it written', await fragmentedPool(BLOCKS), 'volume']
    ] as const
    const sizes: string[] = []
    for (const [title, pool, snapshot] of pools) sizes.push(said(await sizeRow(title, pool, snapshot, folder, runs)))
    const deltas: string[] = []
    for (const target of ['identical', 'clustered', 'scattered', 'rewritten']) {
      deltas.push(said(await deltaRow(grown, 'base', target, folder, runs)))
    }
    for (const [title, pool] of pools.slice(2, 4)) {
      deltas.push(said(await deltaRow(pool, 'volume', 'volume', folder, runs, `${title}; identical`)))
    }
    return `${recordsHeading}

Pools of 4.2 million mappings (64 KiB blocks). *Walk* is what a walker thread does for \`GetMetadataAllocated\`, read with
O_DIRECT as devices are, until the record is on disk: without and with it. *Client* is the same until a client at a unix
socket has the last extent and the end, server and client in one process. Processor time of all threads / time on the
wall, in milliseconds. ${runs} runs by turns, medians. Made by \`npm run bench -- --records\`.

| a snapshot that was | its record | bytes a mapping | of its data | walk | with record | times | client | with record | times |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
${sizes.join('\n')}

A delta whose base is gone reads all of the target's tree; one whose base lives, what differs. Processor time, and time
on the wall:

| change since the base | blocks changed | allocated of the target | delta from the record | times allocated | delta from the living base |
|---|--:|--:|--:|--:|--:|
${deltas.join('\n')}

${await hugeRecord(folder)}
`
  } finally {
    await rm(folder, { recursive: true })
  }
}

/** The rest takes minutes. */
function said(row: string): string {
  process.stderr.write(`${row}\n`)
  return row
}

async function snapshotsOf(pool: string): Promise<Map<string, { id: number; sizeBytes: number }>> {
  const { snapshots } = JSON.parse(await readFile(join(pool, 'pool.json'), 'utf8')) as Description
  return new Map(snapshots.map(({ name, thin_id: id, size_bytes: sizeBytes }) => [name, { id, sizeBytes }]))
}

async function sizeRow(title: string, pool: string, snapshot: string, folder: string, runs: number): Promise<string> {
  const { id, sizeBytes } = (await snapshotsOf(pool)).get(snapshot) ?? { id: 0, sizeBytes: 0 }
  const image = join(pool, 'metadata.img')
  const metadata = await openPoolMetadata(image)
  try {
    const path = join(folder, 'size.base')
    await record(metadata, id, sizeBytes, path)
    const { size } = await stat(path)
    const { mappedBlocks } = await metadata.deviceDetails(id)
    const target: Snapshot = {
      ...{ kind: 'thin', handle: 'vg/snapshot', identity: 'uuid', volume: 'volume', thinId: id, sizeBytes },
      ...{ metadataPath: image, poolIdentity: 'pool', live: true }
    }
    const client = await startClient(target, folder)
    const times = await byTurns(runs, [
      () => answered(target),
      () => answered(target, folder),
      () => client.ask('plain'),
      () => client.ask('recorded')
    ]).finally(() => client.stop())
    const cells = [
      title,
      size < 2 ** 20 ? `${(size / 1024).toFixed(1)} KiB` : `${(size / 2 ** 20).toFixed(1)} MiB`,
      (size / mappedBlocks).toFixed(2),
      `${((100 * size) / (mappedBlocks * BLOCK_BYTES)).toFixed(5)} %`,
      ...[times.slice(0, 2), times.slice(2)].flatMap(([plain, recorded]) => [
        ...[plain, recorded].map(({ cpu, wall }) => `${cpu.toFixed(0)} / ${wall.toFixed(0)}`),
        `${(recorded.cpu / plain.cpu).toFixed(2)} / **${(recorded.wall / plain.wall).toFixed(2)}**`
      ])
    ]
    return `| ${cells.join(' | ')} |`
  } finally {
    await metadata.close()
  }
}

/** Asks over gRPC, as backup software does: for the snapshot, with its record or without. */
async function startClient(target: Snapshot, folder: string) {
  const address = `unix://${folder}/records.sock`
  const backend: SnapshotMetadataBackend = {
    allocated: async ({ snapshotId }) => ({
      capacityBytes: target.sizeBytes,
      messages: messagesOf(target, snapshotId === 'recorded' ? folder : undefined)
    }),
    delta: async () => Promise.reject(new Error('nobody asks for a delta'))
  }
  const server = await startServer({
    ...{ listen: [address], backend, identity: { driverName: 'bench.deltamapper.dev' } },
    logger: pino({ level: 'silent' })
  })
  const client = connect(address)
  return {
    async ask(snapshotId: string): Promise<number> {
      return drained(await client.allocated({ snapshotId, startingOffset: 0, maxResults: 0 }))
    },
    async stop() {
      client.close()
      await server.drain(0)
    }
  }
}

async function answered(target: Snapshot, folder?: string): Promise<number> {
  let bytes = 0
  for await (const message of messagesOf(target, folder)) bytes += message.length
  return bytes
}

/**
 * The answer of a walker thread about all that a snapshot has allocated.
 *
 * @param folder where its record goes, if one is kept
 */
function messagesOf(target: Snapshot, folder?: string): AsyncGenerator<Uint8Array> {
  const wanted = folder && {
    ...{ folder, name: 'answer.base', maxBytes: 2 ** 30, poolIdentity: 'pool', baseRecord: undefined }
  }
  const question = { target, startingOffset: 0, maxResults: 0, direct: true }
  return walkMessages(question, noStatistics(), new AbortController().signal, {
    onSeen: async () => wanted || undefined,
    onKept: async (outcome) => {
      if (!('bytes' in outcome)) throw new Error(outcome.notKept)
    }
  })
}

async function deltaRow(
  pool: string,
  baseName: string,
  target: string,
  folder: string,
  runs: number,
  title = target
): Promise<string> {
  const snapshots = await snapshotsOf(pool)
  const [base, changed] = [snapshots.get(baseName), snapshots.get(target)]
  if (!base || !changed) throw new Error(`${pool} has no ${target}`)
  // As devices are read.
  const metadata = await openPoolMetadata(join(pool, 'metadata.img'), { direct: true })
  try {
    const path = join(folder, 'base.base')
    await record(metadata, base.id, base.sizeBytes, path)
    const reader = await BaseRecordReader.open(path)
    const { id: deviceId, sizeBytes } = changed
    let blocks = 0
    const [allocated, gone, living] = await byTurns(runs, [
      async () => drained(await metadata.allocated({ deviceId, sizeBytes })),
      async () => (blocks = await drained(await metadata.deltaFromRecord({ record: reader, deviceId, sizeBytes }))),
      async () => drained(await metadata.delta({ baseId: base.id, targetId: deviceId, sizeBytes }))
    ])
    await reader.close()
    const cells = [
      title,
      count(blocks / BLOCK_BYTES),
      ...[allocated, gone].map(({ cpu, wall }) => `${cpu.toFixed(0)} / ${wall.toFixed(0)} ms`),
      `**${(gone.cpu / allocated.cpu).toFixed(2)}** / **${(gone.wall / allocated.wall).toFixed(2)}**`,
      `${living.cpu.toFixed(1)} ms`
    ]
    return `| ${cells.join(' | ')} |`
  } finally {
    await metadata.close()
  }
}

/** The commands, each a process of its own, on as many mappings as a pool may well have. */
async function hugeRecord(folder: string): Promise<string> {
  const image = join(await shuffledPool(HUGE), 'metadata.img')
  const command = join(projectFolder, 'bin/deltamapper.js')
  const path = join(folder, 'huge.base')
  const size = ['--metadata', image, '--size', String(HUGE * BLOCK_BYTES)]
  const save = await timeProcess(
    process.execPath,
    [command, 'base', 'save', '1', ...size, '--to', path],
    process.env,
    'ignore'
  )
  const delta = await timeProcess(
    process.execPath,
    [command, 'delta', '1', '--base-record', path, ...size, '-o', 'ndjson'],
    process.env,
    'ignore'
  )
  const bytes = (await stat(path)).size
  return (
    `Of ${count(HUGE)} mappings in no order, \`base save\` makes a record of ${(bytes / 2 ** 20).toFixed(0)} MiB in ${(save.milliseconds / 1000).toFixed(0)} s, ` +
    `with ${save.peakMiB.toFixed(0)} MiB of memory at most; \`delta --base-record\` reads it three times beside the tree, in ${(delta.milliseconds / 1000).toFixed(0)} s, with ${delta.peakMiB.toFixed(0)} MiB.`
  )
}

async function record(metadata: PoolMetadata, id: number, sizeBytes: number, path: string): Promise<number> {
  const { dataBlockBytes } = metadata.superblock
  const details = await metadata.deviceDetails(id)
  const writer = await BaseRecordWriter.begin(path, {
    pool: { identity: undefined, dataBlockBytes, moment: await metadata.moment() },
    device: { id, ...details, sizeBytes, identity: undefined, volume: undefined },
    handles: [],
    madeAt: 0
  })
  const bytes = await drained(await metadata.allocated({ deviceId: id, sizeBytes, sink: new WholeRecordSink(writer) }))
  if (!(await writer.finish())) throw new Error(`the record of ${id} is not whole`)
  return bytes
}

/** @returns bytes in all */
async function drained({ batches }: Pick<ExtentAnswer, 'batches'>): Promise<number> {
  let bytes = 0
  for await (const { count, sizes } of batches) for (let i = 0; i < count; i++) bytes += sizes[i]
  return bytes
}

/** Milliseconds: processor time of all threads, and what a clock on the wall shows. */
interface Time {
  readonly cpu: number
  readonly wall: number
}

/** Medians; one run before, which does not count. */
async function byTurns(runs: number, turns: readonly (() => Promise<number>)[]): Promise<Time[]> {
  const times = turns.map(() => ({ cpu: [] as number[], wall: [] as number[] }))
  for (let run = -1; run < runs; run++) {
    for (const [i, turn] of turns.entries()) {
      const began = process.cpuUsage()
      const beganAt = performance.now()
      await turn()
      const { user, system } = process.cpuUsage(began)
      if (run < 0) continue
      times[i].cpu.push((user + system) / 1000)
      times[i].wall.push(performance.now() - beganAt)
    }
  }
  return times.map(({ cpu, wall }) => ({ cpu: median(cpu), wall: median(wall) }))
}

function count(value: number): string {
  return value.toLocaleString('en-US')
}
