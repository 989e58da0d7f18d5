/**
 * Tracked volumes: their devices, what was last seen of them, and their intents.
 *
 * The evidence for a volume's history is kept here because nothing else keeps it. The metadata has no name of its own
 * (the kernel blanks its UUID with each commit), and it does not say which device's writes it has. As long as the
 * evidence stays consistent, the volume has one *history*. Otherwise a new history begins, and snapshots of different
 * histories are never compared (era-snapshots.ts).
 *
 * Changes are recorded ahead, as for owned pools (owned-pools.ts): `begin`, then the kernel is told, then `complete` or
 * `rollBack`. One change at a time for each volume. A snapshot's intent is completed by the call that records it with
 * its history.
 */
import { randomUUID } from 'node:crypto'
import { defect, DeltamapperError, invalid } from '../../errors.ts'
import { guardName } from '../node/era-devices.ts'
import { isHandleName } from '../../handle.ts'
import type { CatalogDatabase } from './database.ts'
import { clearStagedWrites, forgetVolumeHistory } from './era-snapshots.ts'
import { nameTaken } from './name-taken.ts'
import {
  eraIntentsTable,
  eraSnapshotsTable,
  type EraVolumeRow,
  eraVolumeRow,
  eraVolumesTable
} from './store/era-tables.ts'
import type { RowOf } from './store/table.ts'
import { SECTOR_BYTES } from '../../units.ts'

/** A tracked volume: two device-mapper devices of ours over a data device. */
export interface EraVolume {
  /** Never used again; the UUIDs of its devices contain it. */
  readonly id: string
  /** The part before the slash in the handles of its snapshots. */
  readonly name: string
  /** Name of the device that has the era target. */
  readonly dmName: string
  readonly dataDevice: string
  /** Identifies the data device, even if its name changes. */
  readonly dataIdentity: string
  readonly metadataDevice: string
  readonly metadataIdentity: string
  /** The size of a tracked block, in sectors of 512 bytes. */
  readonly blockSectors: number
  /** Size of the era device in bytes. */
  readonly sizeBytes: number
  /** The id of its present history. */
  readonly line: string
  /** Why that history began, in words. */
  readonly lineBecause: string
  /** The era that was seen last in this history, and how many blocks the device had then. */
  readonly newestEra: number
  readonly seenBlocks: number
  /** When the history check last found everything right; milliseconds since 1970. */
  readonly guardCheckedAt: number
  /** What was last seen of the devices, as JSON of the code that looks; empty if nothing was. */
  readonly lowerSeen: string
  /** Accept a kernel that loses the current era in a crash. */
  readonly allowLossyKernel: boolean
  /** How its lower snapshots are taken, as JSON of the code that takes them; empty if only drivers take them. */
  readonly snapshotBy: string
  /** Milliseconds since 1970. */
  readonly createdAt: number
}

/** A change that is about to be made. `volume`: its name. */
export type EraIntent =
  | { readonly kind: 'attach'; readonly volume: string }
  | { readonly kind: 'detach'; readonly volume: string }
  | { readonly kind: 'grow'; readonly volume: string; readonly sizeBytes: number }
  /** `token` identifies what was made for this snapshot. */
  | { readonly kind: 'snapshot'; readonly volume: string; readonly snapshot: string; readonly token: string }

export type NewEraIntent =
  Exclude<EraIntent, { kind: 'attach' }> | { readonly kind: 'attach'; readonly volume: Omit<EraVolume, 'createdAt'> }

/** What may have changed since the last look. */
export type EraVolumeLook = Partial<
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

/** The longest text, in bytes, that says why a history began. */
const LONGEST_REASON = 1000

/**
 * Records an intent for a volume. Tell the kernel only after this has returned.
 *
 * @throws DM_DEVICE_BUSY when the volume has another intent, or a name is taken; DM_NO_SUCH_DEVICE; DM_ARGUMENT_INVALID
 */
