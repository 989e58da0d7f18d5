/* eslint-disable max-len -- LVM's own words, side by side */
/**
 * LVM's JSON reports. Two dialects:
 *
 *   json       {"report":[{"lv":[{"lv_size":"16777216", "thin_id":"",   "lv_role":"public,snapshot",     "lv_merging":""}]}]}
 *   json_std   {"report":[{"lv":[{"lv_size":"16777216", "thin_id":null, "lv_role":["public","snapshot"], "lv_merging":0}]}], "log":[]}
 *
 * The first has strings only, and every version of LVM in use speaks it. The second (2.03.17 and later) has numbers,
 * null and arrays, for some fields. Here both become one: numbers keep their digits, because not all of them fit a
 * double.
 *
 * Reports are requested with `--units b --nosuffix`. Fields that answers depend on (identity, sizes, thin ids) must be
 * present and exact. Other fields may be there too.
 */
/* eslint-enable max-len */
import { DeltamapperError } from '../../errors.ts'
import { MAX_DEVICES } from '../../devicemapper/thin/device-details.ts'
import { type Attributes, parseAttributes } from './attributes.ts'

/** The fields requested from `lvs`. The last ones are of segments: a volume with several segments has several rows. */
export const logicalVolumeFields = [
  ...(['vg_uuid', 'vg_name', 'lv_uuid', 'lv_name', 'lv_dm_path', 'lv_attr', 'lv_size', 'lv_active'] as const),
  ...(['lv_skip_activation', 'lv_health_status', 'lv_merging', 'lv_layout', 'lv_role', 'lv_tags'] as const),
  ...(['pool_lv', 'data_lv', 'metadata_lv', 'origin', 'origin_uuid'] as const),
  ...(['segtype', 'thin_id', 'transaction_id', 'chunk_size'] as const)
]

/** The fields requested from `vgs`. */
export const volumeGroupFields = [
  ...(['vg_uuid', 'vg_name', 'vg_attr', 'vg_size', 'vg_free', 'vg_extent_size', 'vg_seqno', 'lv_count'] as const),
  ...(['vg_missing_pv_count', 'vg_exported', 'vg_partial', 'vg_shared', 'vg_systemid', 'vg_tags'] as const)
]

/** A logical volume as LVM's metadata has it. Names are without the brackets that reports put around hidden ones. */
export interface LogicalVolume {
  uuid: string
  vgUuid: string
  vgName: string
  name: string
  /** A part of another volume, or otherwise not for use by its own name. */
  hidden: boolean
  /** Its device node while it is active. */
  dmPath: string
  attributes: Attributes
  sizeBytes: number
  /** Undefined when the report was made without asking the kernel (`--readonly`). */
  active: boolean | undefined
  /** Ordinary activation leaves it out (`lvchange -K` activates it). */
  skipActivation: boolean
  /** LVM's words; empty when all is well as far as the report can say. */
  health: string
  /** A snapshot that is being merged into its origin. */
  merging: boolean
  layout: readonly string[]
  role: readonly string[]
  tags: readonly string[]
  /** The types of its segments, each once. */
  segmentTypes: readonly string[]
  /** The pool that a thin or cached volume is in. */
  poolLv: string | undefined
  /** The parts of a pool. */
  dataLv: string | undefined
  metadataLv: string | undefined
  /** Its origin; for the oldest of a family of thin volumes, its external origin. Empty once the origin is removed. */
  origin: string | undefined
  originUuid: string | undefined
  /** The device id in its thin pool, of a thin volume. */
  thinId: number | undefined
  /** Of a thin volume: the pool's when it was created. Of a thin pool: the newest. */
  transactionId: bigint | undefined
  /** Block size of a thin pool. */
  chunkSizeBytes: number | undefined
}

export interface VolumeGroup {
  uuid: string
  name: string
  sizeBytes: number
  freeBytes: number
  extentSizeBytes: number
  /** One more with every change of the metadata. */
  sequenceNumber: bigint
  logicalVolumes: number
  missingPhysicalVolumes: number
  exported: boolean
  partial: boolean
  shared: boolean
  /** The host that owns it, where owners are used. */
  systemId: string
  tags: readonly string[]
}

