/**
 * A server that takes orders, for tests of the commands that give them.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestFn } from 'ava'
import { pino } from 'pino'
import type { InventoryBackend } from '../../src/grpc/inventory.ts'
import { startServer } from '../../src/grpc/server.ts'
import { recordingBackend, type RecordedCall } from '../grpc/admin-backend.ts'
import { ExtentBackend } from '../grpc/extent-backend.ts'
import { type CommandResult, runCommand } from './run-command.ts'

export interface AdminAgent {
  endpoint: string
  /** Runs a command against it; what it was asked, with how the command ended. */
  order(...words: string[]): Promise<CommandResult & { calls: RecordedCall[] }>
}

/** One that records what it is asked. */
export async function adminAgent(
  folder = mkdtempSync(join(tmpdir(), 'dm-cli-')),
  name = 'agent',
  endpoint = `unix://${folder}/${name}.sock`,
  more: { admin?: undefined; inventory?: InventoryBackend } = {}
) {
  const { backend, calls } = recordingBackend()
  const server = await startServer({
    ...{ listen: [endpoint], backend: new ExtentBackend(), admin: backend },
    ...{ identity: { driverName: 'test.deltamapper.dev' }, logger: pino({ level: 'silent' }) },
    ...more
  })
  return { endpoint, calls, stop: () => server.drain(0) }
}

/** One for each order, so that tests can run at once. */
export function adminAgents(test: TestFn): Pick<AdminAgent, 'order'> {
  const folder = mkdtempSync(join(tmpdir(), 'dm-cli-'))
  test.after.always(() => rmSync(folder, { recursive: true }))
  let started = 0
  return {
    async order(...words) {
      const { endpoint, calls, stop } = await adminAgent(folder, String(started++))
      try {
        return { ...(await runCommand([...words, '--endpoint', endpoint])), calls }
      } finally {
        await stop()
      }
    }
  }
}

/** What the help of a command has to tell; returns what is missing. */
export async function helpLacks(...words: string[]): Promise<string[]> {
  const { status, stdout, stderr } = await runCommand([...words, '--help'])
  const lacks: string[] = []
  if (status !== 0 || stderr !== '') lacks.push(`it ended with ${status}: ${stderr}`)
  if (!stdout.startsWith(`Usage: deltamapper ${words.join(' ')} `)) lacks.push('its usage')
  if (!/Exit status:\n {2}0 /.test(stdout)) lacks.push('its exit status')
  const examples = stdout.slice(stdout.indexOf('Examples:')).split('\n')
  if (examples.filter((line) => line.startsWith('  deltamapper ')).length < 2) lacks.push('two examples')
  lacks.push(...stdout.split('\n').filter((line) => line.length > 100))
  return lacks
}
