/**
 * An examination of a node as text for people: the node's parts, in a few lines and tables; then the findings, the
 * worst first, each with its remedy.
 */
import type {
  BlockDevice,
  Examination,
  Finding,
  PoolFacts,
  Severity,
  ThinFacts
} from '../../agent/inventory/examination.ts'
import { oneLine } from '../command-line/failure.ts'
import { counted, humanSize, percentage } from '../command-line/quantities.ts'
import { columns, facts } from './columns.ts'

/** An examination, and the agent it is from; undefined when this process made it. */
export interface SeenExamination {
  endpoint: string | undefined
  examination: Examination
}

/** Rows of a table, and names in a line; JSON has all of them. */
const MOST_ROWS = 40
const MOST_NAMES = 6
const USUAL_WIDTH = 100

export interface TextStyle {
  /** Characters in a line. */
  width: number
  /** Whether escape sequences may be used. */
  colour: boolean
}

/** The style for a stream. */
export function textStyle(
  { isTTY, columns }: { isTTY?: boolean; columns?: number },
  environment: NodeJS.ProcessEnv
): TextStyle {
  if (!isTTY) return { width: USUAL_WIDTH, colour: false }
  // See https://no-color.org
  const colour = !environment['NO_COLOR'] && environment['TERM'] !== 'dumb'
  return { width: Math.min(120, Math.max(40, columns ?? 80)), colour }
}

export function examinationText({ endpoint, examination }: SeenExamination, style: TextStyle): string {
  const parts = [
    heading(endpoint, examination),
    facts(nodeFacts(examination)),
    pools(examination.pools),
    snapshots(examination.pools),
    trackedVolumes(examination),
    findingsText(examination.findings, style),
    `${tally(examination.findings)}\n`
  ]
  return parts.filter((each) => each !== '').join('\n')
}

function heading(endpoint: string | undefined, { version, node }: Examination): string {
  const { hostname, operatingSystem, kernel, architecture, virtualization, processors, memoryBytes } = node
  const system = [operatingSystem, `Linux ${kernel}`, architecture, virtualization].filter((each) => each !== '')
  const machine = `${counted(processors, 'processor')}, ${humanSize(memoryBytes)} of memory`
  const who =
    endpoint === undefined ? 'as this command sees it, without an agent' : `as the agent at ${endpoint} sees it`
  return oneLines([`${hostname}: ${system.join(', ')}; ${machine}`, `${who} (deltamapper ${version})`])
}

function nodeFacts({ deviceMapper, lvm, catalog, blockDevices, recordedPools, live }: Examination): [string, string][] {
  const lines: [string, string][] = []
  if (live) {
    const { libraryVersion, driverVersion, devices, targets, problem } = deviceMapper
    const thin = targets.filter(({ name }) => name.startsWith('thin')).map(({ name, version }) => `${name} ${version}`)
    const versions = `library ${libraryVersion}, kernel ${driverVersion}, ${counted(devices, 'device')}`
    lines.push(['device-mapper', problem ? 'not usable' : [versions, ...thin].join(', ')])
    const groups = lvm.groups.map(({ name, sizeBytes }) => `${name} (${humanSize(sizeBytes)})`)
    lines.push(['LVM', lvm.problem ? 'no answer' : groups.length === 0 ? 'no volume groups' : some(groups)])
    lines.push(['catalog', catalogLine(catalog)])
  }
  if (recordedPools.length > 0) lines.push(['recorded pools', some(recordedPools.map(({ name }) => name))])
  lines.push(['block devices', blockDevices.problem ? 'not known' : disks(blockDevices.devices)])
  return lines
}

/** Disks by name; devices built on them by number. */
function disks(devices: readonly BlockDevice[]): string {
  const whole = devices.filter(({ type }) => type === 'disk')
  const named = whole.map(({ path, sizeBytes }) => `${path} (${humanSize(sizeBytes)})`)
  const others = devices.length - whole.length
  const list = named.length === 0 ? 'no disks' : some(named)
  return others === 0 ? list : `${list}; ${counted(others, 'other')}`
}

