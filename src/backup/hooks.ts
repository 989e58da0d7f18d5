/** Commands that a person wants run around the snapshots, each with its deadline. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { DeltamapperError } from '../errors.ts'
import { childEnvironment } from '../search-path.ts'

/**
 * Runs a shell command to its end. What it prints goes to stderr: stdout is for answers.
 *
 * @param option the option that names it, for errors
 * @throws DM_HOOK_FAILED where it fails or passes its deadline: then its process group is killed
 */
export async function runHook(option: string, command: string, deadlineMs: number, volumes: string[]): Promise<void> {
  const child = spawn('/bin/sh', ['-c', command], {
    detached: true,
    stdio: ['ignore', process.stderr.fd, process.stderr.fd],
    env: childEnvironment({ DELTAMAPPER_VOLUMES: volumes.join(' ') })
  })
  let isLate = false
  const timer = setTimeout(() => {
    isLate = true
    if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
  }, deadlineMs)
  try {
    const [status, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null]
    if (status === 0) return
    const how = isLate ? `was not done after ${deadlineMs / 1000} s and was killed` : `ended with ${status ?? signal}`
    throw new DeltamapperError(
      'DM_HOOK_FAILED',
      `the command of ${option} ${how}`,
      'see what it printed, and run it by hand'
    )
  } finally {
    clearTimeout(timer)
  }
}
