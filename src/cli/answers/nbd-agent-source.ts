/**
 * The snapshot of `deltamapper nbd` on this node: the agent says what is in it and what changed, its block device has
 * the data.
 */
import { access, stat } from 'node:fs/promises'
import { DeviceMapper, type DeviceNumber } from '../../../native/device-mapper.ts'
import { decodeDeviceNumber } from '../../../native/device.ts'
import { classicDevices, entriesCounted } from '../../agent/node/classic-devices.ts'
import { findPoolDevice } from '../../agent/node/pool-device.ts'
import { LvmReporter } from '../../agent/lvm/report.ts'
import { startCommand } from '../../agent/lvm/command.ts'
import type { ExtentAnswer, ExtentStream } from '../../devicemapper/extents.ts'
import { DeltamapperError } from '../../errors.ts'
import { connect, type SnapshotMetadataClient } from '../../grpc/client.ts'
import { parseHandle, type Handle } from '../../handle.ts'
import type { NbdSource } from '../../nbd/source.ts'
import { ClassicDeviceData } from '../../nbd/classic-device.ts'
import { ThinDeviceData } from '../../nbd/thin-device.ts'
import { everything, type WatchedDevice } from '../../nbd/watched-device.ts'
import { socketAwaited } from '../command-line/awaited-socket.ts'
import { endpointAddress, endpointTls } from '../command-line/endpoint.ts'
import { UsageError } from '../command-line/failure.ts'
import type { NbdOptions } from './nbd-options.ts'
import type { Remark } from './question.ts'

/** How long LVM may take to activate a volume, in milliseconds. */
const ACTIVATION_MS = 60_000

/** @throws UsageError; the agent's errors; what opening the device throws; DM_LVM_FAILED */
export async function openAgentSource(
  target: string,
  bases: readonly string[],
  options: NbdOptions,
  remark: Remark
): Promise<NbdSource> {
  const handle = parseHandle(target)
  const tls = await endpointTls(options)
  const address = endpointAddress(options.endpoint, { tls: tls !== undefined })
  if (!address.startsWith('unix:')) {
    throw new UsageError(
      `${address} may be another machine, and the data are read here`,
      "name the agent's unix socket"
    )
  }
  const path = options.device ?? devicePath(handle)
  const closing: (() => Promise<void> | void)[] = []
  /** All of them, also where one fails: what was activated is deactivated. */
  const close = async (): Promise<void> => {
    const last = closing.pop()
    try {
      await last?.()
    } finally {
      if (last) await close()
    }
  }
  try {
    if (await isMissing(path)) {
      if (!options.activate) throw inactive(target, path)
      await activate(handle)
      closing.push(() => deactivate(handle))
    }
    const deviceMapper = new DeviceMapper()
    closing.push(() => deviceMapper.close())
    const data = await openDevice(path, handle, deviceMapper, options.rate)
    closing.push(() => data.close())
    if (data.isCostly) {
      remark(`${path} can be written to: its pool commits before each answer; read-only (lvchange -pr) it is faster`)
    }
    await socketAwaited(address)
    const client = connect(address, { tls })
    closing.push(() => client.close())
    const { allocated } = data
    if (allocated) {
      await checkSameSnapshot(target, await client.allocated({ snapshotId: target }), await allocated())
    }
    const sizes = await sizesOf(bases)
    return {
      ...questions(client, target, bases, sizes),
      ...(!allocated && { allocated: async () => everything(data.sizeBytes) }),
      ...described(data, target),
      data,
      look: () => data.look(),
      close
    }
  } catch (error) {
    await close()
    throw error
  }
}

/** @throws what opening the snapshot's device throws, of whichever kind it is */
async function openDevice(
  path: string,
  handle: Handle,
  deviceMapper: DeviceMapper,
  bytesPerSecond: number | undefined
): Promise<WatchedDevice> {
  const { rdev } = await stat(path)
  const [row] = await deviceMapper.table(decodeDeviceNumber(rdev)).catch(() => [])
  if (row?.targetType === 'snapshot') {
    const state = async (uuid: string, originUuid: string) => {
      const reference = { handle: `${handle.source}/${handle.name}`, uuid, originUuid }
      const devices = await classicDevices(deviceMapper, reference)
      await entriesCounted(deviceMapper, reference.handle, devices)
      return devices
    }
    return ClassicDeviceData.open(path, handle, { deviceMapper, state, bytesPerSecond })
  }
  // Whatever else it is, this says why it cannot be served.
  const findPool = (pool: DeviceNumber) => findPoolDevice(deviceMapper, pool)
  return ThinDeviceData.open(path, { deviceMapper, findPool, handle, bytesPerSecond })
}