/** What the rows of the catalog's tables are to people, one and many. Mere indices are left out. */
const recordWords: Readonly<Record<string, readonly [one: string, many: string]>> = {
  served: ['thin snapshot served', 'thin snapshots served'],
  classic_served: ['classic snapshot served', 'classic snapshots served'],
  pools: ['pool of its own', 'pools of its own'],
  thins: ['volume or snapshot in them', 'volumes and snapshots in them'],
  intents: ['change of them under way', 'changes of them under way'],
  leases: ['metadata snapshot held', 'metadata snapshots held'],
  era_volumes: ['tracked volume', 'tracked volumes'],
  era_intents: ['change of one under way', 'changes of some under way'],
  era_snapshots: ['snapshot of tracked volumes', 'snapshots of tracked volumes']
}

function inWords({ table, rows }: { table: string; rows: number }): string {
  const [one, many] = recordWords[table] ?? [table, table]
  return `${rows} ${rows === 1 ? one : many}`
}

function catalogLine({ path, consulted, sizeBytes, rows, problem }: Examination['catalog']): string {
  if (problem && !consulted) return `${path}, not usable`
  const size = sizeBytes === undefined ? (consulted ? '' : ', not there') : `, ${humanSize(sizeBytes)}`
  if (!consulted) return `${path}${size}, not looked into`
  const counts = rows.filter(({ rows, table }) => rows > 0 && table in recordWords).map(inWords)
  return `${path}${size}: ${counts.length === 0 ? 'empty' : counts.join(', ')}`
}

function pools(pools: readonly PoolFacts[]): string {
  if (pools.length === 0) return ''
  const rows = pools
    .slice(0, MOST_ROWS)
    .map(({ name, kind, state, usage, thins, metadataSnapshot }) => [
      name,
      kind,
      state,
      usage ? `${percentage(usage.dataUsedBytes, usage.dataTotalBytes)} of ${humanSize(usage.dataTotalBytes)}` : '-',
      usage
        ? `${percentage(usage.metadataUsedBytes, usage.metadataTotalBytes)} of ${humanSize(usage.metadataTotalBytes)}`
        : '-',
      String(thins.length),
      metadataSnapshot
        ? `${metadataSnapshot.whose}${metadataSnapshot.ambiguous ? ', perhaps ours' : ''}`
        : state === 'inactive' || state === 'failed'
          ? '-'
          : 'none'
    ])
  const heads = [
    ...([['POOL'], ['KIND'], ['STATE'], ['DATA', 'right'], ['METADATA', 'right']] as const),
    ...([['VOLUMES', 'right'], ['METADATA SNAPSHOT']] as const)
  ]
  return columns(heads, rows) + andMore(pools.length)
}

/** Possible bases: snapshots, and everything that was served before. */
function snapshots(pools: readonly PoolFacts[]): string {
  const bases = pools
    .flatMap(({ thins }) => thins)
    .filter(({ kind, asBase }) => kind === 'snapshot' || asBase === 'unchanged' || asBase === 'changed')
  if (bases.length === 0) return ''
  const rows = bases
    .slice(0, MOST_ROWS)
    .map(({ handle, sizeBytes, mappedBytes, asBase, needed }) => [
      handle,
      humanSize(sizeBytes),
      mappedBytes === undefined ? '-' : humanSize(mappedBytes),
      words[asBase] + (needed === undefined ? '' : needed === 'record' ? '; it may go' : '; it must stay')
    ])
  const heads = [['SNAPSHOT'], ['SIZE', 'right'], ['MAPPED', 'right'], ['AS BASE']] as const
  return columns(heads, rows) + andMore(bases.length)
}

