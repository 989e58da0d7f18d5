/**
 * Commands that read XML: given it on standard input, and what a complete answer of theirs says.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Extent } from '../../support/expected.ts'
import { command, type CommandResult } from '../run-command.ts'

/** Runs it with something on standard input. */
export async function withInput(args: string[], input: string | Buffer): Promise<CommandResult> {
  const child = spawn(process.execPath, [command, ...args], { stdio: ['pipe', 'pipe', 'pipe'] })
  const result = { status: null as number | null, stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => (result.stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (result.stderr += text))
  // It may have heard enough before it has read it all.
  child.stdin.on('error', () => undefined).end(input)
  const [status] = (await once(child, 'close')) as [number | null]
  return { ...result, status }
}

/** The extents of a complete answer, and the size it has them in. */
export function answerOf({ status, stdout, stderr }: CommandResult): { extents: Extent[]; size: number } {
  if (status !== 0) throw new Error(`status ${status}: ${stderr}`)
  const { volume_capacity_bytes, block_metadata } = JSON.parse(stdout) as {
    volume_capacity_bytes: number
    block_metadata: { byte_offset: number; size_bytes: number }[]
  }
  return {
    extents: block_metadata.map(({ byte_offset, size_bytes }) => [byte_offset, size_bytes]),
    size: volume_capacity_bytes
  }
}
