/**
 * Drivers that flood, hang or send garbage cannot fill the checker, hang it, or keep it from its verdict. Each run is
 * a process of its own, whose memory is looked at. Two seconds a run; HOSTILE_PATIENCE=command has the patience of the
 * command, which ends within 300 seconds.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import type { Report } from '../../src/conformance/conformance.ts'
import { nodeFlags } from '../cli/run-command.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
const script = (name: string) => fileURLToPath(new URL(name, import.meta.url))

/** Bytes. */
const MOST_MEMORY = 200 * 1024 * 1024

/** Runs the suite with little patience, and prints the report and the most memory that it had. */
const checker = `
  const { runConformance } = await import(${JSON.stringify(script('../../src/conformance/conformance.ts'))})
  const [endpoint] = process.argv.slice(-1)
  const { report } = await runConformance({
    endpoint, snapshots: ['a', 'b'], otherSnapshots: ['c'], patience: process.env.HOSTILE_PATIENCE === 'command' ? {} : { callMs: 700, runMs: 2000, slowReaderMs: 100 }
  })
  console.log(JSON.stringify({ report, bytes: process.resourceUsage().maxRSS * 1024 }))`

for (const [what, expected] of [
  ['one-byte-messages', /is no response of the service/],
  ['empty-messages', /block_metadata_type 0/],
  ['tuples', /no end within the time that it had, after \d+ messages, \d+ tuples/],
  ['same-tuples', /begins before \d+, where one before it ended/],
  ['one-huge-message', /no end within the time that it had|has 4294967295 bytes/],
  ['ten-gigabytes', /no end within the time that it had/],
  ['garbage', /compressed|no response of the service/],
  ['silent', /no end within the time that it had/]
] as const) {
  test.serial(`a driver that sends ${what}`, async (t) => {
    t.timeout(900_000)
    const path = join(folder, `${what}.sock`)
    const driver = spawn(process.execPath, [script('hostile-driver.ts'), what, path], {
      stdio: ['ignore', 'pipe', 'inherit']
    })
    t.teardown(() => driver.kill('SIGKILL'))
    await once(driver.stdout, 'data')
    const began = performance.now()
    const child = spawn(
      process.execPath,
      [...nodeFlags, '--input-type=module', '--eval', checker, '--', `unix://${path}`],
      {
        stdio: ['ignore', 'pipe', 'inherit']
      }
    )
    t.teardown(() => child.kill('SIGKILL'))
    let said = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => (said += text))
    await once(child, 'close')
    const { report, bytes } = JSON.parse(said) as { report: Report; bytes: number }
    const seconds = (performance.now() - began) / 1000
    const failed = report.rules.filter(({ outcome }) => outcome === 'fail')
    t.true(failed.length > 0)
    t.regex(failed.map(({ seen }) => seen).join('\n'), expected)
    t.true(bytes < MOST_MEMORY, `${Math.round(bytes / 1024 / 1024)} MiB`)
    t.log(
      `${Math.round(bytes / 1024 / 1024)} MiB, ${seconds.toFixed(1)} s, failed ${failed.map(({ number }) => number).join(' ')}`
    )
  })
}
