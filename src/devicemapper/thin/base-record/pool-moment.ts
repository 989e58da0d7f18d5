/**
 * How far a pool has come at one moment, and whether a later look shows that it continued from there.
 *
 * The kernel counts snapshots (`time` in struct thin_disk_superblock, drivers/md/dm-thin-metadata.c), and LVM and
 * others count their changes with the transaction id. Neither ever decreases, and a device that was not there at a look
 * cannot be older than the clock was. A pool that was restored and has caught up since is still found: by a device that
 * it got back, or by one that it would have had before.
 */

/** How far a pool has come. */
export interface PoolMoment {
  /** Snapshots taken in it so far; 0 to 2^32 - 1. */
  readonly time: number
  readonly transactionId: bigint
  /** Its devices, made by `packDevices`. */
  readonly devices: Uint8Array
}

/** Bytes for one device: id (4), creation time (4), transaction id (8), little-endian, by ascending id. */
const DEVICE_BYTES = 16
/** With more devices than this (a mebibyte), only the clock is kept. */
const MOST_DEVICES = 2 ** 20 / DEVICE_BYTES

/** A device in the list. */
export interface ListedDevice {
  readonly id: number
  readonly creationTime: number
  readonly transactionId: bigint
}

/**
 * The devices of a pool in few bytes; empty if there are more than 65,536.
 *
 * @param devices by ascending id
 */
export function packDevices(devices: readonly ListedDevice[]): Uint8Array {
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

/** What shows that a pool did not continue from `before`; undefined if nothing does. */
export function howWentBack(before: PoolMoment, now: PoolMoment): string | undefined {
  if (now.time < before.time) return `its clock was ${before.time} before, and is ${now.time}`
  if (now.transactionId < before.transactionId) {
    return `its transaction id was ${before.transactionId} before, and is ${now.transactionId}`
  }
  for (const { id, creationTime, transactionId } of newcomers(before, now)) {
    if (creationTime >= before.time && transactionId >= before.transactionId) continue
    return (
      `thin device ${id} is of time ${creationTime} and transaction ${transactionId}, and was not there at time ` +
      `${before.time} and transaction ${before.transactionId}`
    )
  }
  return undefined
}

/**
 * The devices that are there now and were not before. None if there were too many before to know them.
 *
 * One with the creation time `before.time` may be a new volume, but no snapshot: each snapshot raises the clock first
 * (__create_snap in drivers/md/dm-thin-metadata.c).
 */
export function* newcomers(before: PoolMoment, now: PoolMoment): Generator<ListedDevice> {
  if (before.devices.length === 0) return
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
    if (!isKnown) yield { id, creationTime, transactionId }
  }
}

function viewOf({ buffer, byteOffset, byteLength }: Uint8Array): DataView {
  return new DataView(buffer, byteOffset, byteLength)
}
