/** Which of the tools wrote a document: its first elements tell. For errors about the wrong tool's output. */
import { refuse, type XmlElement, type XmlTool } from './xml-stream.ts'

/** Elements that only one of them writes. */
const writers: Partial<Record<string, XmlTool>> = {
  diff: 'thin_delta',
  def: 'thin_dump',
  device: 'thin_dump',
  blocks: 'era_invalidate',
  writeset: 'era_dump',
  era_array: 'era_dump'
}

/**
 * An element that `expected` does not write there: names the tool that does. `root` is the element itself if it is the
 * root.
 */
export function mistaken(name: string, expected: XmlTool, root?: XmlElement): never {
  const ofPool = root?.has('data_block_size') ? 'thin_delta or thin_dump' : undefined
  const writer = root?.has('current_era') ? 'era_dump' : (ofPool ?? writers[name])
  if (writer === undefined || writer === expected) refuse(`<${name}> is not where ${expected} writes it`)
  const what = `this is what ${writer} prints, and what ${expected} prints is needed`
  refuse(what, `give the output of ${expected}`, writer)
}
