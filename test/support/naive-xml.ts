/**
 * The tools' XML read the simple way: the whole text at once, through saxes into a tree, then rule by rule. Slow, in as much memory as it
 * takes, and sharing nothing with src/devicemapper/ but the library: what it accepts, and what it makes of it, is what the streaming
 * readers have to accept, and to make of it.
 */
import { SaxesParser } from 'saxes'

export interface Node {
  readonly name: string
  readonly attributes: Readonly<Record<string, string>>
  readonly children: Node[]
}

/** Why a document is no good. */
export class Refusal extends Error {}

export type NaiveReader = (bytes: Uint8Array) => unknown

/** Kind, begin, length of each range. */
export function naiveDelta(bytes: Uint8Array): unknown {
  const root = named(tree(bytes), 'superblock')
  const header = poolOf(root)
  expect(root.children.length === 1, 'one <diff>')
  const diff = named(root.children[0], 'diff')
  const sides = (['left', 'right'] as const).map((name) => {
    const [id, tree] = [diff.attributes[name], diff.attributes[`${name}_root`]]
    expect((id === undefined) !== (tree === undefined), `${name} or ${name}_root`)
    return id === undefined
      ? { root: number(diff, `${name}_root`, 2n ** 40n) }
      : { deviceId: number(diff, name, 2n ** 24n - 1n) }
  })
  const runs: [string, number, number][] = []
  for (const each of diff.children) {
    expect(['same', 'different', 'left_only', 'right_only'].includes(each.name), 'a known kind')
    if (each.attributes['begin'] !== undefined || each.attributes['length'] !== undefined) {
      empty(each)
      runs.push([each.name, number(each, 'begin'), number(each, 'length')])
      continue
    }
    expect(each.children.length > 0, 'a range')
    for (const range of each.children) {
      empty(named(range, 'range'))
      const data = each.name === 'different' ? ['left_data_begin', 'right_data_begin'] : ['data_begin']
      const length = number(range, 'length')
      for (const name of data) expect(number(range, name) + length <= 2 ** 40, 'data blocks below 2^40')
      runs.push([each.name, number(range, 'begin'), length])
    }
  }
  ascending(
    runs.map(([, begin, length]) => [begin, length]),
    2 ** 40
  )
  return { header: { ...header, left: sides[0], right: sides[1] }, runs }
}

/** For each device its id and details, and begin, data, length, time of each mapping. */
export function naiveDump(bytes: Uint8Array): unknown {
  const root = named(tree(bytes), 'superblock')
  const header = poolOf(root)
  const lists = new Map<string, number[][]>()
  const devices: { id: number }[] = []
  for (const each of root.children) {
    if (each.name === 'def') {
      const name = text(each, 'name')
      expect(!lists.has(name), 'one definition')
      lists.set(name, mappings(each, undefined))
      continue
    }
    const id = number(named(each, 'device'), 'dev_id', 2n ** 24n - 1n)
    expect(id > (devices.at(-1)?.id ?? -1), 'ascending ids')
    const mapped = number(each, 'mapped_blocks')
    const device = {
      id,
      mappedBlocks: mapped,
      transactionId: bigint(each, 'transaction', 2n ** 64n - 1n),
      creationTime: number(each, 'creation_time', 2n ** 32n - 1n),
      snapshottedTime: number(each, 'snap_time', 2n ** 32n - 1n),
      // Definitions come before they are used.
      mappings: mappings(each, lists)
    }
    expect(mapped === device.mappings.reduce((sum, [, , length]) => sum + length, 0), 'mapped_blocks')
    devices.push(device)
  }
  return { header, devices }
}

function mappings(parent: Node, lists: Map<string, number[][]> | undefined): number[][] {
  const found = parent.children.flatMap((each) => {
    empty(each)
    switch (each.name) {
      case 'single_mapping':
        return [[number(each, 'origin_block'), number(each, 'data_block'), 1, number(each, 'time', 2n ** 24n - 1n)]]
      case 'range_mapping': {
        const [begin, data, length] = ['origin_begin', 'data_begin', 'length'].map((name) => number(each, name))
        return [[begin, data, length, number(each, 'time', 2n ** 24n - 1n)]]
      }
      case 'ref': {
        const list = lists?.get(text(each, 'name'))
        if (list === undefined) throw new Refusal('a reference to nothing, or in a definition')
        return list
      }
      default:
        throw new Refusal(each.name)
    }
  })
  ascending(
    found.map(([begin, , length]) => [begin, length]),
    2 ** 40
  )
  for (const [, data, length] of found) expect(data + length <= 2 ** 40, 'data blocks below 2^40')
  return found
}

/** Begin and length of each run. */
export function naiveInvalidate(bytes: Uint8Array): unknown {
  const root = named(tree(bytes), 'blocks')
  const runs = root.children.map((each): [number, number] => {
    empty(each)
    if (each.name === 'block') return [number(each, 'block'), 1]
    const begin = number(named(each, 'range'), 'begin')
    return [begin, number(each, 'end') - begin]
  })
  ascending(runs, 2 ** 31)
  return { runs }
}

