/**
 * The programs of test/lab/deploy-tools.ts, for tests: those that need one are left out, and say so, where they cannot be had.
 */
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import test, { type ExecutionContext } from 'ava'
import { ensureDeployTools, type Program } from '../lab/deploy-tools.ts'
import { LabUnavailable } from '../lab/packages.ts'

export const project = fileURLToPath(new URL('../..', import.meta.url))

const unavailable = await ensureDeployTools().then(
  () => undefined,
  (error: unknown) => {
    // Where CI is set, nothing may be left out.
    if (error instanceof LabUnavailable && !process.env['CI']) return error.message
    throw error
  }
)

export function toolTest(title: string, run: (t: ExecutionContext) => Promise<void>): void {
  if (unavailable === undefined) test(title, run)
  else test.skip(`${title} (${unavailable})`, run)
}

export interface Ended {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

/** Runs a program to its end, whatever that is; in the project's folder unless told otherwise. */
export function runTool(
  { path, env }: Program,
  args: readonly string[],
  { cwd = project, input }: { cwd?: string; input?: string } = {}
): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = execFile(path, args, { cwd, env, maxBuffer: 2 ** 24 }, (error, stdout, stderr) => {
      if (error !== null && typeof error.code !== 'number') reject(new Error(error.message, { cause: error }))
      else resolve({ status: error === null ? 0 : Number(error.code), stdout, stderr })
    })
    child.stdin?.on('error', () => undefined).end(input ?? '')
  })
}
