/** Owned pools, their volumes and snapshots, and differences, as text for people. */
import type { AdminResponse } from '../../grpc/admin.ts'
import { oneLine } from '../command-line/failure.ts'
import { counted, exactSize, humanSize, percentage } from '../command-line/quantities.ts'
import { columns, facts } from './columns.ts'
import { moment } from './moment.ts'

type Pool = AdminResponse<'getPool'>
type Volume = AdminResponse<'createVolume'>

export function poolsTable(pools: readonly Pool[]): string {
  const rows = pools.map(({ name, state, usage, volumes, snapshots, metadataDevice, dataDevice }) => [
    name,
    state,
    usage ? percentage(usage.dataUsedBytes, usage.dataTotalBytes) : '-',
    usage ? humanSize(usage.dataTotalBytes) : '-',
    usage ? percentage(usage.metadataUsedBytes, usage.metadataTotalBytes) : '-',
    String(volumes),
    String(snapshots),
    dataDevice,
    metadataDevice
  ])
  const heads = [
    ...([['POOL'], ['STATE'], ['DATA USED', 'right'], ['DATA', 'right'], ['METADATA USED', 'right']] as const),
    ...([['VOLUMES', 'right'], ['SNAPSHOTS', 'right'], ['DATA DEVICE'], ['METADATA DEVICE']] as const)
  ]
  const problems = pools.filter(({ problem }) => problem !== '')
  return [
    columns(heads, rows),
    ...problems.map(({ name, problem }) => `${name}: ${oneLine(problem)}\n`),
    `${counted(pools.length, 'pool')}; complete\n`
  ].join('')
}

export function poolFacts(pool: Pool): string {
  const { usage } = pool
  const used = (part: number, whole: number) => `${humanSize(part)} of ${humanSize(whole)} (${percentage(part, whole)})`
  return facts([
    ['pool', pool.name],
    ['state', pool.problem === '' ? pool.state : `${pool.state}: ${pool.problem}`],
    ...(usage
      ? ([
          ['data used', used(usage.dataUsedBytes, usage.dataTotalBytes)],
          ['metadata used', used(usage.metadataUsedBytes, usage.metadataTotalBytes)],
          [
            'metadata snapshot',
            usage.heldMetadataSnapshot === undefined ? 'none held' : `held at block ${usage.heldMetadataSnapshot}`
          ],
          ['needs check', usage.needsCheck ? 'yes' : 'no']
        ] as const)
      : []),
    ['volumes', String(pool.volumes)],
    ['snapshots', String(pool.snapshots)],
    ['block size', exactSize(pool.blockBytes)],
    ['low water', `${humanSize(pool.lowWaterBytes)} free`],
    ['when full', pool.whenFull === 'error' ? 'writes fail at once' : 'writes wait for a minute'],
    ['transaction', transaction(pool)],
    ['data device', pool.dataDevice],
    ['metadata device', pool.metadataDevice],
    ['device', `/dev/mapper/${pool.deviceName}`],
    ['created', moment(pool.createdAtMs)],
    ...(pool.underWay === '' ? [] : ([['under way', pool.underWay]] as const))
  ])
}

export function volumesTable(volumes: readonly Volume[], noun: 'volume' | 'snapshot'): string {
  const rows = volumes.map((each) => [
    `${each.pool}/${each.name}`,
    exactSize(each.sizeBytes),
    each.mappedBytes === undefined ? '-' : humanSize(each.mappedBytes),
    ...(noun === 'snapshot' ? [each.origin === '' ? '(deleted)' : each.origin] : []),
    moment(each.createdAtMs),
    describeDevice(each)
  ])
  const heads = [
    ...([[noun.toUpperCase()], ['SIZE', 'right'], ['MAPPED', 'right']] as const),
    ...(noun === 'snapshot' ? ([['SNAPSHOT OF']] as const) : []),
    ...([['CREATED'], ['DEVICE']] as const)
  ]
  return `${columns(heads, rows)}${counted(volumes.length, noun)}; complete\n`
}

/** One volume or snapshot, as the answer to a call. */
export function volumeFacts(volume: Volume): string {
  return facts([
    [volume.kind, `${volume.pool}/${volume.name}`],
    ['size', `${volume.sizeBytes} bytes (${humanSize(volume.sizeBytes)})`],
    ...(volume.mappedBytes === undefined ? [] : ([['mapped', humanSize(volume.mappedBytes)]] as const)),
    ...(volume.kind === 'snapshot' ? ([['snapshot of', volume.origin]] as const) : []),
    ['device', describeDevice(volume)],
    ['thin device', `${volume.thinId}, created at time ${volume.creationTime}, transaction ${volume.transactionId}`],
    ['created', moment(volume.createdAtMs)]
  ])
}

export function reconciliation({ settled, findings }: AdminResponse<'reconcile'>): string {
  const lines = settled.map((each) => `settled: ${oneLine(each)}\n`)
  for (const { what, remedy } of findings) lines.push(`${oneLine(what)}\n    ${oneLine(remedy)}\n`)
  const nothing = settled.length + findings.length === 0
  lines.push(nothing ? 'catalog and kernel agree\n' : `${counted(findings.length, 'finding')}; complete\n`)
  return lines.join('')
}

function describeDevice({ device }: Volume): string {
  if (!device) return 'inactive'
  const remarks = [...(device.readOnly ? ['read-only'] : []), ...(device.openCount > 0 ? ['in use'] : [])]
  return remarks.length === 0 ? device.path : `${device.path} (${remarks.join(', ')})`
}

function transaction({ transactionId, usage }: Pool): string {
  if (usage === undefined || usage.transactionId === transactionId) return String(transactionId)
  return `${transactionId} in the catalog, ${usage.transactionId} in the kernel`
}
