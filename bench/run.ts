/**
 * `npm run bench`: measures, prints, and writes docs/benchmarks.md. What is compared is measured in one run, in turn; what counts are the
 * ratios. Absolute times are of the machine that ran it, which the table names.
 *
 *   node bench/run.ts [--runs N] [--extents N] [--pool-load | --era | --era-load | --router | --nbd | --cow | --device | --records | --backup]
 *                     [--era-blocks N] [--no-write]
 *
 * --pool-load: only what a pool feels, which takes the place of that section. --era: only era metadata, --era-load: only what tracking costs,
 * --router: only what a router costs, --nbd: only what reading over NBD costs, --cow: only classic snapshots, --device: only block devices,
 * --records: only base records, --backup: only backups, likewise.
 */
import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { ensureLab, projectFolder } from '../scripts/setup.mjs'
import { backupHeading, measureBackup } from './backup.ts'
import { cowHeading, measureCow } from './cow.ts'
import { measureRecords, recordsHeading } from './base-records.ts'
import { type DeltaFigures, measureDeltas, type OurFigures } from './delta.ts'
import { deviceHeading, measureDevice } from './device.ts'
import { eraHeading, measureEra, renderEra } from './era.ts'
import { eraLoadHeading, measureEraLoad } from './era-load.ts'
import { kernelGrownPool } from './kernel-grown-pool.ts'
import { measureNbd, nbdHeading } from './nbd.ts'
import { measurePoolLoad, poolLoadHeading } from './pool-load.ts'
import { measureRouter, renderRouter, routerHeading } from './router.ts'
import { measureStream, type StreamFigures } from './stream.ts'
import { measureXml, renderXml } from './xml.ts'

const { values } = parseArgs({
  options: {
    runs: { type: 'string', default: '7' },
    extents: { type: 'string', default: '20000000' },
    'pool-load': { type: 'boolean', default: false },
    era: { type: 'boolean', default: false },
    'era-load': { type: 'boolean', default: false },
    router: { type: 'boolean', default: false },
    nbd: { type: 'boolean', default: false },
    cow: { type: 'boolean', default: false },
    device: { type: 'boolean', default: false },
    records: { type: 'boolean', default: false },
    backup: { type: 'boolean', default: false },
    'era-blocks': { type: 'string', default: String(2 ** 21) },
    'no-write': { type: 'boolean', default: false }
  }
})
const runs = Number(values.runs)

/** What can be measured by itself: where it is on the page, and how. */
const sections = {
  'pool-load': [poolLoadHeading, () => measurePoolLoad(runs)],
  era: [eraHeading, era],
  'era-load': [eraLoadHeading, () => measureEraLoad(runs)],
  router: [routerHeading, router],
  nbd: [nbdHeading, () => measureNbd(runs)],
  cow: [cowHeading, () => measureCow(Math.min(runs, 3))],
  device: [deviceHeading, device],
  records: [recordsHeading, () => measureRecords(runs)],
  backup: [backupHeading, () => measureBackup(Math.min(runs, 3))]
} as const

if (!values.router && !values.records) {
  const lab = await ensureLab()
  if ('unavailable' in lab && lab.unavailable !== undefined)
    throw new Error(`the kernel lab is needed: ${lab.unavailable}`)
}
const file = join(projectFolder, 'docs/benchmarks.md')
const flags = ['pool-load', 'era', 'era-load', 'router', 'nbd', 'cow', 'device', 'records', 'backup'] as const
const only = flags.find((name) => values[name])
if (only === undefined) {
  const page = await measureAll()
  console.log(page)
  if (!values['no-write']) await writeFile(file, page)
} else {
  const [heading, measure] = sections[only]
  const section = await measure()
  console.log(section)
  if (!values['no-write']) await writeFile(file, withSection(readFileSync(file, 'utf8'), heading, section))
}

/** The page with another section under this heading; before what a pool feels, which comes last, where there is none yet. */
function withSection(page: string, heading: string, section: string): string {
  const found = page.indexOf(heading)
  if (found >= 0) {
    const end = page.indexOf('\n## ', found)
    return page.slice(0, found) + section + (end < 0 ? '' : page.slice(end))
  }
  const at = page.indexOf(poolLoadHeading)
  return at < 0 ? `${page}\n${section}` : `${page.slice(0, at)}${section}\n${page.slice(at)}`
}

async function device(): Promise<string> {
  return measureDevice(
    await kernelGrownPool(),
    [
      { title: 'identical', base: 'base', target: 'identical' },
      { title: '1 % clustered', base: 'base', target: 'clustered' },
      { title: '1 % scattered', base: 'base', target: 'scattered' },
      { title: '10 % scattered', base: 'base', target: 'scattered-10' },
      { title: 'everything', base: 'base', target: 'rewritten' },
      { title: 'allocated', target: 'base' }
    ],
    runs,
    Number(values.extents)
  )
}

async function router(): Promise<string> {
  return renderRouter(await measureRouter(Number(values.extents), runs))
}

