/**
 * A classic snapshot's block device, and whether what is read from it still is the snapshot.
 *
 *   device ──table──▶ snapshot ORIGIN-real STORE ──status──▶ whether the kernel still keeps it
 *
 * Its devices have to stand as LVM puts them before each answer, and nobody may have written through its own: the
 * kernel counts that. Of none of its ranges is anything known but that it can be read.
 */
import { isDeepStrictEqual } from 'node:util'
import type { DeviceMapper, DeviceNumber } from '../../native/device-mapper.ts'
import { parseCowTable } from '../devicemapper/cow/table.ts'
import { namedClassic } from '../devicemapper/device-named.ts'
import { DeltamapperError } from '../errors.ts'
import { DataFile } from './data-file.ts'
import { type Attributes, DeviceAttributes, UNWRITTEN } from './device-attributes.ts'
import type { WatchedDevice } from './watched-device.ts'

/** What a classic snapshot stands on, as long as the kernel keeps it. */
export interface ClassicState {
  readonly snapshot: DeviceNumber
  /** Of the store, in bytes. */
  readonly chunkBytes: number
}

export interface ClassicDeviceOptions {
  readonly deviceMapper: Pick<DeviceMapper, 'info' | 'table'>
  /** By UUIDs of device-mapper. Throws where it is not kept any more, or does not stand as LVM puts it. */
  readonly state: (uuid: string, originUuid: string) => Promise<ClassicState>
  /** No faster than so many bytes a second. */
  readonly bytesPerSecond?: number | undefined
  /** Nothing else records what was written to it: nobody may have written through its device, as far as that goes. */
  readonly untouched?: boolean | undefined
}

/** What has to stay as it was. */
interface Seen {
  readonly attributes: Attributes
  readonly originUuid: string
  readonly state: ClassicState
}

export class ClassicDeviceData implements WatchedDevice {
  readonly sizeBytes: number
  readonly blockBytes: number
  readonly isCostly = false
  readonly named: string
  readonly hasExternalOrigin = false
  readonly data: DataFile
  readonly #attributes: DeviceAttributes
  readonly #seen: Seen
  readonly #options: ClassicDeviceOptions

  private constructor(file: DataFile, attributes: DeviceAttributes, seen: Seen, options: ClassicDeviceOptions) {
    this.data = file
    this.#attributes = attributes
    this.#seen = seen
    this.#options = options
    this.sizeBytes = file.sizeBytes
    this.named = namedClassic(seen.attributes.uuid)
    this.blockBytes = seen.state.chunkBytes
  }

  /**
   * @param handle group and name of the snapshot; the device has to be LVM's of that name
   * @throws DM_NO_SUCH_DEVICE; DM_VOLUME_IN_USE where it was to be untouched, and is not; what `state` throws, and
   *   opening the device
   */
  static async open(
    path: string,
    handle: { readonly source: string; readonly name: string },
    options: ClassicDeviceOptions
  ): Promise<ClassicDeviceData> {
    const file = await DataFile.open(path, { bytesPerSecond: options.bytesPerSecond })
    let attributes: DeviceAttributes | undefined
    try {
      if (!file.device) throw notOf(path, handle, 'no block device')
      attributes = new DeviceAttributes(file.device)
      const now = await attributes.settled()
      const expected = [handle.source, handle.name].map((each) => each.replaceAll('-', '--')).join('-')
      if (!now.uuid.startsWith('LVM-') || now.name !== expected) throw notOf(path, handle, now.name)
      if (options.untouched && now.writes !== UNWRITTEN) throw writtenTo(path)
      const [row] = await options.deviceMapper.table(file.device)
      const origin = row?.targetType === 'snapshot' ? parseCowTable(row.params).originDevice : undefined
      const real = origin && (await options.deviceMapper.info(origin))
      if (!real?.uuid.endsWith('-real')) throw notOf(path, handle, 'no classic snapshot of LVM')
      const originUuid = real.uuid.slice(0, -'-real'.length)
      const state = await options.state(now.uuid, originUuid)
      if (!isDeepStrictEqual(state.snapshot, file.device)) throw notOf(path, handle, 'another device')
      await attributes.checkCounted(() => file.readPage())
      return new ClassicDeviceData(file, attributes, { attributes: now, originUuid, state }, options)
    } catch (error) {
      attributes?.close()
      await file.close()
      throw error
    }
  }

  async look(): Promise<void> {
    const { attributes, originUuid, state } = this.#seen
    const now = await this.#options.state(attributes.uuid, originUuid)
    // Last: what was written before it was read from is counted by now.
    if (isDeepStrictEqual(now, state) && isDeepStrictEqual(await this.#attributes.settled(), attributes)) return
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `${this.data.path} was written to, renamed, resized, given another table or made writable while it was served`,
      'throw away what was copied; keep snapshots read-only'
    )
  }

  async close(): Promise<void> {
    this.#attributes.close()
    await this.data.close()
  }
}

function writtenTo(path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_VOLUME_IN_USE',
    `${path} was written to since it was taken or activated, and nothing says where`,
    'take a new snapshot, and write to none'
  )
}

function notOf(path: string, { source, name }: { source: string; name: string }, what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_NO_SUCH_DEVICE',
    `${path} is ${what}, and not the device of ${source}/${name}`,
    "name the snapshot's own block device with --device"
  )
}
