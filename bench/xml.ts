/**
 * How fast the tools' XML is read, beside how fast the tool writes it: the reader must never be what a pipeline waits for.
 *
 *   node bench/xml.ts [RUNS]      prints the figures; the pool is made once and kept in the cache
 *
 * The pool is the worst there can be: every run is one block long, so nothing but numbers and tags goes by.
 */
import { SaxesParser } from 'saxes'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, open, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { projectFolder, projectNode } from '../scripts/setup.mjs'
import { readDeltaXml } from '../src/devicemapper/thin/delta-xml.ts'
import { changedExtentsOf } from '../src/devicemapper/thin/xml-extents.ts'
import { ensureLab, LabUnavailable } from '../test/lab/packages.ts'
import { runThinTool, type ThinTool, thinTool } from '../test/lab/tools.ts'
import { ensureTrixieTools, trixieTool } from '../test/lab/trixie-tools.ts'

const MAPPINGS = 2_000_000
const CHUNK_BYTES = 64 * 1024

export interface XmlFigures {
  title: string
  bytes: number
  runs: number
  extents: number
  /** All in MB (10^6 bytes) a second: the tool from its start to its end, and once it has begun to write. */
  tool: { whole: number; writing: number }
  /** Our reader alone, the XML in memory in chunks of 64 KiB: to runs, to extents, and with saxes for every tag. */
  reader: { toRuns: number; toExtents: number; plain: number }
  /** saxes alone, which knows nothing of what it reads. */
  saxes: number
  /** From the tool's start to the last extent counted, through a pipe into `deltamapper delta --xml -`. */
  piped: number
}

/** @param runs of each measurement, in turn; the fastest count */
export async function measureXml(runs: number): Promise<XmlFigures[]> {
  await ensureLab()
  const tools: [string, ThinTool][] = [['thin_delta 0.9.0', thinTool('thin_delta')]]
  try {
    await ensureTrixieTools()
    tools.push(['thin_delta 1.1.0', trixieTool('thin_delta')])
  } catch (error) {
    if (!(error instanceof LabUnavailable)) throw error
  }
  const pool = await fragmentedPair()
  const figures: XmlFigures[] = []
  for (const [name, tool] of tools) {
    for (const verbose of [[], ['--verbose']]) {
      const args = ['--thin1', '1', '--thin2', '2', ...verbose, pool]
      figures.push(await measureOne([name, ...verbose].join(' '), tool, args, runs))
    }
  }
  return figures
}

/** The section of docs/benchmarks.md. */
export function renderXml(figures: readonly XmlFigures[]): string {
  const whole = (value: number) => value.toFixed(0)
  const millions = (things: number, bytes: number, rate: number) => ((things / bytes) * rate).toFixed(1)
  const rows = figures.map(({ title, bytes, runs, extents, tool, reader, saxes, piped }) => {
    const times = (reader.toExtents / tool.writing).toFixed(1)
    const cells = [
      title,
      `${whole(bytes / 1e6)} MB`,
      whole(tool.writing),
      `${whole(reader.toRuns)} (${millions(runs, bytes, reader.toRuns)})`,
      `${whole(reader.toExtents)} (${millions(extents, bytes, reader.toExtents)})`,
      `**${times}**`,
      whole(saxes),
      `${whole(piped)} of ${whole(tool.whole)}`
    ]
    return `| ${cells.join(' | ')} |`
  })
  return `## XML: how fast it is read, beside how fast the tool writes it

Two devices of ${(MAPPINGS / 1e6).toFixed(0)} million mappings, no two of them adjacent, every other one different: nothing but tags and numbers goes by. MB/s, of the
fastest run each, because whatever else the machine does only makes a run slower; in parentheses, millions of runs or extents a second.
*Writes*: once it has begun to. *Piped*: \`thin_delta … | deltamapper delta --xml -\` from start to end, beside what the tool alone takes.

| | XML | the tool writes | read to runs | read to extents | times as fast as it is written | saxes alone | piped |
|---|--:|--:|--:|--:|--:|--:|--:|
${rows.join('\n')}
`
}

