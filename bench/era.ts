/**
 * What was written since an era: ours beside the whole era_invalidate process, on the same metadata, in turn in one run.
 *
 *   node bench/era.ts [RUNS] [BLOCKS]      prints the section of docs/benchmarks.md; `npm run bench -- --era` puts it there
 *
 * A device of 2.1 million blocks (128 GiB of 64 KiB) unless told otherwise, with ten archived writesets; in each of them, and in the era array,
 * 1 % or half of the blocks are marked, at random: next to no two are neighbours, so that an answer has as many extents as there can be. Two
 * questions: for an era that was digested long ago, which takes everything there is to read, and for one of the last, which the writesets
 * alone answer. The images are made anew each time. era_invalidate 0.9.0 needs so long that it is asked once only, and not to warm up.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { openEraMetadata } from '../src/devicemapper/era/era-metadata.ts'
import { ensureLab, LabUnavailable } from '../test/lab/packages.ts'
import { type ThinTool, thinTool } from '../test/lab/tools.ts'
import { ensureTrixieTools, trixieTool } from '../test/lab/trixie-tools.ts'
import { type EraView, writeEraImage, type WritesetModel } from '../test/support/era-image.ts'
import { Random } from '../test/support/random.ts'
import { median, type ProcessRun, timeProcess } from './measure.ts'

const DEVICE_BLOCKS = 2 ** 21
const WRITESETS = 10
const FIRST_WRITESET = 91
const CURRENT_ERA = FIRST_WRITESET + WRITESETS
const SLOW_TOOL = '0.9.0'
const command = fileURLToPath(new URL('../bin/deltamapper.js', import.meta.url))

export interface EraFigures {
  readonly title: string
  readonly extents: number
  /** Our walk alone, as the agent runs it, warm; and the whole process of the command line, its output thrown away. */
  readonly walk: { readonly milliseconds: number; readonly readMiB: number }
  readonly process: ProcessRun
  readonly tools: { readonly name: string; readonly run: ProcessRun }[]
}

/** @param runs of each, in turn; medians count. Of 0.9.0, one. @param blocks of the device */
export async function measureEra(runs: number, blocks = DEVICE_BLOCKS): Promise<EraFigures[]> {
  await ensureLab()
  const tools: [string, ThinTool][] = [[SLOW_TOOL, thinTool('era_invalidate')]]
  try {
    await ensureTrixieTools()
    tools.push(['1.1.0', trixieTool('era_invalidate')])
  } catch (error) {
    if (!(error instanceof LabUnavailable)) throw error
  }
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-era-'))
  try {
    const figures: EraFigures[] = []
    for (const part of [0.01, 0.5]) {
      const image = join(folder, `${part}.img`)
      await writeFile(image, writeEraImage(deviceWith(part, blocks)).bytes)
      for (const since of [1, CURRENT_ERA - 3]) {
        const title = `${part * 100} % marked, since era ${since} of ${CURRENT_ERA}`
        figures.push(await measureOne(title, image, since, tools, runs))
      }
    }
    return figures
  } finally {
    await rm(folder, { recursive: true })
  }
}

async function measureOne(
  title: string,
  image: string,
  since: number,
  tools: [string, ThinTool][],
  runs: number
): Promise<EraFigures> {
  let walked = { extents: 0, readMiB: 0 }
  const walks: number[] = []
  const processes: ProcessRun[] = []
  const toolRuns = tools.map(([name, tool]) => ({ name, tool, runs: [] as ProcessRun[] }))
  for (let run = 0; run <= runs; run++) {
    const began = performance.now()
    walked = await walk(image, since)
    const milliseconds = performance.now() - began
    const args = ['delta', '--metadata', image, '--since', `${since}`, '-o', 'ndjson']
    processes.push(await timeProcess(process.execPath, [command, ...args], process.env, 'ignore'))
    for (const each of toolRuns) {
      if (each.name === SLOW_TOOL && run !== 1) continue
      const { path, env } = each.tool
      each.runs.push(await timeProcess(path, ['--written-since', `${since}`, image], env))
    }
    // The first round warms up.
    if (run === 0) {
      for (const { runs: each } of [...toolRuns, { runs: processes }]) each.length = 0
      continue
    }
    walks.push(milliseconds)
  }
  return {
    title,
    extents: walked.extents,
    walk: { milliseconds: median(walks), readMiB: walked.readMiB },
    process: medianRun(processes),
    tools: toolRuns.map(({ name, runs: each }) => ({ name, run: medianRun(each) }))
  }
}

