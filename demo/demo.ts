/**
 * `npm run demo`: backs up every snapshot of a thin pool that a real kernel recorded, incrementally, through the agent, and proves each
 * restored one by the SHA-256 that the kernel's own reading gave. Needs neither root nor device-mapper.
 *
 *   node demo/demo.ts [FOLDER]      on another recorded pool, with its data image
 */
import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { humanSize, percentage } from '../src/cli/command-line/quantities.ts'
import { mapStyle, VolumeMap } from '../src/cli/output/map.ts'
import { asDeltamapperError } from '../src/errors.ts'
import { connect, type SnapshotMetadataClient } from '../src/grpc/client.ts'
import {
  type RecordedPool,
  type RecordedSnapshot,
  readPoolDescription,
  unpackRecordedPool
} from '../test/fixtures/recorded-pool.ts'
import { startAgentProcess } from './agent-process.ts'
import { applyExtents, copyAll, fileHash } from './backup.ts'
import { SnapshotData } from './snapshot-data.ts'

/** The name that the agent serves the pool under. */
const POOL = 'demo'

/** What one backup came to. Bytes and milliseconds. */
interface Step {
  snapshot: RecordedSnapshot
  base: RecordedSnapshot | undefined
  map: VolumeMap
  elapsedMs: number
  /** How long a copy of the whole snapshot takes. */
  fullMs: number
  identical: boolean
}

const style = mapStyle(process.stdout.isTTY ? process.stdout.columns : undefined, process.env)
const [bold, dim, green, red, plain] = style.colour
  ? ['\u001b[1m', '\u001b[2m', '\u001b[32m', '\u001b[31m', '\u001b[0m']
  : ['', '', '', '', '']

const columnWidths = [9, 12, 11, 9, 9, 10]

const begin = performance.now()
const work = await mkdtemp(join(tmpdir(), 'deltamapper-demo-'))
try {
  const folder = process.argv[2] ?? (await unpackRecordedPool())
  const pool = await readPoolDescription(folder)
  const address = `unix://${work}/agent.sock`
  introduce(pool)
  const agent = await startAgentProcess(address, { name: POOL, folder })
  const client = connect(address)
  try {
    const steps: Step[] = []
    for (const { name } of pool.volumes) steps.push(...(await backUpVolume(name, pool, folder, client)))
    conclude(steps, folder)
  } finally {
    client.close()
    await agent.stop()
  }
} catch (error) {
  fail(asDeltamapperError(error).message)
} finally {
  await rm(work, { recursive: true, force: true })
}

/** One volume from its first snapshot to its last, each step on top of the one before. */
async function backUpVolume(
  volume: string,
  pool: RecordedPool,
  folder: string,
  client: SnapshotMetadataClient
): Promise<Step[]> {
  const snapshots = pool.snapshots.filter((each) => each.volume === volume)
  headline(volume, snapshots)
  const copy = await open(join(work, `${volume}.img`), 'w+')
  const fullCopy = await open(join(work, `${volume}-full.img`), 'w')
  const steps: Step[] = []
  try {
    for (const [i, snapshot] of snapshots.entries()) {
      const step = await backUp(snapshot, snapshots[i - 1], folder, client, copy, fullCopy)
      report(step)
      steps.push(step)
      // What follows would be laid on top of a wrong copy.
      if (!step.identical) break
    }
  } finally {
    await copy.close()
    await fullCopy.close()
  }
  const last = steps.findLast(({ base, map }) => base !== undefined && map.total.extents > 0)
  if (last) drawMap(last)
  return steps
}

async function backUp(
  snapshot: RecordedSnapshot,
  base: RecordedSnapshot | undefined,
  folder: string,
  client: SnapshotMetadataClient,
  copy: FileHandle,
  fullCopy: FileHandle
): Promise<Step> {
  const map = new VolumeMap(snapshot.size_bytes, style.columns)
  const source = await SnapshotData.open(folder, snapshot.thin_id)
  try {
    const fullMs = await milliseconds(() => copyAll(source, snapshot.size_bytes, fullCopy))
    const elapsedMs = await milliseconds(async () => {
      const answer =
        base === undefined
          ? await client.allocated({ snapshotId: `${POOL}/${snapshot.name}` })
          : await client.delta({
              baseSnapshotId: `${POOL}/${base.name}`,
              targetSnapshotId: `${POOL}/${snapshot.name}`
            })
      await applyExtents(answer, source, copy, map)
    })
    const identical = (await fileHash(copy)) === snapshot.sha256
    return { snapshot, base, map, elapsedMs, fullMs, identical }
  } finally {
    await source.close()
  }
}