async function measureOne(title: string, tool: ThinTool, args: string[], runs: number): Promise<XmlFigures> {
  const chunks: Buffer[] = []
  await drain(tool, args, (chunk) => chunks.push(chunk))
  const whole = Buffer.concat(chunks.splice(0))
  for (let from = 0; from < whole.length; from += CHUNK_BYTES) chunks.push(whole.subarray(from, from + CHUNK_BYTES))
  const rates = { whole: [], writing: [], toRuns: [], toExtents: [], plain: [], saxes: [], piped: [] } as Record<
    string,
    number[]
  >
  const rate = (milliseconds: number, bytes = whole.length) => bytes / 1e3 / milliseconds
  // With saxes for every tag it takes long: a part is enough.
  const part = shortened(whole)
  const partBytes = part.reduce((sum, { length }) => sum + length, 0)
  let found = { runs: 0, extents: 0 }
  for (let run = 0; run <= runs; run++) {
    const written = await drain(tool, args, () => undefined)
    const toRuns = await timed(async () => void (found = { ...found, runs: await countRuns(chunks, true) }))
    const toExtents = await timed(async () => void (found = { ...found, extents: await countExtents(chunks) }))
    const plain = await timed(() => countRuns(part, false))
    const saxes = await saxesAlone(part)
    const piped = await timed(() => pipe(tool, args))
    // The first round warms up.
    if (run === 0) continue
    rates['whole'].push(rate(written.milliseconds))
    rates['writing'].push(rate(written.writingMs))
    rates['toRuns'].push(rate(toRuns))
    rates['toExtents'].push(rate(toExtents))
    rates['plain'].push(rate(plain, partBytes))
    rates['saxes'].push(saxes)
    rates['piped'].push(rate(piped))
  }
  // The fastest: whatever else the machine does only makes a run slower.
  const of = (name: string) => Math.max(...rates[name])
  return {
    title,
    bytes: whole.length,
    ...found,
    tool: { whole: of('whole'), writing: of('writing') },
    reader: { toRuns: of('toRuns'), toExtents: of('toExtents'), plain: of('plain') },
    saxes: of('saxes'),
    piped: of('piped')
  }
}

/** Its first 8 MB, made complete. */
function shortened(whole: Buffer): Buffer[] {
  const start = whole.subarray(0, 8_000_000)
  const end = Math.max(...['<same', '<different'].map((tag) => start.lastIndexOf(`\n    ${tag}`)))
  const part = Buffer.concat([start.subarray(0, end), Buffer.from('</diff></superblock>')])
  const pieces = Array.from({ length: Math.ceil(part.length / CHUNK_BYTES) }, (_, i) => i * CHUNK_BYTES)
  return pieces.map((from) => part.subarray(from, from + CHUNK_BYTES))
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now()
  await work()
  return performance.now() - began
}

async function drain({ path, env }: ThinTool, args: string[], take: (chunk: Buffer) => void) {
  const began = performance.now()
  let first = 0
  const child = spawn(path, args, { env, stdio: ['ignore', 'pipe', 'inherit'] })
  child.stdout.on('data', (chunk: Buffer) => {
    first ||= performance.now()
    take(chunk)
  })
  const [status] = (await once(child, 'close')) as [number | null]
  if (status !== 0) throw new Error(`${path} ended with status ${status}`)
  return { milliseconds: performance.now() - began, writingMs: performance.now() - first }
}

async function* streamed(chunks: readonly Buffer[]): AsyncGenerator<Buffer> {
  yield* chunks
}

async function countRuns(chunks: readonly Buffer[], quick: boolean): Promise<number> {
  const { batches } = await readDeltaXml(streamed(chunks), { quick })
  let runs = 0
  for await (const { count } of batches) runs += count
  return runs
}

async function countExtents(chunks: readonly Buffer[]): Promise<number> {
  const { header, batches } = await readDeltaXml(streamed(chunks))
  let extents = 0
  const sizeBytes = 2 * MAPPINGS * header.dataBlockBytes
  for await (const { count } of changedExtentsOf(batches, header, { sizeBytes }).batches) extents += count
  return extents
}

/** saxes in a process of its own, where nobody else has used it: V8 makes of it what it is used for. */
async function saxesAlone(chunks: readonly Buffer[]): Promise<number> {
  const child = spawn(projectNode, [import.meta.filename, '--saxes'], { stdio: ['pipe', 'pipe', 'inherit'] })
  child.stdin.end(Buffer.concat(chunks))
  const [printed] = await Promise.all([Array.fromAsync(child.stdout as AsyncIterable<Buffer>), once(child, 'close')])
  return Number(Buffer.concat(printed).toString())
}

