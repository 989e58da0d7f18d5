/** The record of each thin device beside its mappings: struct disk_device_details, drivers/md/dm-thin-metadata.c. */

/** Bytes of one record in the device-details tree. */
export const DEVICE_DETAILS_SIZE = 24
/** Thin device ids are below this: 24 bits. */
export const MAX_DEVICES = 2 ** 24

export interface DeviceDetails {
  /** Data blocks mapped, shared ones included. */
  mappedBlocks: number
  /** The pool's transaction id when the device was created. */
  transactionId: bigint
  /**
   * The pool's clock (ThinSuperblock.time) when the device was created. Together with the id, this identifies a device
   * for ever.
   */
  creationTime: number
  /** The pool's clock when the device last took part in a snapshot, as origin or as the snapshot itself. */
  snapshottedTime: number
}

export function parseDeviceDetails(bytes: Buffer, offset: number): DeviceDetails {
  return {
    mappedBlocks: Number(bytes.readBigUInt64LE(offset)),
    transactionId: bytes.readBigUInt64LE(offset + 8),
    creationTime: bytes.readUInt32LE(offset + 16),
    snapshottedTime: bytes.readUInt32LE(offset + 20)
  }
}
