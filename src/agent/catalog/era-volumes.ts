/**
 * Era volumes: what is tracked, by which devices, what was last seen of them, and what is about to be done to one.
 *
 * What the history of a volume rests on is kept here because nothing else keeps it: the metadata does not name itself (the kernel blanks its
 * UUID with each commit), and neither says which device's writes it has. As long as all of it is as it was, the volume is in one *line*;
 * whatever voids the history begins another, and snapshots of different lines are never compared (era-snapshots.ts).
 *
 * Changes are written ahead as they are for pools (owned-pools.ts): `begin` ─▶ the kernel is told ─▶ `complete` or `rollBack`. One at a time
 * for each volume. A snapshot is completed by what records it, together with its history.
 */
import { randomUUID } from 'node:crypto'
import { DeltamapperError } from '../../errors.ts'
import { guardName } from '../node/era-devices.ts'
import { isHandleName } from '../../handle.ts'
import type { CatalogDatabase } from './database.ts'
import { clearStagedWrites, forgetVolumeHistory } from './era-snapshots.ts'
import {
  eraIntentsTable,
  eraSnapshotsTable,
  type EraVolumeRow,
  eraVolumeRow,
  eraVolumesTable
} from './store/era-tables.ts'
import type { RowOf } from './store/table.ts'

/** A tracked volume: two device-mapper devices of ours over a lower one. */
export interface EraVolume {
  /** Never used again; the UUIDs of its devices are made of it. */
  readonly id: string
  /** What comes before the slash in the handles of its snapshots. */
  readonly name: string
  /** Name of the device that has the era target. */
  readonly dmName: string
  readonly dataDevice: string
  /** What tells the data device from others, whatever its name is by then. */
  readonly dataIdentity: string
  readonly metadataDevice: string
  readonly metadataIdentity: string
  /** The size in which writes are tracked, in sectors of 512 bytes. */
  readonly blockSectors: number
  /** Size of the era device in bytes. */
  readonly sizeBytes: number
  /** One unbroken history; another one whenever it is void. */
  readonly line: string
  /** Why that line began, in words. */
  readonly lineBecause: string
  /** The era that was seen last in this line, and how many blocks the device had then. */
  readonly newestEra: number
  readonly seenBlocks: number
  /** When everything was last seen to be as it has to be; milliseconds since 1970. */
  readonly guardCheckedAt: number
  /** What is remembered of the lower device, in a form of whoever looks; empty for nothing. */
  readonly lowerSeen: string
  /** Kernels that lose the current era in a crash are put up with. */
  readonly allowLossyKernel: boolean
  /** How its lower snapshots are taken, in a form of whoever takes them; empty where only others do. */
  readonly snapshotBy: string
  /** Milliseconds since 1970. */
  readonly createdAt: number
}

/** What is about to be done. `volume`: its name. */
export type EraIntent =
  | { readonly kind: 'attach'; readonly volume: string }
  | { readonly kind: 'detach'; readonly volume: string }
  | { readonly kind: 'grow'; readonly volume: string; readonly sizeBytes: number }
  /** `token` tells what was made for this snapshot from everything else of its name. */
  | { readonly kind: 'snapshot'; readonly volume: string; readonly snapshot: string; readonly token: string }

export type NewEraIntent =
  Exclude<EraIntent, { kind: 'attach' }> | { readonly kind: 'attach'; readonly volume: Omit<EraVolume, 'createdAt'> }

/** What may have changed since the last look. */
export type SeenOfEraVolume = Partial<
  Pick<
    EraVolume,
    | 'newestEra'
    | 'seenBlocks'
    | 'guardCheckedAt'
    | 'lowerSeen'
    | 'metadataIdentity'
    | 'dataIdentity'
    | 'dataDevice'
    | 'metadataDevice'
  >
>

type IntentRow = RowOf<typeof eraIntentsTable>

/** Bytes of the longest text that says why a line began. */
const LONGEST_REASON = 1000