/** Tracked volumes, and their recorded history. */
function trackedVolumes({ trackedVolumes: volumes, catalog: { eraHistories: all } }: Examination): string {
  if (all.length === 0) return ''
  const states = new Map(volumes.map(({ name, active }) => [name, active ? 'yes' : 'no']))
  const rows = all
    .slice(0, MOST_ROWS)
    .map(({ volume, snapshots, removed, earlierHistories, oldestTakenAtMs, newestTakenAtMs, bitmapBytes }) => [
      volume,
      // (The kernel may not have answered.)
      states.get(volume) ?? '-',
      String(snapshots),
      String(removed),
      day(oldestTakenAtMs),
      day(newestTakenAtMs),
      humanSize(bitmapBytes),
      String(earlierHistories)
    ])
  const heads = [
    ...([
      ['TRACKED VOLUME'],
      ['ACTIVE'],
      ['SNAPSHOTS', 'right'],
      ['REMOVED', 'right'],
      ['OLDEST'],
      ['NEWEST']
    ] as const),
    ...([
      ['HISTORY', 'right'],
      ['BROKEN OFF', 'right']
    ] as const)
  ]
  return columns(heads, rows) + andMore(all.length)
}

function day(milliseconds: number | undefined): string {
  return milliseconds === undefined ? '-' : new Date(milliseconds).toISOString().slice(0, 10)
}

const words: Record<ThinFacts['asBase'], string> = {
  unchanged: 'yes, unchanged since it was served',
  unrecorded: 'if it was never trimmed: it was used as a base, and never served',
  'never-served': 'if it was never written to: it was not served yet',
  changed: 'no, changed since it was served',
  'not-trackable': 'no, it cannot be tracked',
  unknown: 'not known'
}

function findingsText(findings: readonly Finding[], style: TextStyle): string {
  return findings.map((each) => findingText(each, style)).join('')
}

const colours: Record<Severity, string> = { problem: '\u001b[31m', warning: '\u001b[33m', note: '\u001b[2m' }
const MARK_WIDTH = 'warning  '.length

function findingText({ severity, what, remedy, command }: Finding, { width, colour }: TextStyle): string {
  const mark = severity.padEnd(MARK_WIDTH)
  const indent = ' '.repeat(MARK_WIDTH)
  const [first, ...more] = wrapped(what, width - MARK_WIDTH)
  const lines = [
    (colour ? `${colours[severity]}${mark}\u001b[0m` : mark) + first,
    ...more.map((line) => indent + line),
    ...wrapped(`→ ${remedy}`, width - MARK_WIDTH - 2).map((line, i) => `${indent}${i === 0 ? '' : '  '}${line}`),
    // Not wrapped: it should be copied.
    ...(command === '' ? [] : [`${indent}  $ ${oneLine(command)}`])
  ]
  return `${lines.join('\n')}\n`
}

/** Lines of at most so many characters, broken between words; a longer word stays whole. */
export function wrapped(text: string, width: number): string[] {
  const lines: string[] = []
  for (const word of oneLine(text).split(/ +/)) {
    const last = lines.at(-1)
    if (last !== undefined && last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`
    else lines.push(word)
  }
  return lines
}

function tally(findings: readonly Finding[]): string {
  const counts = (['problem', 'warning', 'note'] as const).map(
    (severity) => [severity, findings.filter((each) => each.severity === severity).length] as const
  )
  const told = counts.filter(([, count]) => count > 0).map(([severity, count]) => counted(count, severity))
  const verdict = counts[0][1] > 0 ? 'there are problems' : 'there are no problems'
  return told.length === 0 ? verdict : `${verdict}: ${told.join(', ')}`
}

function some(names: readonly string[]): string {
  if (names.length <= MOST_NAMES) return names.join(', ')
  return `${names.slice(0, MOST_NAMES).join(', ')} and ${names.length - MOST_NAMES} more`
}

function andMore(count: number): string {
  return count > MOST_ROWS ? `and ${count - MOST_ROWS} more (-o json lists all)\n` : ''
}

function oneLines(lines: readonly string[]): string {
  return lines.map((line) => `${oneLine(line)}\n`).join('')
}
