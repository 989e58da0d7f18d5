/**
 * Tracked volumes and their snapshots, as text for people.
 */
import type { AdminResponse } from '../../grpc/admin.ts'
import { oneLine } from '../command-line/failure.ts'
import { counted, exactSize, humanSize, percentage } from '../command-line/quantities.ts'
import { columns, facts } from './columns.ts'
import { moment } from './moment.ts'

type EraVolume = AdminResponse<'growEra'>
type EraSnapshot = AdminResponse<'createEraSnapshot'>

export function eraVolumesTable(volumes: readonly EraVolume[]): string {
  const rows = volumes.map((each) => [
    each.name,
    stateOf(each),
    exactSize(each.sizeBytes),
    humanSize(each.blockBytes),
    each.usage === undefined ? '-' : String(each.usage.currentEra),
    each.usage === undefined ? '-' : percentage(each.usage.metadataUsedBytes, each.usage.metadataTotalBytes),
    String(each.snapshots),
    each.dataDevice,
    each.metadataDevice
  ])
  const heads = [
    ...([['VOLUME'], ['STATE'], ['SIZE', 'right'], ['BLOCKS', 'right'], ['ERA', 'right']] as const),
    ...([['METADATA USED', 'right'], ['SNAPSHOTS', 'right'], ['DATA DEVICE'], ['METADATA DEVICE']] as const)
  ]
  const problems = volumes.filter(({ problem }) => problem !== '')
  return [
    columns(heads, rows),
    ...problems.map(({ name, problem }) => `${name}: ${oneLine(problem)}\n`),
    `${counted(volumes.length, 'tracked volume')}; complete\n`
  ].join('')
}

export function eraVolumeFacts(volume: EraVolume): string {
  const { usage, dataBytes, sizeBytes } = volume
  const canGrow = dataBytes !== undefined && dataBytes > sizeBytes
  return facts([
    ['volume', volume.name],
    ['state', volume.problem === '' ? stateOf(volume) : `${stateOf(volume)}: ${oneLine(volume.problem)}`],
    ['device', volume.active ? `/dev/mapper/${volume.deviceName}` : 'none'],
    ['size', `${exactSize(sizeBytes)}${canGrow ? ` (it can grow to ${exactSize(dataBytes)})` : ''}`],
    ['block size', exactSize(volume.blockBytes)],
    ...(usage
      ? ([
          ['current era', String(usage.currentEra)],
          [
            'metadata used',
            `${humanSize(usage.metadataUsedBytes)} of ${humanSize(usage.metadataTotalBytes)} (${percentage(usage.metadataUsedBytes, usage.metadataTotalBytes)})`
          ],
          ['in use', usage.openCount === 0 ? 'no' : `open ${usage.openCount} times`]
        ] as const)
      : []),
    ['snapshots', String(volume.snapshots)],
    ['history', `since it was ${oneLine(volume.lineBecause)} (id ${volume.line})`],
    ['last checked', moment(volume.guardCheckedAtMs)],
    ['data device', volume.dataDevice],
    ['metadata device', volume.metadataDevice],
    ['attached', moment(volume.createdAtMs)],
    ...(volume.underWay === '' ? [] : ([['under way', volume.underWay]] as const))
  ])
}

export function eraSnapshotsTable(snapshots: readonly EraSnapshot[]): string {
  const rows = snapshots.map((each) => [
    `${each.volume}/${each.name}`,
    exactSize(each.sizeBytes),
    String(each.boundaryEra),
    `${each.suspendedMs} ms`,
    each.exact ? 'exact' : 'a superset',
    moment(each.takenAtMs),
    each.lower
  ])
  const heads = [
    ...([
      ['SNAPSHOT'],
      ['SIZE', 'right'],
      ['ERA', 'right'],
      ['SUSPENDED', 'right'],
      ['CHANGES'],
      ['TAKEN'],
      ['IS']
    ] as const)
  ]
  return `${columns(heads, rows)}${counted(snapshots.length, 'snapshot')} of tracked volumes; complete\n`
}

/** One snapshot, as the answer to a call. */
export function eraSnapshotFacts(snapshot: EraSnapshot): string {
  return facts([
    ['snapshot', `${snapshot.volume}/${snapshot.name}`],
    ['is', snapshot.lower],
    ['size', exactSize(snapshot.sizeBytes)],
    ['first era after it', String(snapshot.boundaryEra)],
    ['changes since the one before', snapshot.exact ? 'known exactly' : 'known, with some that may be none'],
    ['suspended for', `${snapshot.suspendedMs} ms`],
    ['taken', moment(snapshot.takenAtMs)]
  ])
}

function stateOf({ active, suspended }: EraVolume): string {
  if (!active) return 'inactive'
  return suspended ? 'suspended' : 'active'
}