/**
 * Writes down what is about to be done to a volume. The kernel may be told once this has returned.
 *
 * @throws DM_DEVICE_BUSY when something else is under way there, or a name is taken; DM_NO_SUCH_DEVICE; DM_ARGUMENT_INVALID
 */
export function beginEra(database: CatalogDatabase, intent: NewEraIntent, at: number): EraIntent {
  return database.write(() => {
    const name = intent.kind === 'attach' ? intent.volume.name : intent.volume
    const pending = eraIntentsTable.get(database, { volume: name })
    if (pending !== undefined) {
      throw busy(`era volume ${name} is in the middle of something else (${pending.kind})`, 'wait for it to be done')
    }
    if (intent.kind === 'attach') attach(database, intent.volume, at)
    else checkBegins(database, intent)
    const complete: EraIntent = intent.kind === 'attach' ? { kind: intent.kind, volume: name } : intent
    const noDetails = { sizeBytes: undefined, snapshot: undefined, token: undefined }
    eraIntentsTable.insert(database, { ...noDetails, ...complete, startedAt: at })
    return complete
  })
}

/** Makes the volume's intent a fact, after the kernel has done its part. A snapshot is completed by `recordEraSnapshot`. */
export function completeEra(database: CatalogDatabase, volume: string): void {
  database.write(() => {
    const { row, intent } = pendingIntent(database, volume)
    eraIntentsTable.delete(database, [row])
    const tracked = eraVolumeRow(database, volume)
    switch (intent.kind) {
      case 'attach':
        return
      case 'detach':
        forgetVolume(database, tracked)
        return
      case 'grow':
        eraVolumesTable.update(database, tracked, {
          sizeBytes: intent.sizeBytes,
          leastBytes: Math.min(tracked.leastBytes, intent.sizeBytes)
        })
        return
      case 'snapshot':
        throw defect(`the snapshot ${volume}/${intent.snapshot} was to be completed without its history`)
    }
  })
}

/** Forgets the volume's intent, after it was refused, or found not to have been carried out. */
export function rollBackEra(database: CatalogDatabase, volume: string): void {
  database.write(() => {
    const { row, intent } = pendingIntent(database, volume)
    eraIntentsTable.delete(database, [row])
    const tracked = eraVolumeRow(database, volume)
    if (intent.kind === 'attach') forgetVolume(database, tracked)
    else clearStagedWrites(database, tracked)
  })
}

/** Remembers what was seen of a volume. Fewer blocks than at the last look: it was made smaller, and what lay beyond is another's now. */
export function sawEraVolume(database: CatalogDatabase, volume: string, seen: SeenOfEraVolume): void {
  database.write(() => {
    const tracked = eraVolumeRow(database, volume)
    const shrunk = seen.seenBlocks !== undefined && seen.seenBlocks < tracked.seenBlocks
    const leastBytes = shrunk
      ? Math.min(tracked.leastBytes, (seen.seenBlocks ?? 0) * tracked.blockSectors * 512)
      : tracked.leastBytes
    eraVolumesTable.update(database, tracked, { ...seen, leastBytes })
  })
}

/** Voids the volume's history: what is recorded from now on is of another line. @param because why, in words */
export function breakEraLine(
  database: CatalogDatabase,
  volume: string,
  because: string,
  { newestEra, seenBlocks }: { newestEra: number; seenBlocks: number }
): EraVolume {
  return database.write(() => {
    const tracked = eraVolumeRow(database, volume)
    clearStagedWrites(database, tracked)
    const line = {
      line: randomUUID(),
      lineBecause: shortened(because),
      ...{ newestEra, seenBlocks },
      ...{ boundaryEra: undefined, leastBytes: tracked.sizeBytes, openExact: 1 }
    }
    eraVolumesTable.update(database, tracked, line)
    return volumeOf({ ...tracked, ...line })
  })
}

/** All volumes and what is under way, by name. */
export function eraView(database: CatalogDatabase): { volumes: readonly EraVolume[]; intents: readonly EraIntent[] } {
  return {
    volumes: eraVolumesTable.find(database, {}).map(volumeOf),
    intents: eraIntentsTable.find(database, {}).map(intentOf)
  }
}

