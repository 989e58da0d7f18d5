/**
 * What was written since an era: ours beside the whole era_invalidate process, on the same metadata, in turn in one run.
 *
 *   node bench/era.ts [RUNS]      prints the figures; the images are made anew each time; some minutes, most of them era_invalidate 0.9.0's
 *
 * A device of 16.8 million blocks (1 TiB of 64 KiB) with ten archived writesets; in each of them, and in the era array, 1 % or half of the
 * blocks are marked, at random: next to no two are neighbours, so that an answer has as many extents as there can be. Two questions: for an
 * era that was digested long ago, which takes everything there is to read, and for one of the last, which the writesets alone answer.
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

const BLOCKS = 2 ** 24
const WRITESETS = 10
const FIRST_WRITESET = 91
const CURRENT_ERA = FIRST_WRITESET + WRITESETS
/** Asked once to warm up, and once. */
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

/** @param runs of each, in turn; medians count. Of 0.9.0, one */
export async function measureEra(runs: number): Promise<EraFigures[]> {
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
      await writeFile(image, writeEraImage(deviceWith(part)).bytes)
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
      // 0.9.0 takes its time, and always the same.
      if (each.name === SLOW_TOOL && run > 1) continue
      const { path, env } = each.tool
      each.runs.push(await timeProcess(path, ['--written-since', `${since}`, image], env))
    }
    // The first round warms up.
    if (run === 0) {
      for (const { runs: each } of [...toolRuns, { runs: processes }]) each.pop()
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
function deviceWith(part: number): EraView {
  const random = new Random(1)
  const chosen = () => random.uint32() < part * 2 ** 32
  const marks = (era: number): WritesetModel => {
    const marked = new Uint8Array(BLOCKS / 8)
    for (let block = 0; block < BLOCKS; block++) if (chosen()) marked[block >> 3] |= 1 << (block & 7)
    return { era, bits: BLOCKS, marked }
  }
  const eras = Uint8Array.from({ length: BLOCKS }, () => (chosen() ? random.integer(1, FIRST_WRITESET - 1) : 0))
  return {
    blocks: BLOCKS,
    currentEra: CURRENT_ERA,
    current: { era: CURRENT_ERA, bits: BLOCKS, marked: new Set() },
    writesets: Array.from({ length: WRITESETS }, (_, i) => marks(FIRST_WRITESET + i)),
    eras
  }
}

function show(figures: readonly EraFigures[]): void {
  const ms = (value: number) => `${Math.round(value)} ms`
  const cost = ({ milliseconds, peakMiB, readMiB }: ProcessRun) =>
    `${ms(milliseconds)}, ${peakMiB.toFixed(0)} MiB of memory, ${readMiB.toFixed(0)} MiB from disk`
  for (const { title, extents, walk: walked, process: whole, tools } of figures) {
    console.log(`${title}: ${extents} extents`)
    console.log(`  our walk                ${ms(walked.milliseconds)}, ${walked.readMiB.toFixed(1)} MiB read`)
    console.log(`  deltamapper delta       ${cost(whole)}`)
    for (const { name, run } of tools) {
      const ratios = [walked, whole].map(({ milliseconds }) => (run.milliseconds / milliseconds).toFixed(1))
      console.log(
        `  era_invalidate ${name}    ${cost(run)}; ${ratios[0]} times our walk, ${ratios[1]} times the process`
      )
    }
  }
}

if (import.meta.main) show(await measureEra(Number(process.argv[2] ?? 5)))
