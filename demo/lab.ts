/**
 * `npm run lab`: the whole story with a live kernel. Boots one as an ordinary process (test/lab/), and tells lab-story.ts inside it, which
 * appears here as it happens. Needs neither root nor device-mapper on this machine. Ends with 0 only if everything agreed.
 */
import { fileURLToPath } from 'node:url'
import { mapStyle } from '../src/cli/output/map.ts'
import { projectNode } from '../scripts/setup.mjs'
import { LabFailure, LabUnavailable, startLab } from '../test/lab/boot.ts'

/** The story takes a minute, and as long as it has to on a busy machine: whoever takes an hour hangs. */
const TIMEOUT_SECONDS = 3600
const DISK_BYTES = 8 * 2 ** 30

const begin = performance.now()
// Only out here is a terminal to look at.
const style = mapStyle(process.stdout.isTTY ? process.stdout.columns : undefined, process.env)
try {
  console.log('Booting a Linux kernel of its own, as an ordinary process ...')
  const lab = await startLab({
    command: [projectNode, fileURLToPath(new URL('lab-story.ts', import.meta.url)), JSON.stringify(style)],
    diskBytes: DISK_BYTES,
    timeoutSeconds: TIMEOUT_SECONDS,
    onOutput: (stream, chunk) => process[stream].write(chunk)
  })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => lab.kill())
  const { status, consoleLog } = await lab.result
  console.log(`Took ${((performance.now() - begin) / 1000).toFixed(0)} s, from the kernel's boot to its end.`)
  if (consoleLog !== undefined) console.error(`lab: the kernel's messages: ${consoleLog}`)
  process.exitCode = status
} catch (error) {
  if (!(error instanceof LabUnavailable) && !(error instanceof LabFailure)) throw error
  console.error(`lab: ${error.message}`)
  process.exitCode = error instanceof LabUnavailable ? 3 : 4
}