export function beginEra(database: CatalogDatabase, intent: NewEraIntent, at: number): EraIntent {
  return database.write(() => {
    const name = intent.kind === 'attach' ? intent.volume.name : intent.volume
    const pending = eraIntentsTable.get(database, { volume: name })
    if (pending !== undefined) {
      throw busy(
        `tracked volume ${name} is in the middle of something else (${pending.kind})`,
        'wait for it to be done'
      )
    }
    if (intent.kind === 'attach') attach(database, intent.volume, at)
    else checkBegins(database, intent)
    const complete: EraIntent = intent.kind === 'attach' ? { kind: intent.kind, volume: name } : intent
    const noDetails = { sizeBytes: undefined, snapshot: undefined, token: undefined }
    eraIntentsTable.insert(database, { ...noDetails, ...complete, startedAt: at })
    return complete
  })
}

/**
 * Completes the volume's intent, after the kernel has done its part. (`recordEraSnapshot` completes that of a
 * snapshot.)
 */
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

/** Rolls back the volume's intent, after it was refused, or found undone. */
export function rollBackEra(database: CatalogDatabase, volume: string): void {
  database.write(() => {
    const { row, intent } = pendingIntent(database, volume)
    eraIntentsTable.delete(database, [row])
    const tracked = eraVolumeRow(database, volume)
    if (intent.kind === 'attach') forgetVolume(database, tracked)
    else clearStagedWrites(database, tracked)
  })
}

/**
 * Records a look at a volume. If it has fewer blocks than at the last look, it was made smaller, and another volume may
 * use the rest.
 */
export function sawEraVolume(database: CatalogDatabase, volume: string, seen: EraVolumeLook): void {
  database.write(() => {
    const tracked = eraVolumeRow(database, volume)
    const shrunk = seen.seenBlocks !== undefined && seen.seenBlocks < tracked.seenBlocks
    const leastBytes = shrunk
      ? Math.min(tracked.leastBytes, (seen.seenBlocks ?? 0) * tracked.blockSectors * SECTOR_BYTES)
      : tracked.leastBytes
    eraVolumesTable.update(database, tracked, { ...seen, leastBytes })
  })
}

/** Ends the volume's history: later records belong to a new one. @param because why, in words */
export function endEraHistory(
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

/** All volumes and all intents, by name. */
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
  if (row === undefined) throw defect(`nothing is under way with tracked volume ${volume}`)
  return { row, intent: intentOf(row) }
}

function attach(database: CatalogDatabase, volume: Omit<EraVolume, 'createdAt'>, at: number): void {
  checkName(volume.name)
  for (const each of [{ name: volume.name }, { id: volume.id }]) {
    if (eraVolumesTable.get(database, each) !== undefined) {
      throw nameTaken(`there already is a tracked volume ${Object.values(each).join()}`, 'deltamapper era status')
    }
  }
  // Inactive volumes count as well: otherwise they could not be activated.
  const wanted = [volume.dmName, guardName(volume)]
  for (const other of eraVolumesTable.find(database, {})) {
    const taken = [other.dmName, guardName(other)].find((each) => wanted.includes(each))
    if (taken !== undefined) {
      throw nameTaken(`the device-mapper name ${taken} belongs to tracked volume ${other.name}`)
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
  // The name of a snapshot with removed data may be used again.
  if (taken !== undefined && taken.removedAt === undefined) {
    throw nameTaken(
      `tracked volume ${name} already has a snapshot ${intent.snapshot}`,
      `deltamapper snapshot list ${name} --tracked`
    )
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
  throw defect(`what is under way with tracked volume ${volume} is not known: ${kind}`)
}

function checkName(name: string): void {
  if (isHandleName(name)) return
  throw invalid(`${JSON.stringify(name)} is no name`, 'use letters, digits and + _ . - only')
}

/** The text of any error message, in a form that the catalog can store. */
function shortened(text: string): string {
  return text.toWellFormed().replaceAll('\0', '').slice(0, LONGEST_REASON)
}

function busy(what: string, remedy: string): DeltamapperError {
  return new DeltamapperError('DM_DEVICE_BUSY', what, remedy)
}
