/**
 * LVM's metadata as text, as `pvck --dump metadata` prints it (format: lib/format_text in LVM's sources): sections of
 * names with numbers, strings and lists. No report has all that it says.
 */
import { DeltamapperError } from '../../errors.ts'

export type Value = string | readonly string[] | Section
export interface Section {
  readonly [name: string]: Value
}

/**
 * The section of a group.
 *
 * @param text with the group's section somewhere in it; what stands before and behind is of no interest
 * @throws DM_LVM_FAILED when it is not understood
 */
export function groupSection(text: string, volumeGroup: string): Section {
  const start = text.search(new RegExp(`^\\s*${volumeGroup.replaceAll(/[.+]/g, '\\$&')} \\{`, 'm'))
  if (start < 0) throw notUnderstood(`there is no section ${volumeGroup}`)
  const words = new Words(text.slice(start))
  words.next()
  words.expect('{')
  return words.section()
}

/** A section's own section of that name; an empty one where there is none. @throws DM_LVM_FAILED where it is none */
export function sectionOf(section: Section, name: string): Section {
  const value = section[name] ?? {}
  if (!isSection(value)) throw notUnderstood(`${name} is no section`)
  return value
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

export function isSection(value: Value): value is Section {
  return typeof value === 'object' && !Array.isArray(value)
}

export function textOf(value: Value | undefined, what: string): string {
  if (typeof value === 'string' && value !== '') return value
  throw notUnderstood(`it does not say ${what}`)
}

/** What is not there is 0, such as a time that LVM did not note. */
export function numberOf(value: Value | undefined): number {
  if (value === undefined) return 0
  if (typeof value === 'string' && /^\d{1,15}$/.test(value)) return Number(value)
  throw notUnderstood('a number in it is none')
}

export function notUnderstood(what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_LVM_FAILED',
    `LVM's metadata is not understood: ${what}`,
    'run `pvck --dump metadata PV` by hand, and report what it says'
  )
}
