/**
 * What is worth knowing of the classic snapshots on a node: how full their stores are, how long they will last at the
 * rate at which they have filled so far, and which of them can be a base.
 */
import type { Finding, Problem } from './examination.ts'
import type { Catalog } from '../catalog/catalog.ts'
import { type ClassicRow, isGivenUp } from '../catalog/classic-served.ts'
import type { LogicalVolume } from '../lvm/parse.ts'
import type { LvmReporter } from '../lvm/report.ts'
import { fullName, volumeKind, type VolumesByName } from '../lvm/volume.ts'
import type { StoreFullness } from '../node/store-fullness.ts'
import { volumeUuid } from '../answers/volume-group.ts'

/** From how much of a store that is used on it is worth a warning, in percent. */
const NEARLY_FULL = 80
const advice =
  'give it more room, and let LVM do so from now on: snapshot_autoextend_threshold = 70 in the activation section of lvm.conf, with dmeventd running'

export interface StoresLook {
  readonly stores: readonly StoreFullness[]
  readonly volumes: readonly VolumesByName[]
  readonly lvm: Pick<LvmReporter, 'snapshotLinks'>
  readonly catalog: { readonly classicSnapshots: Pick<Catalog['classicSnapshots'], 'find'> } | undefined
  /** Milliseconds since 1970. */
  readonly now: number
}

/** What a snapshot can be to the next backup. */
type AsBase = 'served' | 'never served' | 'changed' | 'merging'

const inWords: Readonly<Record<AsBase, string>> = {
  served: 'it was served, and can be a base',
  'never served': 'it was never served: a full backup of it makes it a base',
  changed: 'it is not what it was when it was served, and can be no base',
  merging: 'its origin is being put back to a snapshot, and it can be no base'
}

/** One finding for each classic snapshot. What LVM or the catalog does not say is left out. */
export async function storeFindings({ stores, volumes, lvm, catalog, now }: StoresLook): Promise<Finding[]> {
  const found: Finding[] = []
  for (const group of volumes) {
    const snapshots = [...group.values()].filter((lv) => volumeKind(lv, group) === 'copy-on-write snapshot')
    if (snapshots.length === 0) continue
    const links = (await lvm.snapshotLinks(snapshots[0].vgName).catch(() => undefined))?.links ?? []
    for (const lv of snapshots) {
      const store = stores.find(({ uuid }) => uuid === volumeUuid(lv))
      const link = links.find(({ snapshot }) => snapshot === lv.name)
      const isMerging = lv.merging || links.some(({ merging, origin }) => merging && origin === link?.origin)
      const records = (await catalog?.classicSnapshots.find({ handle: fullName(lv), identity: lv.uuid })) ?? []
      const use = isMerging ? 'merging' : asBase(records, lv.uuid, link?.id)
      found.push(store ? aboutStore(fullName(lv), store, link && now - link.linkedAt * 1000, use) : inactive(lv, use))
    }
  }
  return found
}

/** Where none of that could be found out. */
export function storesUnknown({ message, remedy }: Problem): Finding {
  return {
    ...{ severity: 'warning', kind: 'classic-snapshots-unknown', about: 'classic snapshots', command: '' },
    ...{ what: message, remedy }
  }
}

/** As the catalog and LVM have it (classic-served.ts holds a base against more). */
function asBase(records: readonly ClassicRow[], identity: string, link: string | undefined): AsBase {
  const isAnother = (each: ClassicRow) => each.identity !== identity || (link !== undefined && each.link !== link)
  if (records.some((each) => isAnother(each) || isGivenUp(each))) return 'changed'
  return records.some(({ role }) => role === 'target') ? 'served' : 'never served'
}

function inactive(lv: LogicalVolume, use: AsBase): Finding {
  const name = fullName(lv)
  return {
    ...{ severity: 'note', kind: 'classic-snapshot', about: name, command: `lvchange -ay ${name}` },
    what: `classic snapshot ${name} is not active, so that nothing tells whether its store is whole; ${inWords[use]}`,
    remedy: 'activate it, and with it its origin, before the next backup'
  }
}

/** @param ageMs since the snapshot was taken */
function aboutStore(
  name: string,
  { isLost, usage }: StoreFullness,
  ageMs: number | undefined,
  asBase: AsBase
): Finding {
  const rest = { about: name, command: `lvextend -L +1G ${name}` }
  if (isLost) {
    return {
      ...{ ...rest, severity: 'problem', kind: 'store-lost', command: `lvremove ${name}` },
      what: `the kernel has given classic snapshot ${name} up: its store overflowed, or could not be written`,
      remedy: `take a full backup of a new snapshot, and remove this one; ${advice}`
    }
  }
  const use = inWords[asBase]
  if (usage === undefined) {
    return {
      ...{ ...rest, severity: 'note', kind: 'classic-snapshot', command: '' },
      what: `classic snapshot ${name}: ${use}`,
      remedy: 'nothing is to be done'
    }
  }
  const percent = (100 * usage.usedBytes) / usage.bytes
  const what = `the store of classic snapshot ${name} is ${percent.toFixed(0)} % full${lasts(usage, ageMs)}; ${use}`
  return percent >= NEARLY_FULL
    ? { ...rest, severity: 'warning', kind: 'store-nearly-full', what, remedy: advice }
    : { ...rest, severity: 'note', kind: 'classic-snapshot', what, remedy: 'nothing is to be done', command: '' }
}

function lasts({ bytes, usedBytes }: { bytes: number; usedBytes: number }, ageMs: number | undefined): string {
  if (ageMs === undefined || ageMs <= 0 || usedBytes === 0) return ''
  const hours = (((bytes - usedBytes) / usedBytes) * ageMs) / 3_600_000
  if (hours > 24 * 365) return ''
  return `, and lasts about ${hours < 48 ? `${hours.toFixed(1)} hours` : `${(hours / 24).toFixed(0)} days`} at the rate so far`
}
