/**
 * One document, many spellings: as the tools print it, or as XML also allows it to be written. What it means stays the same.
 */
import type { Node } from './naive-xml.ts'
import type { Random } from './random.ts'

export function node(name: string, attributes: Record<string, string | number | bigint>, children: Node[] = []): Node {
  const texts = Object.entries(attributes).map(([key, value]) => [key, String(value)] as const)
  return { name, attributes: Object.fromEntries(texts), children }
}

/** As the tools print it: one tag to a line, two spaces for each level. 0.9 ends with a newline, 1.x does not. */
export function asPrinted(root: Node, lastNewline = true): string {
  const lines: string[] = []
  const print = ({ name, attributes, children }: Node, indent: string, leaves: boolean) => {
    const words = Object.entries(attributes).map(([key, value]) => ` ${key}="${value}"`)
    if (leaves && children.length === 0) {
      lines.push(`${indent}<${name}${words.join('')}/>`)
      return
    }
    lines.push(`${indent}<${name}${words.join('')}>`)
    for (const each of children) print(each, `${indent}  `, !containers.has(each.name))
    lines.push(`${indent}</${name}>`)
  }
  print(root, '', false)
  return lines.join('\n') + (lastNewline ? '\n' : '')
}

/** Elements that the tools never close in the tag that opens them. */
const containers = new Set(['superblock', 'diff', 'def', 'device', 'writeset', 'era_array', 'blocks'])

/** In any other way, a little (`wildness` near 0: most tags are as the tools print them) or all over. */
export function asAnybodyMight(root: Node, random: Random, wildness: number): string {
  const wild = () => random.chance(wildness)
  const space = (least = 0) => {
    if (!wild()) return ' '.repeat(least)
    const spaces = Array.from({ length: random.integer(least, 3) }, () => random.pick([' ', '\n', '\t', '\r\n']))
    return spaces.join('')
  }
  const between = () => {
    if (!wild()) return '\n'
    const comment = `<!--${random.pick(['', ' <same begin="1" length="9"/> ', ' > ', '</diff>', ' ü '])}-->`
    return space() + (random.chance(0.3) ? comment : '') + space()
  }
  const value = (text: string) => {
    const quote = wild() ? "'" : '"'
    const spelled = wild() ? text.replace(/[0-9]/g, (digit) => (wild() ? `&#${digit.charCodeAt(0)};` : digit)) : text
    return `${quote}${spelled}${quote}`
  }
  const print = ({ name, attributes, children }: Node): string => {
    let pairs = Object.entries(attributes)
    if (wild()) pairs = random.shuffle(pairs)
    if (wild())
      pairs.push([random.pick(['unknown', 'xmlns', 'begins', 'x:y', 'ü']), random.pick(['', '1', 'a > b', 'ü'])])
    const words = pairs.map(([key, text]) => `${space(1)}${key}${space()}=${space()}${value(text)}`).join('')
    if (children.length === 0 && (wild() || !containers.has(name))) {
      return wild() ? `<${name}${words}${space()}></${name}${space()}>` : `<${name}${words}${space()}/>`
    }
    const content = children.map((each) => between() + print(each)).join('')
    return `<${name}${words}${space()}>${content}${between()}</${name}${space()}>`
  }
  const start = wild()
    ? random.pick(['\uFEFF', '<?xml version="1.0"?>', '<?xml version="1.0" encoding="UTF-8"?>', '\n '])
    : ''
  return start + print(root) + (wild() ? between() : random.pick(['', '\n']))
}
