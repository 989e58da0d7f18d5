/**
 * The snapshot of `deltamapper nbd` on this node: the agent says what is in it and what changed, its block device has
 * the data.
 */
import { access, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { decodeDeviceNumber } from '../../../native/device.ts'
import { DeviceMapper, type DeviceNumber } from '../../../native/device-mapper.ts'
import { findPoolDevice } from '../../agent/node/pool-device.ts'
import type { LogicalVolume } from '../../agent/lvm/parse.ts'
import { LvmReporter } from '../../agent/lvm/report.ts'
import { startCommand } from '../../agent/lvm/command.ts'
import type { ExtentAnswer } from '../../devicemapper/extents.ts'
import { DeltamapperError } from '../../errors.ts'
import { connect, type SnapshotMetadataClient } from '../../grpc/client.ts'
import { parseHandle, type Handle } from '../../handle.ts'
import type { NbdBase, NbdSource, SnapshotIdentity } from '../../nbd/source.ts'
import { StillDeviceData } from '../../nbd/still-device.ts'
import { checkName, ThinDeviceData } from '../../nbd/thin-device.ts'
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
  const path = options.device ?? (await devicePath(handle, address))
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
    const data = await openData(path, deviceMapper, handle, options)
    closing.push(() => data.close())
    if (!data.isReadOnly && data instanceof ThinDeviceData) {
      remark(`${path} can be written to: its pool commits before each answer; read-only (lvchange -pr) it is faster`)
    }
    await socketAwaited(address)
    const client = connect(address, { tls })
    closing.push(() => client.close())
    const isThin = data instanceof ThinDeviceData && !data.hasExternalOrigin
    if (isThin) await checkSameSnapshot(target, await client.allocated({ snapshotId: target }), data)
    const volumes = await lvmVolumes([target, ...bases])
    return {
      identity: await identityOf(volumes.get(target), data, true),
      ...(await questions(client, target, bases, volumes, data)),
      ...(data instanceof ThinDeviceData &&
        data.hasExternalOrigin && { allocated: async () => everything(data.sizeBytes) }),
      ...{
        target,
        sizeBytes: data.sizeBytes,
        blockBytes: data instanceof ThinDeviceData ? data.blockBytes : undefined
      },
      data,
      look: () => data.look(),
      close
    }
  } catch (error) {
    await close()
    throw error
  }
}

/** What its device-mapper table says that it is. */
async function openData(
  path: string,
  deviceMapper: DeviceMapper,
  handle: Handle,
  { rate, device }: NbdOptions
): Promise<ThinDeviceData | StillDeviceData> {
  const findPool = (pool: DeviceNumber) => findPoolDevice(deviceMapper, pool)
  const status = await stat(path).catch(() => undefined)
  const number = status?.isBlockDevice() ? decodeDeviceNumber(status.rdev) : undefined
  const table = number && (await deviceMapper.info(number)) ? await deviceMapper.table(number) : []
  const isClassic = table.length === 1 && table[0].targetType === 'snapshot'
  if (!isClassic) return ThinDeviceData.open(path, { deviceMapper, findPool, handle, bytesPerSecond: rate })
  const data = await StillDeviceData.open(path, { deviceMapper, bytesPerSecond: rate })
  // A tracked volume's snapshot goes by the name of the volume, and its device is of the group of the data device.
  if (device === undefined && number && path === `/dev/${handle.source}/${handle.name}`) {
    const info = await deviceMapper.info(number)
    if (info) checkName(path, handle, info)
  }
  return data
}

/**
 * A name can stand for one thing to the agent (a recorded pool, a pool of dmsetup's) and for another below /dev. So
 * what the agent says is held against what the pool of the device has.
 *
 * @throws DM_NO_SUCH_DEVICE where they are not of one snapshot; DM_SNAPSHOT_CHANGED
 */
