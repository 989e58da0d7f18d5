/**
 * A volume group of LVM's: what its metadata says, as a report and as devices. What LVM writes there and what it tells the kernel are two
 * things, between which anybody may look, and a power cut may come: then LVM sends its messages once more at the next activation.
 */
import type { SpaceOf } from './machine.ts'
import type { DeviceContent } from './content.ts'

export interface Volume {
  readonly uuid: string
  name: string
  pool: SpaceOf
  thinId: number
  /** The pool's when its device was created. */
  transactionId: number
  originUuid: string | undefined
  sizeBytes: number
  readOnly: boolean
  active: boolean
  /** Undefined until the kernel has made it. */
  content: DeviceContent | undefined
}

/** A message that LVM has promised itself to send (thin_messages in its metadata). */
export interface Pending {
  readonly kind: 'create' | 'delete'
  readonly thinId: number
  /** Of which device a snapshot is to be taken; undefined for a new volume. */
  readonly originId: number | undefined
  readonly sizeBlocks: number
}

/** A UUID as LVM writes them. */
export function lvmUuid(life: number, serial: number): string {
  const digits = `${life.toString(36)}x${serial.toString(36)}`.padStart(32, '0').slice(-32)
  return digits.replace(/^(.{6})(.{4})(.{4})(.{4})(.{4})(.{4})(.{6})$/, '$1-$2-$3-$4-$5-$6-$7')
}

/** What `lvs --all --reportformat json` prints of a group. */
export function reportOf(
  group: { name: string; uuid: string },
  volumes: readonly Volume[],
  pools: readonly SpaceOf[]
): string {
  const common = { vg_uuid: group.uuid, vg_name: group.name, lv_tags: '', lv_health_status: '', lv_merging: '' }
  const names = new Map(volumes.map(({ uuid, name }) => [uuid, name]))
  const rows: Record<string, string>[] = []
  for (const { name, uuid, lvmTransactionId } of pools) {
    const part = (what: string, attr: string) => ({
      ...common,
      ...{ lv_uuid: `${uuid.slice(0, -6)}${what.padEnd(6, '0')}`, lv_name: `[${name}_${what}]`, lv_attr: attr },
      ...{ lv_dm_path: '', lv_size: '268435456', lv_layout: 'linear', lv_role: 'private', segtype: 'linear' }
    })
    rows.push(
      {
        ...common,
        ...{ lv_uuid: uuid, lv_name: name, lv_dm_path: `/dev/mapper/${group.name}-${name}`, lv_attr: 'twi-XXtz-X' },
        ...{ lv_size: '268435456', lv_layout: 'thin,pool', lv_role: 'private', segtype: 'thin-pool' },
        ...{ data_lv: `[${name}_tdata]`, metadata_lv: `[${name}_tmeta]` },
        ...{ transaction_id: String(lvmTransactionId), chunk_size: '65536' }
      },
      part('tdata', 'Twi-XX--X'),
      part('tmeta', 'ewi-XX--X')
    )
  }
  for (const volume of volumes) {
    const origin = volume.originUuid === undefined ? undefined : names.get(volume.originUuid)
    rows.push({
      ...common,
      ...{ lv_uuid: volume.uuid, lv_name: volume.name, lv_dm_path: `/dev/mapper/${group.name}-${volume.name}` },
      lv_attr: `V${volume.readOnly ? 'r' : 'w'}i-XXtz-X`,
      ...{ lv_size: String(volume.sizeBytes), lv_layout: 'thin,sparse', lv_role: 'public', segtype: 'thin' },
      ...{
        pool_lv: volume.pool.name,
        origin: origin ?? '',
        origin_uuid: origin === undefined ? '' : volume.originUuid!
      },
      ...{ thin_id: String(volume.thinId), transaction_id: String(volume.transactionId) }
    })
  }
  return JSON.stringify({ report: [{ lv: rows }] })
}
