/** What `deltamapper backup …` does once its command lines are understood. */
import { type BackedUp, backUp, existingSnapshot, type Snapshots } from '../../backup/backup.ts'
import { Chain, chainsBelow, readPoints } from '../../backup/chain.ts'
import type { Point } from '../../backup/manifest.ts'
import { writeMetricFile } from '../../backup/metric-file.ts'
import { finishPrune, prune } from '../../backup/prune.ts'
import { restore } from '../../backup/restore.ts'
import type { OpenSnapshot } from '../../backup/served-snapshot.ts'
import { type Verified, verifyChain } from '../../backup/verify.ts'
import { DeltamapperError } from '../../errors.ts'
import { stopSignal } from '../../process/stop-signal.ts'
import { openSource } from '../answers/nbd-sources.ts'
import { describeFailure, Interrupted, UsageError } from '../command-line/failure.ts'
import { humanSize } from '../command-line/quantities.ts'
import { columns } from '../output/columns.ts'
import { written } from '../output/text-output.ts'
import { TransferProgress } from '../output/transfer-progress.ts'
import { packageVersion } from '../command-line/version.ts'

type Output = 'table' | 'json'

export interface SourceOptions {
  endpoint?: string
  recorded?: Record<string, string>
}

export interface BackupOptions extends SourceOptions {
  to?: string
  snapshot?: string
  keepSnapshot?: boolean
  cowSize?: number
  full?: boolean
  keep?: number
  compress?: boolean
  rate?: number
  freeze: boolean
  before?: string
  after?: string
  hookDeadline: number
  metricFile?: string
  output: Output
}

export interface RestoreCommandOptions {
  volume: string
  point: string
  to: string
  force?: boolean
  unverified?: boolean
  output: Output
}

export interface VerifyCommandOptions extends SourceOptions {
  volume?: string
  output: Output
}

export interface PruneCommandOptions {
  keep: number
  volume?: string
  output: Output
}

const remark = (text: string) => void process.stderr.write(`deltamapper: ${text}\n`)

/** @throws UsageError; what concerns all volumes; DM_BACKUP_INCOMPLETE where some of several failed */
export async function runBackup(volumes: readonly string[], options: BackupOptions): Promise<void> {
  const { to: root, full = false, compress = false, keep, metricFile, output } = options
  if (volumes.length === 0) {
    throw new UsageError('no volume was named', 'name one, as VG/LV; see --help', 'DM_ARGUMENT_MISSING')
  }
  if (root === undefined) throw new UsageError('it was not said where to', 'give --to DIR', 'DM_ARGUMENT_MISSING')
  const twice = volumes.find((each, i) => volumes.indexOf(each) !== i)
  if (twice !== undefined) throw new UsageError(`${twice} is named twice`, 'name each volume once')
  const { snapshots, close } = await snapshotsFor(volumes, options)
  const progress = new TransferProgress(process.stderr)
  let current = ''
  const results = await whileAsked((signal) =>
    backUp({
      ...{ root, volumes, snapshots, full, compress, keep, signal, remark, version: packageVersion() },
      open: opener(options),
      onProgress: (volume, done, total) => {
        if (volume !== current) progress.begin((current = volume))
        progress.update(done, total)
      }
    })
  ).finally(async () => {
    progress.end()
    close()
    if (metricFile !== undefined) await writeMetricFile(root, metricFile)
  })
  const isTable = output === 'table' && results.some(({ made }) => made)
  if (output === 'json' || isTable) await written(process.stdout, isTable ? backupTable(results) : backupJson(results))
  failTogether(results)
  if (snapshots.failure) throw snapshots.failure
}

/** Where they come from, and what lets go of that. */
interface SnapshotSource {
  readonly snapshots: Snapshots
  readonly close: () => void
}

