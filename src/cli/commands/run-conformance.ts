/** `deltamapper conformance`, after its command line is parsed. */
import { open, readFile } from 'node:fs/promises'
import { z } from 'zod'
import {
  conforms,
  type ConformanceOptions,
  type ContentOptions,
  judgeRun,
  type Report,
  runConformance,
  withBaseline
} from '../../conformance/conformance.ts'
import { readContentConfig } from '../../conformance/csi-storage.ts'
import { readHooks } from '../../conformance/hooks.ts'
import { type Format, formatted } from '../../conformance/report-formats.ts'
import { readRun, writeRun } from '../../conformance/run.ts'
import { DeltamapperError } from '../../errors.ts'
import { exitStatus, oneLine, UsageError } from '../command-line/failure.ts'
import { interruptible } from '../command-line/interruption.ts'
import { written } from '../output/text-output.ts'

export interface ConformanceCommandOptions {
  endpoint?: string
  snapshot?: string[]
  otherSnapshot?: string[]
  untrackedSnapshot?: string[]
  unreadySnapshot?: string
  device?: Record<string, string>
  rule?: number[]
  seed?: number
  hooks?: string
  content?: string
  size?: number
  history?: string[]
  record?: string
  replay?: string
  baseline?: string
  output: Format
}

/** Bytes: sizes of volumes are a multiple of it. */
const VOLUME_UNIT = 64 * 1024

/** Sets the process's exit status if a rule failed. @throws UsageError, Interrupted, OutputClosed, DM_CONFIG_INVALID */
export async function showConformance(options: ConformanceCommandOptions): Promise<void> {
  const known = options.baseline === undefined ? undefined : await readBaseline(options.baseline)
  await interruptible(undefined, async (signal) => {
    const made = await report(options, signal)
    const judged = known === undefined ? made : withBaseline(made, known)
    await written(process.stdout, formatted(judged, options.output), signal)
    if (!conforms(judged)) process.exitCode = exitStatus.failed
  })
}

async function report(options: ConformanceCommandOptions, signal: AbortSignal): Promise<Report> {
  const { replay, rule, record } = options
  try {
    if (replay !== undefined) return await judgeRun(await readRun(replay), rule)
    const { report, run } = await runConformance({ ...(await asked(options)), signal })
    if (record !== undefined) await writeRun(record, run)
    return report
  } catch (error) {
    if (error instanceof DeltamapperError && error.code === 'DM_ARGUMENT_INVALID' && !(error instanceof UsageError)) {
      throw new UsageError(error.message, error.remedy)
    }
    throw error
  }
}

async function asked(options: ConformanceCommandOptions): Promise<ConformanceOptions> {
  const { endpoint, snapshot = [], hooks, content } = options
  if (endpoint === undefined) {
    throw new UsageError(
      'no driver was named',
      'give its socket with --endpoint unix:///csi/csi.sock',
      'DM_ARGUMENT_MISSING'
    )
  }
  if (!/^(unix:|\/)/.test(endpoint)) {
    throw new UsageError(`${endpoint} is no unix socket`, 'CSI drivers listen on one: unix:///csi/csi.sock')
  }
  if (snapshot.length === 0 && hooks === undefined && content === undefined) {
    throw new UsageError(
      'no snapshot was named',
      'give some of one volume with --snapshot, oldest first, or let some be made with --hooks or --content',
      'DM_ARGUMENT_MISSING'
    )
  }
  return {
    endpoint,
    snapshots: snapshot,
    otherSnapshots: options.otherSnapshot ?? [],
    untrackedSnapshots: options.untrackedSnapshot ?? [],
    unreadySnapshot: options.unreadySnapshot,
    deviceBytes: await sizes(options.device ?? {}),
    rules: options.rule,
    content: await contentOptions(options),
    seed: options.seed ?? 1
  }
}

async function contentOptions({
  hooks,
  content,
  size,
  history
}: ConformanceCommandOptions): Promise<ContentOptions | undefined> {
  if (hooks === undefined && content === undefined) return undefined
  if (hooks !== undefined && content !== undefined) {
    throw new UsageError('--hooks and --content are two ways to the same', 'give one of them')
  }
  if (size !== undefined && (size === 0 || size % VOLUME_UNIT !== 0)) {
    throw new UsageError(`${size} is no size for these volumes`, 'give a multiple of 64 KiB')
  }
  const onLeftBehind = (what: string) => process.stderr.write(`deltamapper: not removed: ${oneLine(what)}\n`)
  const usual = { sizeBytes: size, histories: history, onLeftBehind }
  return hooks === undefined
    ? { csi: await readContentConfig(content!), ...usual }
    : { hooks: await readHooks(hooks), ...usual }
}

async function sizes(devices: Readonly<Record<string, string>>): Promise<Record<string, number>> {
  const found: Record<string, number> = {}
  for (const [id, path] of Object.entries(devices)) {
    try {
      await using file = await open(path, 'r')
      const { size } = await file.stat()
      found[id] = size > 0 ? size : await endOf(path)
    } catch (cause) {
      throw new UsageError(
        `${path} cannot be read (${(cause as NodeJS.ErrnoException).code})`,
        'name a device or a file'
      )
    }
  }
  return found
}

/** The size of a block device, in bytes: the kernel tells it only by a seek, an ioctl, or sysfs. */
async function endOf(path: string): Promise<number> {
  const { deviceBytes } = await import('../../conformance/device.ts')
  return deviceBytes(path)
}

const earlier = z.object({ rules: z.array(z.object({ number: z.number(), outcome: z.string() })) })

async function readBaseline(path: string): Promise<Set<number>> {
  try {
    const { rules } = earlier.parse(JSON.parse(await readFile(path, 'utf8')))
    return new Set(rules.filter(({ outcome }) => outcome === 'fail').map(({ number }) => number))
  } catch (cause) {
    throw new UsageError(
      `${path} is no report: ${(cause as Error).message.split('\n', 1)[0]}`,
      'name what `deltamapper conformance -o json` has printed'
    )
  }
}
