/**
 * What LVM's metadata says of classic snapshots beyond what its reports do: each is tied to its origin by a hidden
 * volume, `snapshotN`.
 *
 *     snapshot0 { id = "BDkLfR-…"  creation_time = 1795981557
 *                 segment1 { type = "snapshot"  chunk_size = 16  origin = "o"  cow_store = "s1" } }
 *
 * Split off and joined again (lvconvert --splitsnapshot, --type snapshot), a snapshot has all that it had before, and
 * lacks what was written meanwhile; only this id is another, and its time. No report shows it, so the metadata's text
 * is read (pvck --dump metadata; format: lib/format_text in LVM's sources). A snapshot that is being merged has
 * `merging_store` in place of `cow_store`.
 */
import { DeltamapperError } from '../../errors.ts'

export interface SnapshotLink {
  /** The hidden volume's UUID. */
  readonly id: string
  /**
   * When it was tied to its origin, and when its own volume was made: seconds since 1970, by this machine's clock then.
   */
  readonly linkedAt: number
  readonly createdAt: number
  /** Names of the origin and of the snapshot. */
  readonly origin: string
  readonly snapshot: string
  readonly merging: boolean
  /** Its place among the group's volumes: LVM puts new ones behind those there are. */
  readonly place: number
}

/** The links of a group, and which state of it they are of. */
export interface SnapshotLinks {
  readonly vgUuid: string
  readonly sequenceNumber: bigint
  readonly links: readonly SnapshotLink[]
}

type Value = string | readonly string[] | Section
interface Section {
  readonly [name: string]: Value
}

/**
 * Reads a group's metadata.
 *
 * @param text with the group's section somewhere in it; what stands before and behind is of no interest
 * @throws DM_LVM_FAILED when it is not understood
 */
export function parseSnapshotLinks(text: string, volumeGroup: string): SnapshotLinks {
  const start = text.search(new RegExp(`^\\s*${volumeGroup.replaceAll(/[.+]/g, '\\$&')} \\{`, 'm'))
  if (start < 0) throw notUnderstood(`there is no section ${volumeGroup}`)
  const words = new Words(text.slice(start))
  words.next()
  words.expect('{')
  const group = words.section()
  const volumes = group['logical_volumes'] ?? {}
  if (!isSection(volumes)) throw notUnderstood('its logical volumes are no section')
  const named = Object.entries(volumes)
  const links = named.flatMap(([name, volume], place): SnapshotLink[] => {
    if (!isSection(volume)) throw notUnderstood(`${name} is no section`)
    const segment = volume['segment1']
    if (segment === undefined || !isSection(segment) || segment['type'] !== 'snapshot') return []
    const store = segment['merging_store'] ?? segment['cow_store']
    const origin = textOf(segment['origin'], `the origin of ${name}`)
    const snapshot = textOf(store, `the store of ${name}`)
    const own = volumes[snapshot]
    if (own === undefined || !isSection(own)) throw notUnderstood(`${name} is of ${snapshot}, which is not there`)
    return [
      {
        id: textOf(volume['id'], `the id of ${name}`),
        linkedAt: numberOf(volume['creation_time']),
        createdAt: numberOf(own['creation_time']),
        ...{ origin, snapshot, merging: segment['merging_store'] !== undefined, place }
      }
    ]
  })
  const sequenceNumber = BigInt(numberOf(group['seqno']))
  return { vgUuid: textOf(group['id'], 'its id'), sequenceNumber, links }
}

/** Names, numbers, strings with their quotes, and single signs. Comments are left out. */
class Words {
  readonly #words: readonly string[]
  #at = 0

  constructor(text: string) {
    const found = text.match(/"(?:[^"\\]|\\.)*"|#[^\n]*|[{}[\]=,]|[^\s{}[\]=,#"]+/g) ?? []
    this.#words = found.filter((word) => !word.startsWith('#'))
  }

  next(): string {
    const word = this.#words[this.#at++]
    if (word === undefined) throw notUnderstood('it ends too early')
    return word
  }

  expect(sign: string): void {
    const word = this.next()
    if (word !== sign) throw notUnderstood(`${JSON.stringify(word.slice(0, 50))} stands where ${sign} is due`)
  }

  /** What is between braces, the first of which is read already. */
  section(): Section {
    const values: Record<string, Value> = Object.create(null) as Record<string, Value>
    for (;;) {
      const name = this.next()
      if (name === '}') return values
      const sign = this.next()
      if (sign === '{') values[name] = this.section()
      else if (sign === '=') values[name] = this.#value()
      else throw notUnderstood(`${JSON.stringify(sign.slice(0, 50))} follows ${JSON.stringify(name.slice(0, 50))}`)
    }
  }

  #value(): Value {
    const word = this.next()
    if (word !== '[') return unquoted(word)
    const list: string[] = []
    for (;;) {
      const each = this.next()
      if (each === ']') return list
      if (each !== ',') list.push(unquoted(each))
    }
  }
}

function unquoted(word: string): string {
  return word.startsWith('"') ? word.slice(1, -1).replaceAll(/\\(.)/g, '$1') : word
}

function isSection(value: Value): value is Section {
  return typeof value === 'object' && !Array.isArray(value)
}

function textOf(value: Value | undefined, what: string): string {
  if (typeof value === 'string' && value !== '') return value
  throw notUnderstood(`it does not say ${what}`)
}

/** Of a time that LVM did not note, 0. */
function numberOf(value: Value | undefined): number {
  if (value === undefined) return 0
  if (typeof value === 'string' && /^\d{1,15}$/.test(value)) return Number(value)
  throw notUnderstood('a number in it is none')
}

function notUnderstood(what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_LVM_FAILED',
    `LVM's metadata is not understood: ${what}`,
    'run `pvck --dump metadata PV` by hand, and report what it says'
  )
}