async function snapshotsFor(volumes: readonly string[], options: BackupOptions): Promise<SnapshotSource> {
  const { snapshot, recorded, before, after, keepSnapshot: keeps, cowSize } = options
  if (snapshot === undefined) {
    if (recorded !== undefined) {
      throw new UsageError('a recorded pool takes no snapshots', 'name one with --snapshot', 'DM_ARGUMENT_MISSING')
    }
    const [{ snapshotMakers }, { LiveSnapshots }] = await Promise.all([
      import('../answers/snapshot-makers.ts'),
      import('../../backup/live-snapshots.ts')
    ])
    const makers = snapshotMakers(volumes, options)
    const hookDeadlineMs = options.hookDeadline * 1000
    const how = { keeps: keeps ?? false, freezes: options.freeze, before, after, hookDeadlineMs }
    const snapshots = new LiveSnapshots({ findMakers: () => makers.find(), ...how, remark })
    // What is needed once they are there is loaded while LVM takes them.
    void import('../answers/nbd-agent-source.ts')
    return { snapshots, close: () => makers.close() }
  }
  const stray = { '--keep-snapshot': keeps, '--cow-size': cowSize, '--before': before, '--after': after }
  for (const [option, value] of Object.entries(stray)) {
    if (value !== undefined) throw new UsageError(`${option} is for snapshots that are taken`, 'leave out one of them')
  }
  const [volume] = volumes
  if (volumes.length > 1) throw new UsageError('--snapshot is of one volume', 'back up each volume by itself')
  const source = volume.split('/', 1)[0]
  return { snapshots: existingSnapshot(`${source}/${snapshot}`, new Date()), close: () => undefined }
}

function opener({ endpoint, recorded, rate }: SourceOptions & { rate?: number }): OpenSnapshot {
  return (handle, bases) =>
    openSource(
      handle,
      {
        base: [...bases],
        ...(recorded ? { recorded } : { activate: true }),
        ...(endpoint !== undefined && { endpoint }),
        ...(rate !== undefined && { rate })
      },
      () => undefined
    )
}

export async function runList(root: string, output: Output): Promise<void> {
  const points = (await allPoints(root)).sort((one, other) => compare(one.created, other.created))
  const rows = points.map(({ volume, point, created, kind, size_bytes, stored_bytes }) => {
    return { volume, point, created, kind, size_bytes, stored_bytes }
  })
  if (output === 'json') await written(process.stdout, `${JSON.stringify({ points: rows })}\n`)
  else if (rows.length === 0) await written(process.stdout, `no points in ${root}\n`)
  else await written(process.stdout, pointsTable(points))
}

export async function runRestore(root: string, options: RestoreCommandOptions): Promise<void> {
  const { volume, point: name, to, force, unverified, output } = options
  const progress = new TransferProgress(process.stderr)
  const point = await whileAsked(async (signal) => {
    const chain = await Chain.open(root, volume, 'shared')
    let read = 0
    progress.begin('reading its files')
    const stored = chain.points.reduce((sum, each) => sum + each.stored_bytes, 0)
    try {
      return await restore(chain, name, to, {
        ...{ force, unverified, signal },
        onBytes: (bytes) => progress.update((read += bytes), stored),
        onPercent: (percent) => {
          const size = chain.points.find(({ point }) => point === name)?.size_bytes ?? 0
          if (percent === 0) progress.begin(to)
          progress.update((size * percent) / 100, size)
        }
      })
    } finally {
      await chain.close()
    }
  }).finally(() => progress.end())
  const told = { volume, point: point.point, to, size_bytes: point.size_bytes }
  const text = `${volume} as of ${point.created} is in ${to}: ${point.size_bytes} bytes\n`
  await written(process.stdout, output === 'json' ? `${JSON.stringify(told)}\n` : text)
}

export async function runVerify(root: string, options: VerifyCommandOptions): Promise<void> {
  const { volume, output } = options
  const found: (Verified & { volume: string })[] = []
  const progress = new TransferProgress(process.stderr)
  await whileAsked(async (signal) => {
    for (const each of await volumesOf(root, volume)) {
      const chain = await Chain.open(root, each, 'shared')
      try {
        let read = 0
        progress.begin(each)
        const stored = chain.points.reduce((sum, point) => sum + point.stored_bytes, 0)
        const onBytes = (bytes: number) => progress.update((read += bytes), stored)
        for (const one of await verifyChain(chain, opener(options), { signal, onBytes }))
          found.push({ ...one, volume: each })
      } finally {
        await chain.close()
      }
    }
  }).finally(() => progress.end())
  // Whoever runs this each week must not believe a folder that is the wrong one.
  if (found.length === 0) throw nothingToVerify(root)
  const rows = found.map(({ volume, point, fault, compared }) => {
    return { volume, point: point.point, state: fault ? fault.code : 'ok', compared }
  })
  const table = columns(
    [['VOLUME'], ['POINT'], ['STATE'], ['COMPARED WITH ITS SNAPSHOT']],
    rows.map((row) => [row.volume, row.point, row.state, row.compared ? 'yes' : 'no'])
  )
  await written(process.stdout, output === 'json' ? `${JSON.stringify({ points: rows })}\n` : table)
  const faults = found.flatMap(({ fault }) => (fault ? [fault] : []))
  for (const each of faults.slice(0, -1)) process.stderr.write(`${describeFailure(each).line}\n`)
  const last = faults.at(-1)
  if (last) throw last
}

