/** `deltamapper mock`, after its command line is parsed. */
import { once } from 'node:events'
import { compareImage } from '../../mock/driver/images.ts'
import { startMock } from '../../mock/mock.ts'
import { listScenarios } from '../../mock/driver/scenario.ts'
import { exitStatus, UsageError } from '../command-line/failure.ts'
import { columns } from '../output/columns.ts'
import { written } from '../output/text-output.ts'

export interface MockCommandOptions {
  listen?: string
  scenario?: string
  seed?: number
  data?: string
  kubernetes?: string
  list?: boolean
}

/** Serves until it is told to stop. @throws UsageError, DM_CONFIG_INVALID, DM_SOCKET_IN_USE */
export async function runMock({ list, ...options }: MockCommandOptions): Promise<void> {
  if (list) {
    const rows = listScenarios().map(({ name, kind, summary }) => [name, kind, summary])
    await written(process.stdout, columns([['SCENARIO'], ['KIND'], ['WHAT IT DOES']], rows).replace(/^.*\n/, ''))
    return
  }
  if (options.listen === undefined && options.kubernetes === undefined) {
    throw new UsageError('no address was given', 'give one with --listen unix:///tmp/csi.sock', 'DM_ARGUMENT_MISSING')
  }
  const stopped = Promise.race([once(process, 'SIGTERM'), once(process, 'SIGINT')])
  const mock = await startMock(options)
  try {
    const lines = [`${mock.scenario.name}: ${mock.scenario.summary}`, `listening on ${mock.endpoint}`]
    if (mock.kubernetes !== undefined) lines.push(`kubeconfig: ${mock.kubernetes.kubeconfig}`)
    await written(process.stdout, `${lines.join('\n')}\n`)
    await stopped
  } finally {
    await mock.stop()
  }
}

/** Sets the process's exit status if they differ. @throws DM_SNAPSHOT_NOT_FOUND, DM_CONFIG_INVALID */
export async function checkImage(image: string, { data, snapshot }: { data: string; snapshot: string }): Promise<void> {
  const { expectedBytes, actualBytes, differing, more } = await compareImage(data, snapshot, image)
  const lines = differing.map(([offset, size]) => `bytes ${offset} to ${offset + size - 1} differ (${size} bytes)`)
  if (more) lines.push('and more')
  if (expectedBytes !== actualBytes) lines.unshift(`it has ${actualBytes} bytes, and the snapshot ${expectedBytes}`)
  if (lines.length > 0) process.exitCode = exitStatus.failed
  const verdict = lines.length > 0 ? `${image} is not ${snapshot}` : `${image} is ${snapshot}, byte for byte`
  await written(process.stdout, `${[verdict, ...lines].join('\n')}\n`)
}
