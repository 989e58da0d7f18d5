/**
 * The disks of a group as device numbers, which is how tables name them. Looked up once for an answer of LVM's, however
 * many tables are held against it.
 *
 * A disk can have several numbers: with multipath, each path has one, and the whole has another. Which of them LVM
 * names, and which is in a table that was loaded before multipath was started, may differ.
 */
import { readdir, readFile, stat } from 'node:fs/promises'
import { decodeDeviceNumber } from '../../../native/device.ts'

/** What LVM knows of a group's disks. */
export interface KnownDisks {
  /** Device nodes of those that are here, by LVM's id. */
  readonly disks: ReadonlyMap<string, string>
  /** Where each was when LVM last wrote its metadata, also where it is missing now. */
  readonly lastSeen: ReadonlyMap<string, string>
}

/** By the answer that it is of. */
const looked = new WeakMap<ReadonlyMap<string, string>, GroupDisks>()

export class GroupDisks {
  /** By LVM's id: of a disk that is missing, the number of what is where it was. */
  readonly #numbers: Promise<ReadonlyMap<string, string>>
  readonly #sysfs: string

  constructor(known: KnownDisks, sysfs = '/sys') {
    this.#sysfs = sysfs
    this.#numbers = numbersOfAll(known)
  }

  static of(known: KnownDisks): GroupDisks {
    const found = looked.get(known.disks) ?? new GroupDisks(known)
    looked.set(known.disks, found)
    return found
  }

  /** Whether a device is that disk, or a path of it. @param device as tables have it */
  async isAt(disk: string, device: string): Promise<boolean> {
    const number = (await this.#numbers).get(disk)
    return number !== undefined && (number === device || (await this.#isOneByPath(number, device)))
  }

  /** Whether a device is any of the disks, or a path of one. */
  async has(device: string): Promise<boolean> {
    for (const disk of (await this.#numbers).keys()) if (await this.isAt(disk, device)) return true
    return false
  }

  async #isOneByPath(one: string, other: string): Promise<boolean> {
    return (await this.#isPathOf(one, other)) || (await this.#isPathOf(other, one))
  }

  /** (multipath-tools begin the UUIDs of their devices so.) */
  async #isPathOf(path: string, whole: string): Promise<boolean> {
    const folder = `${this.#sysfs}/dev/block/${whole}`
    const uuid = await readFile(`${folder}/dm/uuid`, 'utf8').catch(() => '')
    if (!uuid.startsWith('mpath-')) return false
    const paths = await readdir(`${folder}/slaves`).catch(() => [])
    const numbers = await Promise.all(
      paths.map((each) => readFile(`${folder}/slaves/${each}/dev`, 'utf8').catch(() => ''))
    )
    return numbers.some((number) => number.trim() === path)
  }
}

/** Where a missing disk was seen, another of the group may be by now: that one it is not. */
async function numbersOfAll(known: KnownDisks): Promise<ReadonlyMap<string, string>> {
  const [here, before] = await Promise.all([numbersOf(known.disks), numbersOf(known.lastSeen)])
  const taken = new Set(here.values())
  const missing = [...before].filter(([disk, number]) => !known.disks.has(disk) && !taken.has(number))
  return new Map([...here, ...missing])
}

async function numbersOf(nodes: ReadonlyMap<string, string>): Promise<ReadonlyMap<string, string>> {
  const found = await Promise.all([...nodes].map(async ([disk, path]) => [disk, await numberOf(path)] as const))
  return new Map(found.flatMap(([disk, number]) => (number === undefined ? [] : [[disk, number]])))
}

/** Of a device node, as tables have it; undefined where it cannot be seen from here. */
async function numberOf(path: string): Promise<string | undefined> {
  const facts = await stat(path).catch(() => undefined)
  if (!facts?.isBlockDevice()) return undefined
  const { major, minor } = decodeDeviceNumber(facts.rdev)
  return `${major}:${minor}`
}