/**
 * A name can stand for one thing to the agent (a recorded pool, a pool of dmsetup's) and for another below /dev. So
 * what the agent says is held against what the pool of the device has.
 *
 * @throws DM_NO_SUCH_DEVICE where they are not of one snapshot; DM_SNAPSHOT_CHANGED
 */
async function checkSameSnapshot(target: string, told: ExtentAnswer, found: ExtentStream): Promise<void> {
  const [ofAgent, ofDevice] = [ranges(told), ranges(found)]
  try {
    for (;;) {
      const [one, other] = [await ofAgent.next(), await ofDevice.next()]
      const isOther = one.done !== other.done || (!one.done && !other.done && String(one.value) !== String(other.value))
      if (isOther || (told.capacityBytes ?? found.capacityBytes) !== found.capacityBytes) {
        throw new DeltamapperError(
          'DM_NO_SUCH_DEVICE',
          `what the agent calls ${target} is not what its device has: another source of the agent has that name, or it has just changed`,
          "name the snapshot's own block device with --device, or ask again"
        )
      }
      if (one.done) return
    }
  } finally {
    await ofAgent.return()
    await ofDevice.return()
  }
}

/** `[offset, end)` of each extent; those that touch, as one. */
async function* ranges({ batches }: ExtentAnswer): AsyncGenerator<[number, number], void, void> {
  let [begin, end] = [0, 0]
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) {
      if (offsets[i] !== end && end > begin) yield [begin, end]
      if (offsets[i] !== end || end === begin) begin = offsets[i]
      end = offsets[i] + sizes[i]
    }
  }
  if (end > begin) yield [begin, end]
}

function described({ sizeBytes, blockBytes }: WatchedDevice, target: string) {
  return { target, sizeBytes, blockBytes }
}

function questions(
  client: SnapshotMetadataClient,
  target: string,
  bases: readonly string[],
  sizes: ReadonlyMap<string, number>
): Pick<NbdSource, 'allocated' | 'bases'> {
  return {
    allocated: (startingOffset, signal) => client.allocated({ snapshotId: target, startingOffset, signal }),
    bases: bases.map((name) => ({
      name,
      sizeBytes: sizes.get(name),
      delta: (startingOffset, signal) =>
        client.delta({ baseSnapshotId: name, targetSnapshotId: target, startingOffset, signal })
    }))
  }
}

/**
 * Sizes of bases, in bytes, as far as LVM knows them. (The agent would say, to a question that it then has on record as
 * an answer about the base, which nobody was given.) Where one is not known, an increment zeroes what it could have
 * left alone, and is right all the same.
 */
async function sizesOf(bases: readonly string[]): Promise<Map<string, number>> {
  const sizes = new Map<string, number>()
  const lvm = new LvmReporter()
  for (const base of bases) {
    const { source, name } = parseHandle(base)
    const volumes = await lvm.logicalVolumes(source).catch(() => undefined)
    const volume = volumes?.find((each) => each.name === name)
    if (volume) sizes.set(base, volume.sizeBytes)
  }
  return sizes
}

function devicePath({ source, name }: Handle): string {
  if (source !== '*') return `/dev/${source}/${name}`
  throw new UsageError(`*/${name} does not say where its device is`, 'name it with --device')
}

async function isMissing(path: string): Promise<boolean> {
  return access(path).then(
    () => false,
    (error: NodeJS.ErrnoException) => error.code === 'ENOENT'
  )
}

function inactive(target: string, path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_NO_SUCH_DEVICE',
    `there is no ${path}: ${target} is not active, or has its device elsewhere`,
    `activate it (lvchange -ay -K ${target}), or say --activate, which also undoes it; or name its device with --device`
  )
}

async function activate({ source, name }: Handle): Promise<void> {
  await lvchange(['-ay', '-K', '--', `${source}/${name}`])
}

async function deactivate({ source, name }: Handle): Promise<void> {
  await lvchange(['-an', '--', `${source}/${name}`])
}

async function lvchange(words: readonly string[]): Promise<void> {
  const command = ['lvm', 'lvchange', ...words]
  const { result } = startCommand(command, { deadlineMs: ACTIVATION_MS, maxOutputBytes: 2 ** 20 })
  const { exitCode, stderr } = await result
  if (exitCode === 0) return
  throw new DeltamapperError(
    'DM_LVM_FAILED',
    `\`${command.join(' ')}\` failed: ${stderr.trim().replaceAll(/\s+/g, ' ')}`,
    'see what LVM says of the volume (lvs -a)'
  )
}