/** The whole page; what a pool feels comes last. */
async function measureAll(): Promise<string> {
  const folder = await kernelGrownPool()
  const deltas = await measureDeltas(
    folder,
    [
      { title: 'identical', base: 'base', target: 'identical' },
      { title: '1 % changed, clustered', base: 'base', target: 'clustered' },
      { title: '1 % changed, scattered', base: 'base', target: 'scattered' },
      { title: 'everything changed', base: 'base', target: 'rewritten' }
    ],
    runs
  )
  const stream = await measureStream(Number(values.extents), runs)
  const routing = `${await device()}\n${await router()}`
  const xml = renderXml(await measureXml(runs))
  const cow = await measureCow(Math.min(runs, 3))
  const records = await measureRecords(runs)
  const load = `${records}\n${await measureNbd(runs)}\n${await measureBackup(Math.min(runs, 3))}\n${cow}\n${await measureEraLoad(runs)}\n${await measurePoolLoad(runs)}`
  return `${render(deltas, stream)}\n${routing}\n${xml}\n${await era()}\n${load}`
}

/** era_invalidate takes so long that few runs have to do. */
async function era(): Promise<string> {
  const few = Math.min(runs, 3)
  const blocks = Number(values['era-blocks'])
  return renderEra(await measureEra(few, blocks), few, blocks)
}

function render(figures: readonly DeltaFigures[], streamed: StreamFigures): string {
  return `# Benchmarks

Made by \`npm run bench\` on ${cpus().length} × ${cpus()[0]?.model.trim()}, ${kernel()}, Node ${process.version}; medians of ${runs} runs. Times on other
machines differ; what is compared was measured in turn, in one run, so the ratios are what counts.

## A delta: the whole gRPC call beside the whole thin_delta process

One pool of 4.2 million mappings (64 KiB blocks, 320 GB of volume), grown by a real kernel, its snapshots compared in pairs. \`thin_delta\` is
Debian 12's (0.9.0), which reads with O_DIRECT; the call counts from dialling the socket to the last extent decoded and checked by the
client, of an agent that has been asked before (its very first call is told below). *Warm*: the image is in the page cache. *Direct*: read
with O_DIRECT, as devices are; here the disk sets the pace. *Again*: the same call right after that one. While \`thin_delta\` has its turn the agent
sleeps, and the processor that wakes it has other things in its caches.

| change | extents | thin_delta | call, warm | times faster | again | times faster | call, direct | times faster |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
${figures.map(times).join('\n')}

What it took:

| change | nodes read | read | first extent, warm | first call of a fresh agent | agent's peak memory | thin_delta's |
|---|--:|--:|--:|--:|--:|--:|
${figures.map(costs).join('\n')}

Nodes read include the look-up of both snapshots; \`thin_delta\` reads all of both trees, about 38,000 nodes.

## A stream: extents per second

GetMetadataAllocated of a volume in which every other block is mapped: ${count(streamed.extents)} extents of one block, ${mib(streamed.bytes)} on the wire, each read
from metadata, checked, compared and encoded; beside a bare grpc-js server that sends the very same messages ready-made from memory. The
client of this comparison throws messages away undecoded, so that it is not what is measured.

| | |
|---|--:|
| extents per second | ${count(Math.round((streamed.extents / streamed.agentMs) * 1000))} |
| time, the agent | ${ms(streamed.agentMs)} |
| time, ready-made messages | ${ms(streamed.readyMadeMs)} |
| ratio | ${streamed.ratio.toFixed(2)} |
| agent's peak memory | ${streamed.agentPeakMiB.toFixed(0)} MiB |
`
}

function times({ title, extents, tool, warm, direct }: DeltaFigures): string {
  const cells = [
    title,
    count(extents),
    ms(tool.milliseconds),
    ms(warm.milliseconds),
    `**${ratio(warm.ratio)}**`,
    ms(warm.againMs),
    `**${ratio(warm.againRatio)}**`,
    ms(direct.milliseconds),
    ratio(direct.ratio)
  ]
  return `| ${cells.join(' | ')} |`
}

function costs({ title, warm, direct, tool }: DeltaFigures): string {
  const cells = [
    title,
    count(warm.nodesRead),
    `${warm.readMiB.toFixed(1)} MiB`,
    ms(warm.firstExtentMs),
    ms(warm.firstCallMs),
    `${Math.max(...[warm, direct].map((each: OurFigures) => each.peakMiB)).toFixed(0)} MiB`,
    `${tool.peakMiB.toFixed(0)} MiB`
  ]
  return `| ${cells.join(' | ')} |`
}

function ms(value: number): string {
  return value < 100 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`
}

function ratio(value: number): string {
  return value < 20 ? value.toFixed(1) : String(Math.round(value))
}

function count(value: number): string {
  return value.toLocaleString('en-US')
}

function mib(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`
}

function kernel(): string {
  return `Linux ${readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim().split('-')[0]}`
}