async function checkSameSnapshot(target: string, told: ExtentAnswer, data: ThinDeviceData): Promise<void> {
  const [ofAgent, ofDevice] = [ranges(told), ranges(await data.allocated())]
  try {
    for (;;) {
      const [one, other] = [await ofAgent.next(), await ofDevice.next()]
      const isOther = one.done !== other.done || (!one.done && !other.done && String(one.value) !== String(other.value))
      if (isOther || (told.capacityBytes ?? data.sizeBytes) !== data.sizeBytes) {
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

/** Whatever is not mapped shows another device then: all of it is data. */
function everything(sizeBytes: number): ExtentAnswer {
  const batch = { count: 1, offsets: Float64Array.of(0), sizes: Float64Array.of(sizeBytes) }
  return {
    capacityBytes: sizeBytes,
    batches: (async function* () {
      if (sizeBytes > 0) yield batch
    })()
  }
}

async function questions(
  client: SnapshotMetadataClient,
  target: string,
  bases: readonly string[],
  volumes: ReadonlyMap<string, LogicalVolume>,
  data: ThinDeviceData | StillDeviceData
): Promise<Pick<NbdSource, 'allocated' | 'bases'>> {
  const asked: NbdBase[] = []
  for (const name of bases) {
    const volume = volumes.get(name)
    asked.push({
      ...{ name, sizeBytes: volume?.sizeBytes, identity: volume && (await identityOf(volume, data, false)) },
      delta: (startingOffset, signal) =>
        client.delta({ baseSnapshotId: name, targetSnapshotId: target, startingOffset, signal })
    })
  }
  return {
    allocated: (startingOffset, signal) => client.allocated({ snapshotId: target, startingOffset, signal }),
    bases: asked
  }
}

/** @param volume undefined where LVM knows nothing of it */
async function identityOf(
  volume: LogicalVolume | undefined,
  data: ThinDeviceData | StillDeviceData,
  isTarget: boolean
): Promise<SnapshotIdentity> {
  const knows = data instanceof ThinDeviceData && (isTarget || volume?.thinId !== undefined)
  const fingerprint = knows ? await data.fingerprintOf(volume?.thinId) : undefined
  return { ...(volume && { uuid: volume.uuid }), ...(fingerprint !== undefined && { fingerprint }) }
}

/**
 * Snapshots that LVM knows. (Their sizes are not asked of the agent, which would then have the question on record as an
 * answer about the base, which nobody was given. Where one is not known, an increment zeroes what it could have left
 * alone, and is right all the same.)
 */
async function lvmVolumes(handles: readonly string[]): Promise<Map<string, LogicalVolume>> {
  const found = new Map<string, LogicalVolume>()
  const lvm = new LvmReporter()
  for (const handle of handles) {
    const { source, name } = parseHandle(handle)
    const volumes = source === '*' ? [] : await lvm.logicalVolumes(source).catch(() => undefined)
    const volume = volumes?.find((each) => each.name === name)
    if (volume) found.set(handle, volume)
  }
  return found
}

/** LVM's node; device-mapper's of a pool of our own or of dmsetup's; or of what was taken below a tracked volume. */
async function devicePath({ source, name }: Handle, address: string): Promise<string> {
  if (source === '*') throw new UsageError(`*/${name} does not say where its device is`, 'name it with --device')
  const path = `/dev/${source}/${name}`
  if (!(await isMissing(path))) return path
  const [pool, volume] = [source, name].map((each) => each.replaceAll('-', '--'))
  const mapped = `/dev/mapper/${pool}-${volume}`
  if (!(await isMissing(mapped))) return mapped
  if (!(await isMissing(`/dev/mapper/${name}`))) return `/dev/mapper/${name}`
  const below = await deviceBelow(source, name, address)
  return below ?? path
}

/** LVM's snapshot of a tracked volume's data device; undefined where the agent tracks no such volume, or cannot say. */
async function deviceBelow(volume: string, snapshot: string, address: string): Promise<string | undefined> {
  const { connectAdmin } = await import('../../grpc/admin-client.ts')
  const agent = connectAdmin(address)
  try {
    const { volumes } = await agent.listEra({ volume: '' }).catch(() => ({ volumes: [] }))
    const found = volumes.find(({ name }) => name === volume)
    if (!found) return undefined
    const path = join(dirname(found.dataDevice), snapshot)
    return (await isMissing(path)) ? undefined : path
  } finally {
    agent.close()
  }
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