async function walk(image: string, sinceEra: number): Promise<{ extents: number; readMiB: number }> {
  const metadata = await openEraMetadata(image)
  try {
    let extents = 0
    for await (const { count } of (await metadata.written({ sinceEra })).batches) extents += count
    return { extents, readMiB: metadata.statistics.bytesRead / 2 ** 20 }
  } finally {
    await metadata.close()
  }
}

function medianRun(runs: readonly ProcessRun[]): ProcessRun {
  return {
    milliseconds: median(runs.map(({ milliseconds }) => milliseconds)),
    peakMiB: Math.max(...runs.map(({ peakMiB }) => peakMiB)),
    readMiB: Math.max(...runs.map(({ readMiB }) => readMiB))
  }
}

/** @param part of the blocks that are marked in each place */
function deviceWith(part: number, blocks: number): EraView {
  const random = new Random(1)
  const chosen = () => random.uint32() < part * 2 ** 32
  const marks = (era: number): WritesetModel => {
    const marked = new Uint8Array(blocks / 8)
    for (let block = 0; block < blocks; block++) if (chosen()) marked[block >> 3] |= 1 << (block & 7)
    return { era, bits: blocks, marked }
  }
  const eras = Uint8Array.from({ length: blocks }, () => (chosen() ? random.integer(1, FIRST_WRITESET - 1) : 0))
  return {
    blocks,
    currentEra: CURRENT_ERA,
    current: { era: CURRENT_ERA, bits: blocks, marked: new Set() },
    writesets: Array.from({ length: WRITESETS }, (_, i) => marks(FIRST_WRITESET + i)),
    eras
  }
}

export const eraHeading = '## What was written since an era'

/** The section of docs/benchmarks.md. */
export function renderEra(figures: readonly EraFigures[], runs: number, blocks = DEVICE_BLOCKS): string {
  const ms = (value: number) => `${Math.round(value).toLocaleString('en-US')} ms`
  const cost = ({ milliseconds, peakMiB }: ProcessRun) => [ms(milliseconds), `${peakMiB.toFixed(0)} MiB`]
  const rows = figures.flatMap(({ title, extents, walk: walked, process: whole, tools }) =>
    tools.map(({ name, run }, i) => {
      const ours = i === 0 ? [title, extents.toLocaleString('en-US'), ms(walked.milliseconds)] : ['', '', '']
      const more = i === 0 ? [`${walked.readMiB.toFixed(1)} MiB`, ...cost(whole)] : ['', '', '']
      const ratios = [walked, whole].map(({ milliseconds }) => (run.milliseconds / milliseconds).toFixed(1))
      return `| ${[...ours, ...more, name, ...cost(run), `**${ratios[0]}**`, ratios[1]].join(' | ')} |`
    })
  )
  return `${eraHeading}

A device of ${(blocks / 1e6).toFixed(1)} million blocks with ten archived writesets, the marked blocks of each at random places, next to no two of them neighbours.
Since era 1 takes all there is to read; since one of the last eras, the writesets alone. *Walk*: from opening the image to the last extent, as the
agent does it, warm. *Process*: \`deltamapper delta --metadata IMAGE --since ERA -o ndjson\` with its output thrown away, beside the whole
\`era_invalidate\` process on the same image in the same run. Medians of ${runs} runs; of 0.9.0, which takes so long, one.

| | extents | our walk | read | our process | its memory | era_invalidate | takes | memory | times our walk | times our process |
|---|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|
${rows.join('\n')}
`
}

if (import.meta.main) {
  const [runs = '3', blocks = String(DEVICE_BLOCKS)] = process.argv.slice(2)
  console.log(renderEra(await measureEra(Number(runs), Number(blocks)), Number(runs), Number(blocks)))
}
