/**
 * Which of the tools wrote a document: told by its first elements, to whoever was given another one's.
 */
import { refuse, type XmlElement } from './xml-stream.ts'

export type XmlTool = 'thin_delta' | 'thin_dump' | 'era_invalidate' | 'era_dump'

/** Elements that only one of them writes. */
const writers: Partial<Record<string, XmlTool>> = {
  diff: 'thin_delta',
  def: 'thin_dump',
  device: 'thin_dump',
  blocks: 'era_invalidate',
  writeset: 'era_dump',
  era_array: 'era_dump'
}

/** The element is not one that `expected` begins with: says whose it is. */
export function mistaken(element: XmlElement, expected: XmlTool): never {
  const { name } = element
  const writer = name === 'superblock' && element.has('current_era') ? 'era_dump' : writers[name]
  if (writer === undefined || writer === expected) refuse(`<${name}> is not where ${expected} writes it`)
  refuse(`this is what ${writer} prints, and what ${expected} prints is needed`, `give the output of ${expected}`)
}