export function findEraVolume(database: CatalogDatabase, name: string): EraVolume | undefined {
  const row = eraVolumesTable.get(database, { name })
  return row && volumeOf(row)
}

function pendingIntent(database: CatalogDatabase, volume: string): { row: IntentRow; intent: EraIntent } {
  const row = eraIntentsTable.get(database, { volume })
  if (row === undefined) throw defect(`nothing is under way with era volume ${volume}`)
  return { row, intent: intentOf(row) }
}

function attach(database: CatalogDatabase, volume: Omit<EraVolume, 'createdAt'>, at: number): void {
  checkName(volume.name)
  for (const taken of [{ name: volume.name }, { id: volume.id }]) {
    if (eraVolumesTable.get(database, taken) !== undefined) {
      throw busy(`there already is an era volume ${Object.values(taken).join()}`, 'choose another name')
    }
  }
  // Also of those that are not active: they could not become so.
  const wanted = [volume.dmName, guardName(volume)]
  for (const other of eraVolumesTable.find(database, {})) {
    const taken = [other.dmName, guardName(other)].find((each) => wanted.includes(each))
    if (taken !== undefined) {
      throw busy(`the device-mapper name ${taken} belongs to era volume ${other.name}`, 'choose another name')
    }
  }
  eraVolumesTable.insert(database, {
    ...volume,
    allowLossyKernel: volume.allowLossyKernel ? 1 : 0,
    lineBecause: shortened(volume.lineBecause),
    boundaryEra: undefined,
    leastBytes: volume.sizeBytes,
    ...{ openExact: 1, lastSeq: 0, createdAt: at }
  })
}

function checkBegins(database: CatalogDatabase, intent: Exclude<NewEraIntent, { kind: 'attach' }>): void {
  const { id, name } = eraVolumeRow(database, intent.volume)
  if (intent.kind !== 'snapshot') return
  checkName(intent.snapshot)
  const taken = eraSnapshotsTable.get(database, { volume: id, name: intent.snapshot })
  // The name of one whose data are gone may be used again.
  if (taken !== undefined && taken.removedAt === undefined) {
    throw busy(`era volume ${name} already has a snapshot ${intent.snapshot}`, 'choose another name')
  }
}

function forgetVolume(database: CatalogDatabase, volume: EraVolumeRow): void {
  forgetVolumeHistory(database, volume)
  eraVolumesTable.delete(database, [volume])
}

function volumeOf({
  boundaryEra: _boundary,
  leastBytes: _least,
  openExact: _exact,
  lastSeq: _seq,
  allowLossyKernel,
  ...volume
}: EraVolumeRow): EraVolume {
  return { ...volume, allowLossyKernel: allowLossyKernel === 1 }
}

function intentOf({ volume, kind, sizeBytes, snapshot, token }: IntentRow): EraIntent {
  if (kind === 'attach' || kind === 'detach') return { kind, volume }
  if (kind === 'grow' && sizeBytes !== undefined) return { kind, volume, sizeBytes }
  if (kind === 'snapshot' && snapshot !== undefined && token !== undefined) return { kind, volume, snapshot, token }
  throw defect(`what is under way with era volume ${volume} is not known: ${kind}`)
}

function checkName(name: string): void {
  if (isHandleName(name)) return
  throw new DeltamapperError(
    'DM_ARGUMENT_INVALID',
    `${JSON.stringify(name)} is no name`,
    'use letters, digits and + _ . - only'
  )
}

/** A text that the catalog can keep, whatever an error's message was. */
function shortened(text: string): string {
  return text.toWellFormed().replaceAll('\0', '').slice(0, LONGEST_REASON)
}

function busy(what: string, remedy: string): DeltamapperError {
  return new DeltamapperError('DM_DEVICE_BUSY', what, remedy)
}

function defect(what: string): DeltamapperError {
  return new DeltamapperError('DM_INTERNAL', what, 'report it with the log lines around it')
}