/** For each section the eras of its blocks, block by block: [block, era]. */
export function naiveEraDump(bytes: Uint8Array): unknown {
  const root = named(tree(bytes), 'superblock')
  expect(root.attributes['data_block_size'] === undefined, 'not a pool')
  const blockSectors = number(root, 'block_size', 2n ** 32n - 1n)
  expect(blockSectors >= 8 && blockSectors % 8 === 0, 'a block size')
  const blocks = number(root, 'nr_blocks', 2n ** 31n - 1n)
  const currentEra = number(root, 'current_era', 2n ** 32n - 1n)
  const header = { blockSectors, blockBytes: blockSectors * 512, blocks, currentEra }
  const sections: unknown[] = []
  let lastEra = -1
  let arrays = 0
  for (const each of root.children) {
    if (each.name === 'era_array') {
      arrays++
      const marks = each.children.map((child, index) => {
        empty(named(child, 'era'))
        expect(number(child, 'block') === index, 'every block')
        const era = number(child, 'era', BigInt(currentEra))
        return [index, era]
      })
      expect(marks.length === blocks, 'every block')
      sections.push({ section: 'era_array', marks })
      continue
    }
    const era = number(named(each, 'writeset'), 'era', BigInt(currentEra))
    expect(era > lastEra && arrays === 0, 'ascending eras')
    lastEra = era
    sections.push({ section: 'writeset', era, marks: marked(each, blocks).map((block) => [block, era]) })
  }
  expect(arrays === 1, 'one array')
  return { header, sections }
}

function marked(writeset: Node, blocks: number): number[] {
  const bits = number(writeset, 'nr_bits', 2n ** 31n)
  expect(bits > 0, 'bits')
  const names = new Set(writeset.children.map(({ name }) => name))
  expect(names.size <= 1, 'one way of telling')
  if (names.has('marked')) {
    const runs = writeset.children.map((each): [number, number] => {
      empty(each)
      return [number(each, 'block_begin'), number(each, 'len')]
    })
    ascending(runs, bits)
    return runs.flatMap(([begin, length]) => Array.from({ length }, (_, i) => begin + i))
  }
  const found = writeset.children.flatMap((each, index) => {
    empty(named(each, 'bit'))
    expect(number(each, 'block') === index, 'every block')
    const value = text(each, 'value')
    expect(value === 'true' || value === 'false', 'true or false')
    return value === 'true' ? [index] : []
  })
  expect(writeset.children.length === bits || writeset.children.length === blocks, 'every block')
  expect(
    found.every((block) => block < bits),
    'marks among the bits'
  )
  return found
}

function poolOf(root: Node) {
  expect(root.attributes['current_era'] === undefined, 'not an era device')
  const dataBlockSectors = number(root, 'data_block_size', 2097152n)
  expect(dataBlockSectors >= 128 && dataBlockSectors % 128 === 0, 'a block size')
  const optional = (name: string, most: bigint) =>
    root.attributes[name] === undefined ? undefined : number(root, name, most)
  return {
    time: number(root, 'time', 2n ** 32n - 1n),
    transactionId: bigint(root, 'transaction', 2n ** 64n - 1n),
    needsCheck: (optional('flags', 2n ** 32n - 1n) ?? 0) % 2 === 1,
    dataBlockSectors,
    dataBlockBytes: dataBlockSectors * 512,
    dataBlocks: number(root, 'nr_data_blocks', 2n ** 40n),
    metadataSnapshot: optional('metadata_snap', 2n ** 40n)
  }
}

/** What a text is as XML, without anything that the tools never write. @throws Refusal */
export function tree(bytes: Uint8Array): Node {
  let content: string
  try {
    content = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    throw new Refusal('no UTF-8')
  }
  const document: Node = { name: '', attributes: {}, children: [] }
  const open: Node[] = [document]
  const refused = (what: string) => () => {
    throw new Refusal(what)
  }
  const parser = new SaxesParser({ defaultXMLVersion: '1.0', forceXMLVersion: true })
  parser.on('error', ({ message }) => refused(message)())
  parser.on('xmldecl', ({ encoding }) => {
    if (!['utf-8', 'us-ascii', undefined].includes(encoding?.toLowerCase())) throw new Refusal('encoding')
  })
  parser.on('doctype', refused('doctype'))
  parser.on('cdata', refused('cdata'))
  parser.on('processinginstruction', refused('processing instruction'))
  parser.on('text', (each) => {
    if (/[^ \t\r\n]/.test(each)) throw new Refusal('text')
  })
  parser.on('opentag', ({ name, attributes }) => {
    const node = { name, attributes: attributes as Record<string, string>, children: [] }
    open.at(-1)?.children.push(node)
    open.push(node)
  })
  parser.on('closetag', () => open.pop())
  parser.write(content).close()
  return document.children[0]
}

function named(node: Node, name: string): Node {
  expect(node.name === name, `<${name}>`)
  return node
}

function empty(node: Node): void {
  expect(node.children.length === 0, 'nothing inside')
}

function ascending(runs: readonly (readonly [number, number])[], most: number): void {
  let end = 0
  for (const [begin, length] of runs) {
    expect(length > 0 && begin >= end && begin + length <= most, 'ascending runs')
    end = begin + length
  }
}

function text(node: Node, name: string): string {
  const value = node.attributes[name]
  if (value === undefined) throw new Refusal(`${name} is missing`)
  return value
}

function number(node: Node, name: string, most = 2n ** 40n): number {
  return Number(bigint(node, name, most))
}

function bigint(node: Node, name: string, most: bigint): bigint {
  const value = text(node, name)
  expect(/^[0-9]+$/.test(value) && String(BigInt(value)) === value && BigInt(value) <= most, `${name} a number`)
  return BigInt(value)
}

function expect(condition: boolean, what: string): void {
  if (!condition) throw new Refusal(what)
}
