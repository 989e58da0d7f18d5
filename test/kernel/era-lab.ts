/**
 * What tests of tracked volumes stand on in the kernel lab: disks that take discards, and the part of an agent that drives dm-era, in this
 * process.
 */
import { mkdtempSync, writeFileSync, truncateSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ExecutionContext } from 'ava'
import { pino } from 'pino'
import type { DeviceMapper } from '../../native/device-mapper.ts'
import { type Catalog, openCatalog } from '../../src/agent/catalog/catalog.ts'
import type { EraHistoryRecorder, TakenEraSnapshot } from '../../src/agent/era/boundary/boundary.ts'
import { EraVolumes, type EraVolumesOptions } from '../../src/agent/era/era-volumes.ts'
import { openEraMetadata } from '../../src/devicemapper/era/era-metadata.ts'
import { collectExtents } from '../support/collect-extents.ts'
import type { Extent } from '../support/expected.ts'
import { run, sendMessage } from './dmsetup.ts'
import { processes } from './live-agent.ts'

export const mebibyte = 2 ** 20
/** Of tracked volumes in tests, in bytes. */
export const blockBytes = 65536

const folder = mkdtempSync(join(tmpdir(), 'era-'))
let files = 0

/** A disk that takes discards of any length, over a file in memory. */
export function loopDisk(mebibytes: number): { path: string; grow(mebibytes: number): void } {
  const file = join(folder, `disk-${files++}`)
  writeFileSync(file, '')
  truncateSync(file, mebibytes * mebibyte)
  const path = run('losetup', ['--find', '--show', file]).trim()
  return {
    path,
    grow(more) {
      truncateSync(file, more * mebibyte)
      run('losetup', ['--set-capacity', path])
    }
  }
}

/** Lets the catalog know the era that a volume is in: as if the agent itself had begun those that a test has begun. */
export async function knowEra(catalog: Catalog, volume: string): Promise<void> {
  const [, era = ''] = /\d+\/\d+ (\d+) (?:\d+|-)\s*$/.exec(run('dmsetup', ['status', volume])) ?? []
  await catalog.eraVolumes.saw(volume, { newestEra: Number(era) })
}

/** The blocks that a tracked volume's metadata says were written to since an era; a metadata snapshot is taken and dropped for it. */
export async function writtenSince(
  catalog: Catalog,
  name: string,
  metadata: string,
  sinceEra: number
): Promise<Extent[]> {
  sendMessage(name, 'take_metadata_snap')
  await knowEra(catalog, name)
  try {
    const era = await openEraMetadata(metadata)
    try {
      return await collectExtents(await era.written({ sinceEra }))
    } finally {
      await era.close()
    }
  } finally {
    sendMessage(name, 'drop_metadata_snap')
  }
}

/** A catalog that outlives those who use it. */
export async function labCatalog(
  t: ExecutionContext,
  within = mkdtempSync(join(tmpdir(), 'catalog-'))
): Promise<Catalog> {
  const catalog = await openCatalog(join(within, 'catalog.sqlite'))
  t.teardown(() => catalog.close())
  return catalog
}

/** Processes that watch over suspensions of this one's. */
export function watchdogs(): number[] {
  return processes()
    .filter(({ parent, words }) => parent === process.pid && words.includes('watchdog-process'))
    .map(({ pid }) => pid)
}

export interface Driver extends AsyncDisposable {
  readonly volumes: EraVolumes
  /** What it has logged. */
  readonly log: readonly Readonly<Record<string, unknown>>[]
}

/** The part of an agent that drives dm-era. */
export async function startDriver(
  catalog: Catalog,
  deviceMapper: DeviceMapper,
  options: Partial<EraVolumesOptions> & Pick<EraVolumesOptions, 'recorder'>
): Promise<Driver> {
  const log: Record<string, unknown>[] = []
  const logger = pino(
    { level: 'debug' },
    { write: (line: string) => log.push(JSON.parse(line) as Record<string, unknown>) }
  )
  const volumes = new EraVolumes({ catalog, deviceMapper, logger, lvmCommand: ['lvm'], deadlineMs: 20_000, ...options })
  await volumes.start()
  return { volumes, log, [Symbol.asyncDispose]: () => volumes.close() }
}

/** Puts boundaries into the catalog without a history: what was written is not what these tests are about. */
export function boundariesOnly(catalog: Catalog): EraHistoryRecorder & { taken: TakenEraSnapshot[] } {
  const taken: TakenEraSnapshot[] = []
  return {
    taken,
    ready: () => Promise.resolve(),
    async record(each) {
      const since = await catalog.eraSnapshots.beginHistory(each.volume.name)
      const { name, boundaryEra, sizeBytes, takenAt, suspendedMs, lower } = each
      const recorded = await catalog.eraSnapshots.record(
        each.volume.name,
        { name, boundaryEra, sizeBytes, takenAt, suspendedMs, lower },
        since,
        true
      )
      taken.push(each)
      return recorded
    }
  }
}
