/**
 * How far every pool's clock had come when it was last looked at, and which devices the pool had: so that a pool that goes on from an
 * earlier state (metadata restored from a copy, disks put back) is not taken for one that went on.
 *
 * The clock is what the kernel counts snapshots with (`time` in struct thin_disk_superblock, drivers/md/dm-thin-metadata.c) and the
 * transaction id that LVM and others count their changes with. Neither ever goes back, and a device is no older than the clock was when
 * it was not there yet. A pool that was put back and has caught up since is still given away by a device that it got back, or that it
 * would have had before.
 */
import { DeltamapperError } from '../../errors.ts'
import type { CatalogDatabase } from './database.ts'
import { type ServedRecord, servedTable } from './served-targets.ts'
import { Table } from './store/table.ts'

export const poolClocksTable = new Table(
  'pool_clocks',
  {
    pool: 'text',
    time: 'count',
    transactionId: 'u64',
    devices: 'bytes',
    lookedAt: 'count',
    wentBackAt: 'count?',
    wentBack: 'text?'
  } as const,
  ['pool']
)

/** A pool's clock, read at one moment. */
export interface PoolClock {
  /** Which pool it is (pool-identity.ts). */
  readonly pool: string
  /** Snapshots taken in it so far; 0 to 2^32 - 1. */
  readonly time: number
  readonly transactionId: bigint
  /** Its devices, made by `clockedDevices`. */
  readonly devices: Uint8Array
}

/** When it was found that a pool had gone back, and how that showed. Milliseconds since 1970. */
export interface WentBack {
  readonly at: number
  readonly how: string
}

/** Bytes for one device: id (4), creation time (4), transaction id (8), little-endian, by ascending id. */
const DEVICE_BYTES = 16
/** Of more devices than that (a mebibyte of them) only the clock is kept. */
const MOST_DEVICES = 2 ** 20 / DEVICE_BYTES

/**
 * The devices of a pool as they are kept.
 *
 * @param devices by ascending id
 */
export function clockedDevices(
  devices: readonly { readonly id: number; readonly creationTime: number; readonly transactionId: bigint }[]
): Uint8Array {
  if (devices.length > MOST_DEVICES) return new Uint8Array()
  const bytes = new Uint8Array(devices.length * DEVICE_BYTES)
  const view = new DataView(bytes.buffer)
  devices.forEach(({ id, creationTime, transactionId }, i) => {
    view.setUint32(i * DEVICE_BYTES, id, true)
    view.setUint32(i * DEVICE_BYTES + 4, creationTime, true)
    view.setBigUint64(i * DEVICE_BYTES + 8, transactionId, true)
  })
  return bytes
}

/** How it shows that a pool is not the one that went on from `before`; undefined where nothing says so. */
export function howWentBack(before: PoolClock, now: PoolClock): string | undefined {
  if (now.time < before.time) return `its clock was ${before.time} before, and is ${now.time}`
  if (now.transactionId < before.transactionId) {
    return `its transaction id was ${before.transactionId} before, and is ${now.transactionId}`
  }
  // Nothing is known of the devices where there were too many.
  if (before.devices.length === 0) return undefined
  const [known, found] = [viewOf(before.devices), viewOf(now.devices)]
  let k = 0
  for (let f = 0; f < found.byteLength; f += DEVICE_BYTES) {
    const id = found.getUint32(f, true)
    while (k < known.byteLength && known.getUint32(k, true) < id) k += DEVICE_BYTES
    const [creationTime, transactionId] = [found.getUint32(f + 4, true), found.getBigUint64(f + 8, true)]
    const isKnown =
      k < known.byteLength &&
      known.getUint32(k, true) === id &&
      known.getUint32(k + 4, true) === creationTime &&
      known.getBigUint64(k + 8, true) === transactionId
    if (isKnown || (creationTime >= before.time && transactionId >= before.transactionId)) continue
    return (
      `thin device ${id} is of time ${creationTime} and transaction ${transactionId}, and was not there at time ` +
      `${before.time} and transaction ${before.transactionId}`
    )
  }
  return undefined
}

/**
 * Takes a look into account. Looks at one pool are to be told in the order in which they were made.
 *
 * @returns when the pool was last found to have gone back, be it now; undefined where it never was
 */
export function sawPoolClock(database: CatalogDatabase, now: PoolClock, at: number): WentBack | undefined {
  const { pool, time, transactionId, devices } = now
  const seen = { time, transactionId, devices, lookedAt: at }
  const before = poolClocksTable.byKey(database, pool)
  if (!before) {
    database.write(() => {
      poolClocksTable.insert(database, { pool, ...seen, wentBackAt: undefined, wentBack: undefined })
    })
    return undefined
  }
  const how = howWentBack(before, now)
  const isSame =
    time === before.time && transactionId === before.transactionId && Buffer.compare(devices, before.devices) === 0
  if (how !== undefined) {
    // Whatever the wall clock has been set to since: all that is on record was served before.
    const [newest] = servedTable.select(database, 'ORDER BY first_served_at DESC LIMIT 1')
    const wentBackAt = Math.max(at, before.lookedAt, newest?.firstServedAt ?? 0)
    database.write(() => poolClocksTable.update(database, before, { ...seen, wentBackAt, wentBack: how }))
    return { at: wentBackAt, how }
  }
  if (!isSame) database.write(() => poolClocksTable.update(database, before, seen))
  return wentBackOf(before)
}

/** What is known of a pool without another look. */
export function poolWentBack(database: CatalogDatabase, pool: string): WentBack | undefined {
  const known = poolClocksTable.byKey(database, pool)
  return known && wentBackOf(known)
}

function wentBackOf({ wentBackAt, wentBack = '' }: { wentBackAt?: number | undefined; wentBack?: string | undefined }) {
  return wentBackAt === undefined ? undefined : { at: wentBackAt, how: wentBack }
}

/**
 * Refuses a base that was not served for the first time since its pool went back: what a backup of it holds may be what it was before.
 *
 * @param recorded everything that was served under its handle or its identity
 * @throws DM_POOL_WENT_BACK
 */
export function checkSinceWentBack(
  handle: string,
  recorded: readonly Pick<ServedRecord, 'firstServedAt'>[],
  wentBack: WentBack | undefined
): void {
  if (!wentBack) return
  if (recorded.length > 0 && recorded.every(({ firstServedAt }) => firstServedAt > wentBack.at)) return
  throw new DeltamapperError(
    'DM_POOL_WENT_BACK',
    `the pool of ${handle} went on from an earlier state, which was noticed at ${new Date(wentBack.at).toISOString()}: ${wentBack.how}`,
    'take a full backup of a new snapshot; what was backed up before is no base any more'
  )
}

function viewOf({ buffer, byteOffset, byteLength }: Uint8Array): DataView {
  return new DataView(buffer, byteOffset, byteLength)
}
