/**
 * Where the snapshot of `deltamapper nbd` is: in copies of a pool, in a recorded pool, or on this node, where the agent
 * knows it.
 */
import { join } from 'node:path'
import type { ExtentAnswer } from '../../devicemapper/extents.ts'
import { DeltamapperError } from '../../errors.ts'
import { openPoolImage } from '../../nbd/pool-image-source.ts'
import type { NbdBase, NbdSource } from '../../nbd/source.ts'
import type { ExtentQuestion } from '../../nbd/status-map.ts'
import type { Remark } from './question.ts'
import { UsageError } from '../command-line/failure.ts'
import { deviceId } from '../command-line/option-values.ts'
import { humanSize } from '../command-line/quantities.ts'
import type { NbdOptions } from './nbd-options.ts'
import { recordBases } from './nbd-record-bases.ts'

/** @throws UsageError where the options do not go together; what opening throws */
export async function openSource(target: string, options: NbdOptions, remark: Remark): Promise<NbdSource> {
  const { base: bases = [], metadata, recorded } = options
  const twice = bases.find((each, i) => bases.indexOf(each) !== i)
  if (twice !== undefined) throw new UsageError(`base ${twice} is given twice`, 'give each base once')
  checkStray(options)
  if (metadata !== undefined) return fromImages(target, bases, metadata, options, remark)
  if (recorded !== undefined) return fromRecorded(target, bases, recorded, options)
  const { openAgentSource } = await import('./nbd-agent-source.ts')
  return openAgentSource(target, bases, options, remark)
}

function checkStray(options: NbdOptions): void {
  const { metadata, recorded, device, activate } = options
  const { data, size, baseSize, baseRecord, liveRoot } = options
  const ofMetadata = {
    ...{ '--data': data, '--size': size, '--base-size': baseSize, '--base-record': baseRecord },
    '--live-root': liveRoot
  }
  for (const [option, value] of Object.entries(ofMetadata)) {
    if (value !== undefined && metadata === undefined) {
      throw new UsageError(
        `${option} goes with --metadata only`,
        'leave it out, or name the metadata with --metadata FILE'
      )
    }
  }
  for (const [option, value] of Object.entries({ '--device': device, '--activate': activate })) {
    if (value !== undefined && (metadata ?? recorded) !== undefined) {
      throw new UsageError(`${option} goes with the agent only`, 'leave it out: copies are read without the kernel')
    }
  }
}

async function fromImages(
  target: string,
  bases: readonly string[],
  metadataPath: string,
  { data, size, baseSize, baseRecord = [], liveRoot = false, rate }: NbdOptions,
  remark: Remark
): Promise<NbdSource> {
  if (data === undefined) {
    throw new UsageError("the pool's data were not named", 'name them with --data FILE', 'DM_ARGUMENT_MISSING')
  }
  if (size === undefined) {
    throw new UsageError(
      `the size of ${target} is not known: thin metadata holds none`,
      'give it with --size (LVM: lvs --units b)',
      'DM_ARGUMENT_MISSING'
    )
  }
  const thinId = deviceId(target, '--metadata')
  const baseIds = bases.map((base) => ({ name: base, baseId: deviceId(base, '--metadata') }))
  if (bases.length > 0 && baseSize === undefined) {
    throw new UsageError(
      'the size of the bases is not known, and what lies beyond it has changed',
      'give it with --base-size; bases of different sizes take a server each',
      'DM_ARGUMENT_MISSING'
    )
  }
  const image = { metadataPath, dataPath: data, liveRoot, bytesPerSecond: rate }
  return openPoolImage(image, async (metadata) => {
    const sized = { sizeBytes: size }
    const beyond = (await metadata.mappedEnd(await metadata.device(thinId))) - size
    if (beyond >= metadata.superblock.dataBlockBytes) {
      remark(`--size leaves out ${humanSize(beyond)} that lie beyond it, up to the highest mapping`)
    }
    const question = { metadata, metadataPath, liveRoot, deviceId: thinId, sizeBytes: size }
    const gone = await recordBases(baseRecord, bases, question, remark)
    return {
      ...{ target, thinId, sizeBytes: size },
      allocated: (startingOffset, signal) => metadata.allocated({ deviceId: thinId, startingOffset, signal, ...sized }),
      bases: baseIds
        .map(({ name, baseId }): NbdBase => {
          const pair = { baseId, targetId: thinId, baseSizeBytes: baseSize, ...sized }
          const delta: ExtentQuestion = (startingOffset, signal) => metadata.delta({ startingOffset, signal, ...pair })
          return { name, sizeBytes: baseSize, delta }
        })
        .concat(gone)
    }
  })
}

