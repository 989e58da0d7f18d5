/**
 * How much memory a router takes for so many volumes of a cluster, each with one snapshot: at rest, and at the most while it lists everything
 * anew because snapshots are asked for that are not there. An API server of our own hands out TopoLVM's LogicalVolumes, with the fields that a
 * real one sends along.
 *
 *   node bench/router-memory.ts [VOLUMES…]      prints a row of docs/kubernetes.md's table for each (default: 1000 10000 100000)
 */
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { DeltamapperError } from '../src/errors.ts'
import { connect } from '../src/grpc/client.ts'
import { figure } from '../scripts/figures.ts'
import { startAgentProcess } from './agent-process.ts'
import { residentMiB } from './measure.ts'

/** Questions for snapshots that are not there: so many at once, so often. */
const [AT_ONCE, ROUNDS] = [20, 3]
/** What its memory is given to settle after that, in milliseconds. */
const SETTLE_MS = 10_000

interface MemoryFigures {
  readonly restMiB: number
  readonly peakMiB: number
}

/** The LogicalVolume of this number: volumes have even ones, their snapshots odd ones. About 1.5 KB. */
function logicalVolume(number: number) {
  const id = number.toString(16).padStart(12, '0')
  const name = `${number % 2 === 0 ? 'pvc' : 'snapshot'}-5f0b7c55-61c4-4f5c-8a1a-${id}`
  const volume = `pvc-5f0b7c55-61c4-4f5c-8a1a-${(number - (number % 2)).toString(16).padStart(12, '0')}`
  const field = (manager: string) => ({
    manager,
    operation: 'Update',
    apiVersion: 'topolvm.io/v1',
    time: '2026-05-04T08:00:00Z',
    fieldsType: 'FieldsV1',
    fieldsV1: {
      'f:metadata': { 'f:finalizers': { '.': {}, 'v:"topolvm.io/logicalvolume"': {} } },
      'f:spec': { '.': {}, 'f:deviceClass': {}, 'f:name': {}, 'f:nodeName': {}, 'f:size': {}, 'f:source': {} },
      'f:status': { '.': {}, 'f:currentSize': {}, 'f:volumeID': {} }
    }
  })
  return {
    apiVersion: 'topolvm.io/v1',
    kind: 'LogicalVolume',
    metadata: {
      ...{ name, uid: `0c9a3b52-7d0c-4f7b-8b1c-${id}`, resourceVersion: String(1000 + number), generation: 1 },
      creationTimestamp: '2026-05-04T08:00:00Z',
      finalizers: ['topolvm.io/logicalvolume'],
      managedFields: [field('topolvm-controller'), field('topolvm-node')]
    },
    spec: {
      ...{ name, nodeName: `worker-${number % 100}`, deviceClass: 'thin', size: '20Gi' },
      ...(number % 2 === 1 && { source: volume, accessType: 'ro' })
    },
    status: { volumeID: `0c9a3b52-7d0c-4f7b-8b1c-${id}`, currentSize: '20Gi' }
  }
}

/** Lists so many LogicalVolumes, page by page, and nothing else; watches tell of nothing. */
async function startApiServer(objects: number) {
  const watches = new Set<ServerResponse>()
  const server = createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? '', 'http://localhost')
    response.setHeader('content-type', 'application/json')
    if (searchParams.has('watch')) {
      watches.add(response)
      response.flushHeaders()
      return
    }
    const isOurs = pathname.endsWith('/logicalvolumes')
    const [from, limit] = [Number(searchParams.get('continue') ?? 0), Number(searchParams.get('limit') ?? objects)]
    const end = isOurs ? Math.min(objects, from + limit) : from
    const items = Array.from({ length: end - from }, (_, i) => logicalVolume(from + i))
    const more = isOurs && end < objects ? { continue: String(end) } : {}
    response.end(JSON.stringify({ kind: 'List', metadata: { resourceVersion: '9000000', ...more }, items }))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close() {
      for (const watch of watches) watch.destroy()
      server.close()
    }
  }
}

async function kubeconfig(folder: string, url: string): Promise<string> {
  const path = join(folder, 'kubeconfig')
  const config = {
    ...{ apiVersion: 'v1', kind: 'Config', 'current-context': 'bench' },
    clusters: [{ name: 'bench', cluster: { server: url, 'insecure-skip-tls-verify': true } }],
    users: [{ name: 'bench', user: {} }],
    contexts: [{ name: 'bench', context: { cluster: 'bench', user: 'bench' } }]
  }
  await writeFile(path, JSON.stringify(config))
  return path
}

/** The most that it has held since it began. */
async function peakMiB(pid: number): Promise<number> {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024
}

/** Asks for a snapshot that is not there, until the cluster says so: then everything has been listed. */
async function notFound(client: ReturnType<typeof connect>, snapshotId: string): Promise<void> {
  for (;;) {
    try {
      await client.allocated({ snapshotId })
      throw new Error(`there is a snapshot ${snapshotId}`)
    } catch (error) {
      if (error instanceof DeltamapperError && error.code === 'DM_SNAPSHOT_NOT_FOUND') return
      if (!(error instanceof DeltamapperError) || error.code !== 'DM_CLUSTER_UNREACHABLE') throw error
      await sleep(500)
    }
  }
}

export async function measureRouterMemory(volumes: number): Promise<MemoryFigures> {
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-bench-'))
  const api = await startApiServer(2 * volumes)
  const router = await startAgentProcess(
    {
      driverName: 'topolvm.io',
      kubernetes: { agents: { namespace: 'bench' }, kubeconfig: await kubeconfig(folder, api.url) },
      ...{ allowLoopbackTcp: true, connectSeconds: 30, logLevel: 'info' }
    },
    'router'
  )
  const client = connect(router.address)
  try {
    await notFound(client, 'nothing')
    await sleep(SETTLE_MS)
    const restMiB = residentMiB(router.pid)
    for (let round = 0; round < ROUNDS; round++) {
      await Promise.all(Array.from({ length: AT_ONCE }, (_, i) => notFound(client, `nothing-${round}-${i}`)))
    }
    return { restMiB, peakMiB: await peakMiB(router.pid) }
  } finally {
    client.close()
    await router.stop()
    api.close()
    await rm(folder, { recursive: true })
  }
}

if (process.argv[1] === import.meta.filename) {
  const asked = process.argv.slice(2).map(Number)
  for (const volumes of asked.length > 0 ? asked : [1000, 10_000, 100_000]) {
    const { restMiB, peakMiB } = await measureRouterMemory(volumes)
    console.log(`| ${figure(volumes)} | ${Math.round(restMiB)} MiB | ${Math.round(peakMiB)} MiB |`)
  }
}
