/**
 * Debian's thin tools as oracles: their XML, parsed strictly. Anything that is not exactly what the tools are known to print is an error,
 * so that a change of theirs is noticed rather than half understood.
 *
 * thin_delta names data blocks `different`, `left_only`, `right_only` or `same`; what neither device maps is not mentioned. With -m both
 * tools read the held metadata snapshot.
 */
import { open, writeFile } from 'node:fs/promises'

import { runThinTool } from '../lab/tools.ts'
import type { PoolView } from './pool-model.ts'

export type DeltaKind = 'same' | 'different' | 'left_only' | 'right_only'

/** Data blocks `[begin, begin + length)` of the virtual devices. */
export interface DeltaRun {
  readonly kind: DeltaKind
  readonly begin: number
  readonly length: number
}

/** Virtual blocks `[begin, begin + length)` mapped to data blocks from `dataBegin` on, all at one time. */
export interface MappingRun {
  readonly begin: number
  readonly dataBegin: number
  readonly length: number
  readonly time: number
}

export interface DumpedDevice {
  readonly mappedBlocks: number
  readonly transactionId: number
  readonly creationTime: number
  readonly snapshottedTime: number
  readonly mappings: readonly MappingRun[]
}

export interface ThinDump {
  readonly time: number
  readonly transactionId: number
  readonly dataBlockSizeSectors: number
  readonly devices: ReadonlyMap<number, DumpedDevice>
}

export interface ToolView {
  /** Read what the held metadata snapshot leads to, not the live pool. */
  readonly metadataSnapshot: boolean
}

export async function thinDelta(path: string, left: number, right: number, view: ToolView): Promise<DeltaRun[]> {
  const args = ['--thin1', String(left), '--thin2', String(right), ...(view.metadataSnapshot ? ['-m'] : []), path]
  return parseThinDelta(await runThinTool('thin_delta', args), left, right)
}

export async function thinDump(path: string, view: ToolView): Promise<ThinDump> {
  return parseThinDump(await runThinTool('thin_dump', [...(view.metadataSnapshot ? ['-m'] : []), path]))
}