async function fromRecorded(
  target: string,
  bases: readonly string[],
  recorded: Record<string, string>,
  { rate }: NbdOptions
): Promise<NbdSource> {
  const [
    { loadRecordedPool },
    { parseHandle },
    { Sources },
    { snapshotMetadataBackend },
    { answersWith },
    { Walkers }
  ] = await Promise.all([
    import('../../agent/answers/recorded-pool.ts'),
    import('../../handle.ts'),
    import('../../agent/answers/sources.ts'),
    import('../../agent/answers/backend.ts'),
    import('../../agent/targets.ts'),
    import('../../agent/walks/walkers.ts')
  ])
  const pools = new Map(
    await Promise.all(
      Object.entries(recorded).map(async ([name, folder]) => [name, await loadRecordedPool(name, folder)] as const)
    )
  )
  const find = async (handle: string) => {
    const { source, name } = parseHandle(handle)
    const snapshot = await pools.get(source)?.snapshot(name)
    if (snapshot) return { ...snapshot, source }
    throw new DeltamapperError(
      'DM_SNAPSHOT_NOT_FOUND',
      pools.has(source) ? `recorded pool ${source} has no snapshot ${name}` : `there is no recorded pool ${source}`,
      `check the handle; recorded pools: ${[...pools.keys()].join(', ')}`
    )
  }
  const snapshot = await find(target)
  const known = await Promise.all(bases.map(find))
  const image = {
    metadataPath: snapshot.metadataPath,
    dataPath: join(recorded[snapshot.source], 'data.img'),
    liveRoot: snapshot.liveRoot ?? false,
    bytesPerSecond: rate
  }
  return openPoolImage(image, async (metadata) => {
    const identityOf = async (thinId: number) => ({ fingerprint: await metadata.fingerprintText(thinId) })
    const identities = await Promise.all(known.map(({ thinId }) => identityOf(thinId)))
    // As the agent answers, with all that it checks.
    const walkers = new Walkers(1, { reads: 'preadv' })
    const backend = snapshotMetadataBackend(new Sources(pools), walkers, answersWith({}))
    const request = (startingOffset: number) => ({ startingOffset: BigInt(startingOffset), maxResults: 0 })
    return {
      ...{ target, thinId: snapshot.thinId, sizeBytes: snapshot.sizeBytes },
      identity: await identityOf(snapshot.thinId),
      origins: snapshot.volume === undefined ? [] : [snapshot.volume],
      allocated: async (startingOffset, signal) =>
        answerOf(await backend.allocated({ snapshotId: target, ...request(startingOffset) }, signal)),
      bases: known.map(({ handle, sizeBytes }, i) => ({
        ...{ name: handle, sizeBytes, identity: identities[i] },
        delta: async (startingOffset: number, signal: AbortSignal) => {
          const pair = { baseSnapshotId: handle, targetSnapshotId: target }
          return answerOf(await backend.delta({ ...pair, ...request(startingOffset) }, signal))
        }
      })),
      close: () => walkers.close()
    }
  })
}

/** The messages of a backend in this process, taken apart again. */
async function answerOf({
  capacityBytes,
  messages
}: {
  capacityBytes?: number
  messages: AsyncIterable<Uint8Array>
}): Promise<ExtentAnswer> {
  const { BlockMetadataMessage, decodeBlockMetadata } = await import('../../grpc/block-metadata.ts')
  const message = new BlockMetadataMessage()
  return {
    capacityBytes,
    batches: (async function* () {
      for await (const bytes of messages) {
        decodeBlockMetadata(bytes, message)
        if (message.count > 0) yield message
      }
    })()
  }
}