/** MB/s of the last of three readings of standard input. */
async function readWithSaxes(): Promise<number> {
  const whole = Buffer.concat(await Array.fromAsync(process.stdin as AsyncIterable<Buffer>))
  let milliseconds = 0
  for (let round = 0; round < 3; round++) {
    const began = performance.now()
    const parser = new SaxesParser({ position: false })
    const decoder = new TextDecoder('utf-8', { fatal: true })
    let blocks = 0
    parser.on('opentag', ({ attributes }) => {
      if (attributes['begin'] !== undefined) blocks += Number(attributes['length'])
    })
    for (let from = 0; from < whole.length; from += CHUNK_BYTES) {
      parser.write(decoder.decode(whole.subarray(from, from + CHUNK_BYTES), { stream: true }))
    }
    parser.close()
    if (blocks === 0) throw new Error('nothing was read')
    milliseconds = performance.now() - began
  }
  return whole.length / 1e3 / milliseconds
}

/** `thin_delta … | deltamapper delta --xml - --size … -o map` */
async function pipe({ path, env }: ThinTool, args: string[]): Promise<void> {
  const reading = ['delta', '--xml', '-', '--size', String(2 * MAPPINGS * 65536), '-o', 'map']
  const reader = spawn(projectNode, [join(projectFolder, 'bin/deltamapper.js'), ...reading], {
    stdio: ['pipe', 'ignore', 'ignore']
  })
  // The pipe is handed over, so that nothing of it passes through this process.
  const tool = spawn(path, args, { env, stdio: ['ignore', reader.stdin, 'ignore'] })
  reader.stdin.destroy()
  const [[status]] = (await Promise.all([once(reader, 'close'), once(tool, 'close')])) as [[number | null], unknown]
  if (status !== 0) throw new Error(`deltamapper ended with status ${status}`)
}

/** A pool with two devices of two million mappings, no two of them adjacent; every other one differs. */
async function fragmentedPair(): Promise<string> {
  const folder = join(projectFolder, '.cache/bench', `xml-${MAPPINGS}`)
  const image = join(folder, 'metadata.img')
  if (existsSync(folder)) return image
  const work = `${folder}.unfinished`
  await rm(work, { recursive: true, force: true })
  await mkdir(work, { recursive: true })
  const xml = await open(join(work, 'pool.xml'), 'w')
  await xml.write(
    `<superblock uuid="" time="2" transaction="3" version="2" data_block_size="128" nr_data_blocks="${3 * MAPPINGS}">\n`
  )
  for (const device of [1, 2]) {
    const numbers = `mapped_blocks="${MAPPINGS}" transaction="0" creation_time="0" snap_time="1"`
    let text = `<device dev_id="${device}" ${numbers}>\n`
    for (let i = 0; i < MAPPINGS; i++) {
      const data = device === 1 || i % 2 === 1 ? i : MAPPINGS + i
      text += `<single_mapping origin_block="${2 * i}" data_block="${data}" time="0"/>\n`
      if (text.length < 2 ** 20) continue
      await xml.write(text)
      text = ''
    }
    await xml.write(`${text}</device>\n`)
  }
  await xml.write('</superblock>\n')
  await xml.close()
  const file = await open(join(work, 'metadata.img'), 'w')
  await file.truncate(200 * MAPPINGS)
  await file.close()
  await runThinTool('thin_restore', ['-q', '-i', join(work, 'pool.xml'), '-o', join(work, 'metadata.img')])
  await rm(join(work, 'pool.xml'))
  await rename(work, folder)
  return image
}

if (import.meta.main && process.argv[2] === '--saxes') console.log(await readWithSaxes())
else if (import.meta.main) {
  const runs = Number(process.argv[2] ?? 5)
  if (!Number.isInteger(runs) || runs < 1) {
    console.error('usage: node bench/xml.ts [RUNS]')
    process.exit(2)
  }
  const whole = (value: number) => value.toFixed(0)
  for (const { title, bytes, runs: count, extents, tool, reader, saxes, piped } of await measureXml(runs)) {
    const megabytes = bytes / 1e6
    console.log(`${title}: ${whole(megabytes)} MB, ${count} runs, ${extents} extents`)
    console.log(`  the tool writes ${whole(tool.writing)} MB/s, ${whole(tool.whole)} MB/s from its start to its end`)
    const rate = (each: number, things: number) =>
      `${whole(each)} MB/s (${(((things / megabytes) * each) / 1e6).toFixed(1)} million/s)`
    console.log(`  read to runs ${rate(reader.toRuns, count)}, to extents ${rate(reader.toExtents, extents)}`)
    console.log(`  ${(reader.toExtents / tool.writing).toFixed(1)} times the rate at which it writes`)
    console.log(`  with saxes for every tag ${whole(reader.plain)} MB/s; saxes alone ${whole(saxes)} MB/s`)
    console.log(`  through a pipe into deltamapper, start to end: ${whole(piped)} MB/s`)
  }
}