/**
 * The volumes of an `lvs` report, one for each volume even if it has several segments.
 *
 * @throws DM_LVM_FAILED when it is no such report, or lacks what answers depend on
 */
export function parseLogicalVolumes(text: string): LogicalVolume[] {
  const volumes = new Map<string, LogicalVolume>()
  for (const row of rows(text, 'lv')) {
    const volume = logicalVolume(row)
    const known = volumes.get(volume.uuid)
    const merged = known ? mergeSegments(known, volume) : volume
    volumes.set(volume.uuid, merged)
  }
  return [...volumes.values()]
}

/** The volume groups of a `vgs` report. @throws DM_LVM_FAILED */
export function parseVolumeGroups(text: string): VolumeGroup[] {
  return rows(text, 'vg').map((row) => ({
    uuid: row.uuid('vg_uuid'),
    name: row.word('vg_name'),
    sizeBytes: row.bytes('vg_size'),
    freeBytes: row.bytes('vg_free'),
    extentSizeBytes: row.bytes('vg_extent_size'),
    sequenceNumber: row.whole('vg_seqno') ?? row.refuse('vg_seqno'),
    logicalVolumes: row.count('lv_count'),
    missingPhysicalVolumes: row.count('vg_missing_pv_count'),
    exported: row.flag('vg_exported') ?? row.text('vg_attr')[2] === 'x',
    partial: row.flag('vg_partial') ?? row.text('vg_attr')[3] === 'p',
    shared: row.flag('vg_shared') ?? row.text('vg_attr')[5] === 's',
    systemId: row.text('vg_systemid'),
    tags: row.list('vg_tags')
  }))
}

/** Asked of `vgs`, they make a row for each disk. */
export const physicalVolumeFields = ['pv_name', 'pv_uuid', 'pv_mda_used_count'] as const

/** A disk of a group that is not missing. */
export interface Disk {
  readonly id: string
  /** Its device node, as LVM calls it. */
  readonly path: string
  /** Some are without: `--metadataignore`, `--pvmetadatacopies 0`. */
  readonly hasMetadata: boolean
}

/** The disks of such a report. @throws DM_LVM_FAILED */
export function parseDisks(text: string): Disk[] {
  return rows(text, 'vg').flatMap((row) => {
    const [path, copies] = [row.text('pv_name'), row.whole('pv_mda_used_count')]
    if (!path.startsWith('/')) return []
    return [{ id: row.text('pv_uuid'), path, hasMetadata: copies !== undefined && copies > 0n }]
  })
}

function logicalVolume(row: Row): LogicalVolume {
  const reported = row.word('lv_name')
  const thinId = row.whole('thin_id')
  const segmentType = row.word('segtype')
  if (segmentType === 'thin' ? thinId === undefined || thinId >= BigInt(MAX_DEVICES) : thinId !== undefined) {
    row.refuse('thin_id')
  }
  const transactionId = row.whole('transaction_id')
  if (segmentType.startsWith('thin') && transactionId === undefined) row.refuse('transaction_id')
  const origin = bare(row.text('origin'))
  return {
    uuid: row.uuid('lv_uuid'),
    vgUuid: row.uuid('vg_uuid'),
    vgName: row.word('vg_name'),
    name: bare(reported),
    hidden: reported.startsWith('['),
    dmPath: row.text('lv_dm_path'),
    attributes: parseAttributes(row.text('lv_attr')) ?? row.refuse('lv_attr'),
    sizeBytes: row.bytes('lv_size'),
    active: row.flag('lv_active'),
    skipActivation: row.flag('lv_skip_activation') ?? false,
    health: row.text('lv_health_status'),
    merging: row.flag('lv_merging') ?? false,
    layout: row.list('lv_layout'),
    role: row.list('lv_role'),
    tags: row.list('lv_tags'),
    segmentTypes: [segmentType],
    poolLv: bare(row.text('pool_lv')) || undefined,
    dataLv: bare(row.text('data_lv')) || undefined,
    metadataLv: bare(row.text('metadata_lv')) || undefined,
    origin: origin || undefined,
    originUuid: origin ? row.uuid('origin_uuid') : undefined,
    thinId: thinId === undefined ? undefined : Number(thinId),
    transactionId,
    chunkSizeBytes: segmentType === 'thin-pool' ? row.bytes('chunk_size') : undefined
  }
}