export async function runPrune(root: string, { keep, volume, output }: PruneCommandOptions): Promise<void> {
  const gone: { volume: string; point: string }[] = []
  const progress = new TransferProgress(process.stderr)
  await whileAsked(async (signal) => {
    for (const each of await volumesOf(root, volume)) {
      const chain = await Chain.open(root, each, 'exclusive')
      try {
        progress.begin(each)
        const options = { signal }
        await finishPrune(chain, options)
        for (const { point } of await prune(chain, keep, options)) gone.push({ volume: each, point })
      } finally {
        await chain.close()
      }
    }
  }).finally(() => progress.end())
  const table = gone.map((each) => `${each.volume} ${each.point} is pruned\n`).join('')
  await written(process.stdout, output === 'json' ? `${JSON.stringify({ pruned: gone })}\n` : table)
}

/** Runs until it is done, or this process is asked to stop. */
async function whileAsked<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController()
  void stopSignal().then(() => controller.abort(new Interrupted()))
  // Walker threads keep no process alive on their own.
  const alive = setInterval(() => undefined, 2 ** 30)
  try {
    return await work(controller.signal)
  } finally {
    clearInterval(alive)
  }
}

function nothingToVerify(root: string): DeltamapperError {
  return new DeltamapperError(
    'DM_POINT_NOT_FOUND',
    `there are no backups below ${root}`,
    'name the folder that `deltamapper backup --to` was given; or put the chain.json of a chain back'
  )
}

async function volumesOf(root: string, volume: string | undefined): Promise<string[]> {
  return volume === undefined ? chainsBelow(root) : [volume]
}

async function allPoints(root: string): Promise<(Point & { volume: string })[]> {
  const all: (Point & { volume: string })[] = []
  for (const volume of await chainsBelow(root)) {
    for (const point of await readPoints(root, volume)) all.push({ ...point, volume })
  }
  return all
}

function compare(one: string, other: string): number {
  return one < other ? -1 : one > other ? 1 : 0
}

function pointsTable(points: readonly (Point & { volume: string })[]): string {
  return columns(
    [['VOLUME'], ['POINT'], ['KIND'], ['SIZE', 'right'], ['STORED', 'right'], ['SNAPSHOT']],
    points.map((each) => [
      ...[each.volume, each.point, each.kind, humanSize(each.size_bytes), humanSize(each.stored_bytes)],
      each.snapshot.handle
    ])
  )
}

function backupJson(results: readonly BackedUp[]): string {
  const points = results.flatMap(({ volume, made }) => {
    if (!made) return []
    const { point, created, kind, size_bytes, stored_bytes, full_because } = made.point
    const more = { read_bytes: made.readBytes, ...(full_because !== undefined && { full_because }) }
    return [{ volume, point, created, kind, size_bytes, stored_bytes, ...more }]
  })
  const pruned = results.flatMap(({ volume, pruned }) => pruned.map(({ point }) => ({ volume, point })))
  return `${JSON.stringify({ points, pruned })}\n`
}

function backupTable(results: readonly BackedUp[]): string {
  return columns(
    [['VOLUME'], ['POINT'], ['KIND'], ['READ', 'right'], ['STORED', 'right'], ['PRUNED']],
    results.flatMap(({ volume, made, pruned }) => {
      if (!made) return []
      const { point, kind, stored_bytes } = made.point
      const gone = pruned.map((each) => each.point).join(' ')
      return [[volume, point, kind, humanSize(made.readBytes), humanSize(stored_bytes), gone]]
    })
  )
}

/** The one error, or each on a line of its own and one about all. */
function failTogether(results: readonly BackedUp[]): void {
  const failures = results.flatMap(({ volume, failure }) => (failure ? [{ volume, failure }] : []))
  if (failures.length === 0) return
  if (results.length === 1) throw failures[0].failure
  for (const { volume, failure } of failures) {
    process.stderr.write(`${describeFailure(failure).line?.replace('deltamapper: ', `deltamapper: ${volume}: `)}\n`)
  }
  throw new DeltamapperError(
    'DM_BACKUP_INCOMPLETE',
    `${failures.map(({ volume }) => volume).join(', ')} could not be backed up`,
    'see the lines before'
  )
}
