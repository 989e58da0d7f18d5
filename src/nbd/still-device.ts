/**
 * The block device of a snapshot that is not thin: a classic one of LVM's, or what was taken below a tracked volume.
 * There is no tree that would show a write. So what the kernel says of the device has to stay: its name, table and
 * size, and its count of writes and discards.
 */
import { isDeepStrictEqual } from 'node:util'
import type { DeviceMapper, DeviceNumber } from '../../native/device-mapper.ts'
import { DeltamapperError } from '../errors.ts'
import { DataFile } from './data-file.ts'
import type { ExportData, Part } from './export.ts'
import { countWrites } from './thin-device.ts'

type Kernel = Pick<DeviceMapper, 'info' | 'table'>

export class StillDeviceData implements ExportData {
  readonly sizeBytes: number
  /** Nobody can write through this device. */
  readonly isReadOnly: boolean
  readonly #file: DataFile
  readonly #deviceMapper: Kernel
  readonly #opened: Awaited<ReturnType<typeof look>>

  private constructor(file: DataFile, deviceMapper: Kernel, opened: Awaited<ReturnType<typeof look>>) {
    this.#file = file
    this.#deviceMapper = deviceMapper
    this.#opened = opened
    this.sizeBytes = file.sizeBytes
    this.isReadOnly = opened.info?.readOnly === true
  }

  /** @throws DM_READ_FAILED */
  static async open(
    path: string,
    { deviceMapper, bytesPerSecond }: { deviceMapper: Kernel; bytesPerSecond?: number | undefined }
  ): Promise<StillDeviceData> {
    const file = await DataFile.open(path, { bytesPerSecond })
    try {
      return new StillDeviceData(file, deviceMapper, await look(deviceMapper, file.device))
    } catch (error) {
      await file.close()
      throw error
    }
  }

  async parts(offset: number, size: number): Promise<Part[]> {
    return [{ offset, size, position: offset }]
  }

  async read({ position = 0, size }: Part, into: Buffer): Promise<Buffer> {
    return this.#file.read(position, size, into)
  }

  /** @throws DM_SNAPSHOT_CHANGED where it is not what it was when it was opened */
  async look(): Promise<void> {
    const now = await look(this.#deviceMapper, this.#file.device)
    if (isDeepStrictEqual(now, this.#opened) && this.#file.sizeBytes === this.sizeBytes) return
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `${this.#file.path} was written to, renamed, resized or given another table while it was served`,
      'throw away what was copied; keep snapshots read-only'
    )
  }

  async close(): Promise<void> {
    await this.#file.close()
  }
}

async function look(deviceMapper: Kernel, number: DeviceNumber | undefined) {
  const info = number && (await deviceMapper.info(number))
  return {
    info: info && { name: info.name, uuid: info.uuid, readOnly: info.readOnly },
    table: info && number ? await deviceMapper.table(number) : [],
    writes: countWrites(number)
  }
}
