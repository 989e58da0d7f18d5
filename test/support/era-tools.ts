/**
 * era_invalidate and era_restore as a second opinion on era metadata. Debian 12's (0.9.0) and, where they can be had, Debian 13's (1.1.0).
 *
 * What they are not asked, because they answer wrongly: a metadata snapshot (0.9.0 reads the live superblock, 1.1.0 fails), the writes of the
 * current era (both leave them out), era 0 (0.9.0 lists all blocks there are), and with 1.1.0 a device without writesets (it lists nothing).
 */
import { execFile } from 'node:child_process'
import { open, writeFile } from 'node:fs/promises'
import { promisify } from 'node:util'

import { ensureLab, LabUnavailable } from '../lab/packages.ts'
import { type ThinTool, type ThinToolName, thinTool } from '../lab/tools.ts'
import { ensureTrixieTools, trixieTool } from '../lab/trixie-tools.ts'
import type { EraView } from './era-image.ts'

export interface EraTools {
  readonly version: '0.9.0' | '1.1.0'
  readonly tool: (name: ThinToolName) => ThinTool
}

/** The versions that can be had here, and why the others cannot. */
export async function availableEraTools(): Promise<{ versions: EraTools[]; unavailable: string[] }> {
  const versions: EraTools[] = []
  const unavailable: string[] = []
  for (const [version, ensure, tool] of [
    ['0.9.0', ensureLab, thinTool],
    ['1.1.0', ensureTrixieTools, trixieTool]
  ] as const) {
    try {
      await ensure()
      versions.push({ version, tool })
    } catch (error) {
      if (!(error instanceof LabUnavailable)) throw error
      unavailable.push(`${version}: ${error.message}`)
    }
  }
  return { versions, unavailable }
}

/** Blocks that era_invalidate lists, ascending. */
export async function eraInvalidate(tools: EraTools, path: string, sinceEra: number): Promise<number[]> {
  const xml = await printedBy(tools, 'era_invalidate', ['--written-since', String(sinceEra), path])
  const blocks: number[] = []
  for (const line of xml.split('\n').map((each) => each.trim())) {
    const [, block] = /^<block block="(\d+)"\/>$/.exec(line) ?? []
    const [, begin, end] = /^<range begin="(\d+)" ?end ?= ?"(\d+)"\/>$/.exec(line) ?? []
    if (block !== undefined) blocks.push(Number(block))
    else if (begin !== undefined) for (let each = Number(begin); each < Number(end); each++) blocks.push(each)
    else if (line !== '' && line !== '<blocks>' && line !== '</blocks>') throw new Error(`not understood: ${line}`)
  }
  return blocks
}

/** What era_check has against an image; an empty string when it is content. */
export async function eraCheck(tools: EraTools, path: string): Promise<string> {
  return printedBy(tools, 'era_check', ['-q', path]).then(
    () => '',
    (error: unknown) => (error instanceof Error ? error.message : String(error))
  )
}

/** Lets era_restore write `path`: a file of so many bytes. The writeset of the current era becomes an archived one. */
export async function eraRestore(tools: EraTools, view: EraView, path: string, metadataBytes: number): Promise<void> {
  const xmlPath = `${path}.xml`
  await writeFile(xmlPath, eraXml(view))
  const file = await open(path, 'w')
  await file.truncate(metadataBytes)
  await file.close()
  await printedBy(tools, 'era_restore', ['-q', '-i', xmlPath, '-o', path])
}

/** As era_dump would print it, in blocks of 128 sectors. */
function eraXml({ blocks, currentEra, current, writesets, eras }: EraView): string {
  const eraOf = (block: number) => (eras instanceof Uint8Array ? eras[block] : eras.get(block)) ?? 0
  const lines = [`<superblock uuid="" block_size="128" nr_blocks="${blocks}" current_era="${currentEra}">`]
  for (const { era, bits, marked } of [...writesets, ...(current ? [current] : [])]) {
    if (marked instanceof Uint8Array) throw new Error('a bitmap is not for here')
    lines.push(`<writeset era="${era}" nr_bits="${bits}">`)
    for (let block = 0; block < bits; block++) lines.push(`<bit block="${block}" value="${marked.has(block)}"/>`)
    lines.push('</writeset>')
  }
  lines.push('<era_array>')
  for (let block = 0; block < blocks; block++) lines.push(`<era block="${block}" era="${eraOf(block)}"/>`)
  return [...lines, '</era_array>', '</superblock>', ''].join('\n')
}

/** What a tool prints. */
export async function printedBy({ tool }: EraTools, name: ThinToolName, args: readonly string[]): Promise<string> {
  const { path, env } = tool(name)
  return (await promisify(execFile)(path, args, { env, maxBuffer: 2 ** 28 })).stdout
}