async function milliseconds(what: () => Promise<void>): Promise<number> {
  const from = performance.now()
  await what()
  return performance.now() - from
}

function introduce({ volumes, snapshots, data_block_size_bytes }: RecordedPool): void {
  say(`${bold}deltamapper: incremental backups from what dm-thin already knows${plain}`)
  say()
  say(
    `A real kernel recorded this pool: ${volumes.length} volumes, ${snapshots.length} snapshots, ${humanSize(data_block_size_bytes)} blocks.`
  )
  say('At each step the agent is asked over gRPC (csi.v1.SnapshotMetadata) which bytes')
  say('to copy; only those are copied, onto the copy of the snapshot before; and the')
  say("SHA-256 of the result is compared with that of the kernel's own reading.")
}

function headline(volume: string, snapshots: RecordedSnapshot[]): void {
  const size = humanSize(Math.max(...snapshots.map((each) => each.size_bytes)))
  const headings = ['extents', 'copied', 'of volume', 'time', 'in full', 'speed-up']
  say()
  say(`${bold}${volume}${plain}, ${size}, ${snapshots.length} snapshots`)
  say(`  ${dim}${'snapshot'.padEnd(20)}${row(headings)}${plain}`)
}

function report({ snapshot, base, map, elapsedMs, fullMs, identical }: Step): void {
  const { extents, bytes } = map.total
  const cells = [
    String(extents),
    humanSize(bytes),
    percentage(bytes, snapshot.size_bytes),
    duration(elapsedMs),
    duration(fullMs),
    base === undefined ? '-' : `${(fullMs / elapsedMs).toFixed(1)}x`
  ]
  const verdict = identical ? `${green}identical${plain}` : `${red}DIFFERENT${plain}`
  say(`  ${snapshot.name.padEnd(20)}${row(cells)}  ${verdict}`)
  say(`    ${dim}${snapshot.description}${plain}`)
}

function row(cells: string[]): string {
  return cells.map((cell, i) => cell.padStart(columnWidths[i])).join('')
}

function drawMap({ base, snapshot, map }: Step): void {
  say()
  say(`Where ${bold}${snapshot.name}${plain} differs from ${bold}${base?.name}${plain} (${snapshot.description}):`)
  for (const line of map.lines('changed', style.colour)) say(line)
}

function conclude(steps: Step[], folder: string): void {
  const increments = steps.filter(({ base }) => base !== undefined)
  const copied = increments.reduce((sum, { map }) => sum + map.total.bytes, 0)
  const full = increments.reduce((sum, { snapshot }) => sum + snapshot.size_bytes, 0)
  say()
  const wrong = steps.filter(({ identical }) => !identical)
  if (wrong.length > 0) {
    fail(`${wrong.map(({ snapshot }) => snapshot.name).join(', ')}: the restored copy is not what the kernel recorded`)
    return
  }
  say(`${green}All ${steps.length} restored snapshots are identical to what the kernel read.${plain}`)
  say(
    `${increments.length} incremental backups copied ${humanSize(copied)} instead of ${humanSize(full)} (${percentage(copied, full)}).`
  )
  say(`Took ${((performance.now() - begin) / 1000).toFixed(1)} s. To look further:`)
  const metadata = join(relative(process.cwd(), folder) || '.', 'metadata.img')
  say(`  npx deltamapper inspect ${metadata}`)
  say(`  npx deltamapper delta 5 6 --metadata ${metadata} -o map`)
}

function duration(ms: number): string {
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`
}

function say(line = ''): void {
  console.log(line)
}

function fail(what: string): void {
  console.error(`${red}demo: ${what}${plain}`)
  process.exitCode = 1
}