function mergeSegments(known: LogicalVolume, segment: LogicalVolume): LogicalVolume {
  return { ...known, segmentTypes: [...new Set([...known.segmentTypes, ...segment.segmentTypes])] }
}

/** Reports put hidden names into brackets, unless lvm.conf says otherwise. */
function bare(name: string): string {
  return name.startsWith('[') && name.endsWith(']') ? name.slice(1, -1) : name
}

/** The rows of a report of one kind, `lv` or `vg`. */
function rows(text: string, kind: string): Row[] {
  let report: unknown
  try {
    report = JSON.parse(text, keepDigits)
  } catch (cause) {
    throw refused(`it is no JSON (${(cause as Error).message})`, cause)
  }
  const reports = isObject(report) ? report['report'] : undefined
  if (!Array.isArray(reports)) throw refused('it has no "report"')
  return reports.flatMap((each: unknown) => {
    const list = isObject(each) ? each[kind] : undefined
    if (!Array.isArray(list)) throw refused(`it has no "${kind}"`)
    return list.map((fields: unknown) => {
      if (!isObject(fields)) throw refused(`one of its rows is ${JSON.stringify(fields)}`)
      return new Row(fields)
    })
  })
}

/** A number as it was written: transaction ids go up to 2^64. */
function keepDigits(_key: string, value: unknown, context?: { source?: string }): unknown {
  return typeof value === 'number' ? (context?.source ?? String(value)) : value
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** One row, whose fields are read by the kind of value they must hold. */
class Row {
  readonly #fields: Record<string, unknown>

  constructor(fields: Record<string, unknown>) {
    this.#fields = fields
  }

  /** A string that may be empty. A missing field (lvm.conf can compact reports) is an empty one. */
  text(field: string): string {
    const value = this.#fields[field] ?? ''
    return typeof value === 'string' ? value : this.refuse(field)
  }

  word(field: string): string {
    return this.text(field) || this.refuse(field)
  }

  uuid(field: string): string {
    const value = this.text(field)
    // 32 characters in groups (id_write_format, lib/uuid/uuid.c).
    return /^[\w!#]{6}(-[\w!#]{4}){5}-[\w!#]{6}$/.test(value) ? value : this.refuse(field)
  }

  /** A whole number, not negative; undefined where there is none. */
  whole(field: string): bigint | undefined {
    const value = this.text(field)
    if (value === '') return undefined
    return /^\d{1,20}$/.test(value) ? BigInt(value) : this.refuse(field)
  }

  bytes(field: string): number {
    const value = this.whole(field)
    if (value === undefined || value > BigInt(Number.MAX_SAFE_INTEGER)) this.refuse(field)
    return Number(value)
  }

  count(field: string): number {
    return this.bytes(field)
  }

  /** Yes or no: a word or nothing, 1 or 0; undefined for `unknown`, -1, and what is not in the report. */
  flag(field: string): boolean | undefined {
    if (!(field in this.#fields)) return undefined
    const value = this.text(field)
    return value === 'unknown' || value === '-1' ? undefined : value !== '' && value !== '0'
  }

  /** Several words: an array, or one string with a separator that lvm.conf chooses. */
  list(field: string): string[] {
    const value = this.#fields[field] ?? ''
    if (Array.isArray(value) && value.every((each) => typeof each === 'string')) return value
    // The characters of tags and roles: LVM's man page, lvm(8), "VALID NAMES".
    return this.text(field)
      .split(/[^\w+.\-/=!:&#]+/)
      .filter((each) => each !== '')
  }

  refuse(field: string): never {
    const name = this.#fields['lv_name'] ?? this.#fields['vg_name']
    throw refused(`of ${JSON.stringify(name)} it says ${field}=${JSON.stringify(this.#fields[field])}`)
  }
}

function refused(what: string, cause?: unknown): DeltamapperError {
  return new DeltamapperError(
    'DM_LVM_FAILED',
    `LVM gave a report that cannot be used: ${what}`,
    'run the command by hand; settings in the report section of lvm.conf can spoil its form',
    { cause }
  )
}
