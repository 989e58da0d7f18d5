/** Has the node examined, by the agent or else by this process, and shows the findings: the one path of `doctor`. */
import { asDeltamapperError, DeltamapperError } from '../../errors.ts'
import type { Examination, Finding } from '../../agent/inventory/examination.ts'
import { forJson } from './admin-command.ts'
import { endpointAddress } from '../command-line/endpoint.ts'
import { exitStatus, UsageError } from '../command-line/failure.ts'
import { interruptible } from '../command-line/interruption.ts'
import { examinationText, type SeenExamination, textStyle } from '../output/examination-text.ts'
import { written } from '../output/text-output.ts'

/** How long the agent may take: more than its own patience with devices that do not answer. Milliseconds. */
const ANSWER_DEADLINE_MS = 300_000
const WAITING_SHOWN_AFTER_MS = 500
const CLEAR_LINE = '\r\u001b[K'

export interface DoctorOptions {
  endpoint?: string
  local?: boolean
  /** For each thing that this command looks at by itself, in seconds. */
  wait?: number
  output: 'table' | 'json'
}

/** Sets the process's exit status when there is a problem. @throws UsageError, Interrupted, OutputClosed */
export async function showExamination(options: DoctorOptions): Promise<void> {
  const address = options.local ? undefined : endpointAddress(options.endpoint)
  await interruptible(undefined, async (signal) => {
    const seen = await whileWaiting('looking at the node …', () => examine(address, options.wait, signal))
    const { endpoint, examination } = seen
    const text =
      options.output === 'json'
        ? `${JSON.stringify(forJson({ endpoint: endpoint ?? null, ...examination }))}\n`
        : examinationText(seen, textStyle(process.stdout, process.env))
    await written(process.stdout, text, signal)
    if (examination.findings.some(({ severity }) => severity === 'problem')) process.exitCode = exitStatus.failed
  })
}

async function examine(
  address: string | undefined,
  wait: number | undefined,
  signal: AbortSignal
): Promise<SeenExamination> {
  if (address === undefined) return { endpoint: undefined, examination: await examineHere(wait, signal) }
  // Loaded only now: help and usage errors need none of it.
  const { askForExamination } = await import('../../agent/inventory/ask.ts')
  try {
    return {
      endpoint: address,
      examination: await askForExamination(address, { deadlineMs: ANSWER_DEADLINE_MS, signal })
    }
  } catch (thrown) {
    signal.throwIfAborted()
    const error = asDeltamapperError(thrown)
    if (error.code === 'DM_CONFIG_INVALID') throw new UsageError(error.message, error.remedy)
    const examination = await examineHere(wait, signal)
    return {
      endpoint: undefined,
      examination: { ...examination, findings: [silent(address, error), ...examination.findings] }
    }
  }
}

function silent(about: string, { code, message, remedy }: DeltamapperError): Finding {
  // The transport's own message is long and useless.
  const why = code === 'DM_UNREACHABLE' ? `no agent answers at ${about}` : message
  const what = `${why}: this command has looked at the node by itself`
  return { severity: 'problem', kind: 'agent-silent', about, what, remedy, command: '' }
}

/** Without an agent: its catalog stays closed, and LVM is the `lvm` of this machine. */
async function examineHere(wait: number | undefined, signal: AbortSignal): Promise<Examination> {
  const [{ DeviceMapper }, { agentConfig }, { Inventory }, { LvmReporter }] = await Promise.all([
    import('../../../native/device-mapper.ts'),
    import('../../agent/config.ts'),
    import('../../agent/inventory/inventory.ts'),
    import('../../agent/lvm/report.ts')
  ])
  const { lvmCommand, catalog: catalogPath, examinationDeadlineSeconds } = agentConfig.parse({})
  const deviceMapper = new DeviceMapper()
  const lvm = new LvmReporter({ command: lvmCommand })
  const inventory = new Inventory({
    live: { deviceMapper, lvm, lvmCommand, catalogPath },
    recordedPools: [],
    deadlineMs: (wait ?? examinationDeadlineSeconds) * 1000
  })
  const interrupted = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => {
      reject(signal.reason as Error)
    })
  })
  try {
    return await Promise.race([inventory.examine(), interrupted])
  } finally {
    await inventory.close()
    if (!signal.aborted) await deviceMapper.close()
  }
}

/** Tells a user at a terminal that something is happening, if it takes longer. */
async function whileWaiting<T>(what: string, work: () => Promise<T>): Promise<T> {
  const { stderr } = process
  let shown = false
  const timer = setTimeout(() => {
    shown = stderr.isTTY
    if (shown) stderr.write(what)
  }, WAITING_SHOWN_AFTER_MS)
  try {
    return await work()
  } finally {
    clearTimeout(timer)
    if (shown) stderr.write(CLEAR_LINE)
  }
}
