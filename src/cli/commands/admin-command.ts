/**
 * The common part of commands that change something through an agent: its endpoint, the display of its answer, and the
 * parsing of handles.
 */
import { type Command, InvalidArgumentError, Option } from 'commander'
import type { AdminClient } from '../../grpc/admin-client.ts'
import { withAdmin } from '../command-line/agent-orders.ts'
import { DEFAULT_ENDPOINT, ENDPOINT_VARIABLE } from '../command-line/endpoint.ts'
import { written } from '../output/text-output.ts'

export interface AdminOptions {
  endpoint?: string
  output: 'table' | 'json'
}

/** Adds the options of all of them. */
export function addAdminOptions(command: Command): Command {
  return command
    .option(
      '--endpoint <address>',
      `the unix socket of the agent that has the pools (default: $${ENDPOINT_VARIABLE}, else ${DEFAULT_ENDPOINT})`
    )
    .addOption(
      new Option('-o, --output <format>', 'how to show the answer').choices(['table', 'json']).default('table')
    )
}

/** What all of them say of themselves below their options. */
export const adminHelp = `
Exit status:
  0    it is done, and shown
  1    it is not: stderr says why, and what to do
  2    the command line is wrong
  141  the reader of the output stopped reading`

/** A volume or snapshot and its pool. */
export interface HandleArgument {
  pool: string
  name: string
}

/** POOL/NAME. What may be a name is for the agent to say. */
export function handle(text: string): HandleArgument {
  const [, pool, name] = /^([^/]+)\/([^/]+)$/.exec(text) ?? []
  if (pool === undefined) throw new InvalidArgumentError('It is POOL/NAME, as in tank/documents.')
  return { pool, name }
}

/**
 * Gives an order, and shows the answer. The agent carries out what it has begun, whatever becomes of this process.
 *
 * @throws what the agent answers; DM_UNREACHABLE; UsageError
 */
export async function order<T>(
  { endpoint, output }: AdminOptions,
  give: (agent: AdminClient) => Promise<T>,
  table: (answer: T) => string
): Promise<void> {
  await withAdmin(endpoint, async (agent) => {
    const answer = await give(agent)
    await written(process.stdout, output === 'json' ? `${JSON.stringify(forJson(answer))}\n` : table(answer))
  })
}

/** Field names as in the protocol; 64-bit ids as strings, because most parsers round numbers beyond 2^53. */
export function forJson(value: unknown): unknown {
  if (typeof value === 'bigint') return String(value)
  if (Array.isArray(value)) return value.map(forJson)
  if (typeof value !== 'object' || value === null) return value
  const snakeCase = (key: string) => key.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [snakeCase(key), forJson(each)]))
}