/** What thin_check has against an image; an empty string when it is content. */
export async function thinCheck(path: string): Promise<string> {
  try {
    await runThinTool('thin_check', ['-q', path])
    return ''
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

/** What thin_dump has against an image or its held view, which thin_check may be content with; an empty string for nothing. */
export async function thinDumpComplaint(path: string, view: ToolView): Promise<string> {
  try {
    await runThinTool('thin_dump', [...(view.metadataSnapshot ? ['-m'] : []), path])
    return ''
  } catch (error) {
    return (error as { stderr?: string }).stderr ?? String(error)
  }
}

/** Lets thin_restore write `path` from XML; `metadataBytes` is the size of the file, at least 40960. */
export async function thinRestore(xml: string, path: string, metadataBytes: number): Promise<void> {
  const xmlPath = `${path}.xml`
  await writeFile(xmlPath, xml)
  const file = await open(path, 'w')
  await file.truncate(metadataBytes)
  await file.close()
  await runThinTool('thin_restore', ['-q', '-i', xmlPath, '-o', path])
}

export function parseThinDelta(xml: string, left: number, right: number): DeltaRun[] {
  const lines = new XmlLines(xml)
  lines.open('superblock')
  const diff = lines.open('diff')
  if (diff.number('left') !== left || diff.number('right') !== right) throw lines.unexpected(diff.line)
  const runs: DeltaRun[] = []
  for (let tag = lines.next(); tag.line !== '</diff>'; tag = lines.next()) {
    if (!isDeltaKind(tag.name)) throw lines.unexpected(tag.line)
    runs.push({ kind: tag.name, begin: tag.number('begin'), length: tag.number('length') })
  }
  lines.end('</superblock>')
  return runs
}

export function parseThinDump(xml: string): ThinDump {
  const lines = new XmlLines(xml)
  const superblock = lines.open('superblock')
  const devices = new Map<number, DumpedDevice>()
  for (let tag = lines.next(); tag.line !== '</superblock>'; tag = lines.next()) {
    if (tag.name !== 'device') throw lines.unexpected(tag.line)
    const mappings: MappingRun[] = []
    for (let inner = lines.next(); inner.line !== '</device>'; inner = lines.next())
      mappings.push(mappingOf(inner, lines))
    devices.set(tag.number('dev_id'), {
      mappedBlocks: tag.number('mapped_blocks'),
      transactionId: tag.number('transaction'),
      creationTime: tag.number('creation_time'),
      snapshottedTime: tag.number('snap_time'),
      mappings
    })
  }
  lines.end()
  return {
    time: superblock.number('time'),
    transactionId: superblock.number('transaction'),
    dataBlockSizeSectors: superblock.number('data_block_size'),
    devices
  }
}

/** A pool as thin_dump would print it, for thin_restore. */
export function poolXml(view: PoolView, dataBlockSizeSectors: number, dataBlocks: number): string {
  const lines = [
    `<superblock uuid="" time="${view.time}" transaction="${view.transactionId}" version="2" ` +
      `data_block_size="${dataBlockSizeSectors}" nr_data_blocks="${dataBlocks}">`
  ]
  for (const [id, device] of [...view.devices].sort(([left], [right]) => left - right)) {
    lines.push(
      `<device dev_id="${id}" mapped_blocks="${device.mappedBlocks}" transaction="${device.transactionId}" ` +
        `creation_time="${device.creationTime}" snap_time="${device.snapshottedTime}">`
    )
    for (const [key, { block, time }] of device.tree.entries()) {
      lines.push(`<single_mapping origin_block="${key}" data_block="${block}" time="${time}"/>`)
    }
    lines.push('</device>')
  }
  return [...lines, '</superblock>', ''].join('\n')
}

function mappingOf(tag: Tag, lines: XmlLines): MappingRun {
  switch (tag.name) {
    case 'single_mapping':
      return {
        begin: tag.number('origin_block'),
        dataBegin: tag.number('data_block'),
        length: 1,
        time: tag.number('time')
      }
    case 'range_mapping':
      return {
        begin: tag.number('origin_begin'),
        dataBegin: tag.number('data_begin'),
        length: tag.number('length'),
        time: tag.number('time')
      }
    default:
      throw lines.unexpected(tag.line)
  }
}

function isDeltaKind(name: string): name is DeltaKind {
  return name === 'same' || name === 'different' || name === 'left_only' || name === 'right_only'
}

/** One line of the tools' XML: they print one tag to a line. */
class Tag {
  readonly line: string
  readonly name: string
  readonly #attributes = new Map<string, string>()

  constructor(line: string) {
    this.line = line
    this.name = /^<([a-z_]+)/.exec(line)?.[1] ?? ''
    for (const [, name = '', value = ''] of line.matchAll(/ ([a-z_]+)="([^"]*)"/g)) this.#attributes.set(name, value)
  }

  number(attribute: string): number {
    const text = this.#attributes.get(attribute) ?? ''
    const value = Number(text)
    if (!/^[0-9]+$/.test(text) || !Number.isSafeInteger(value))
      throw new Error(`no number "${attribute}" in ${this.line}`)
    return value
  }
}

class XmlLines {
  readonly #lines: string[]
  #next = 0

  constructor(xml: string) {
    this.#lines = xml.split('\n')
    // The last line may end with a newline or without.
    if (this.#lines.at(-1) === '') this.#lines.pop()
  }

  next(): Tag {
    const line = this.#lines[this.#next++]?.trim()
    if (line === undefined) throw new Error('the output ends too early')
    if (!/^<(\/[a-z_]+|[a-z_]+( [a-z_]+="[^"]*")*\/?)>$/.test(line)) throw this.unexpected(line)
    return new Tag(line)
  }

  open(name: string): Tag {
    const tag = this.next()
    if (tag.name !== name) throw this.unexpected(tag.line)
    return tag
  }

  end(...closing: string[]): void {
    for (const line of closing) if (this.next().line !== line) throw this.unexpected(line)
    if (this.#next !== this.#lines.length) throw new Error('the output goes on after its end')
  }

  unexpected(line: string): Error {
    return new Error(`line ${this.#next} of the tool's output is not understood: ${line}`)
  }
}
