/**
 * What the commands that give an agent orders have in common: where it is, what is shown, and handles taken apart.
 */
import { type Command, InvalidArgumentError, Option } from 'commander'
import { DEFAULT_ENDPOINT, ENDPOINT_VARIABLE } from './endpoint.ts'
import type { AdminOptions } from './admin-calls.ts'

/** Adds the options of all of them. */
export function addAdminOptions(command: Command): Command {
  return command
    .option(
      '--endpoint <address>',
      `the unix socket of the agent that drives the pools (default: $${ENDPOINT_VARIABLE}, else ${DEFAULT_ENDPOINT})`
    )
    .addOption(new Option('-o, --output <format>', 'how to show it').choices(['table', 'json']).default('table'))
}

/** What all of them say of themselves below their options. */
export const adminHelp = `
Exit status:
  0    it is done, and shown
  1    it is not: stderr says why, and what to do
  2    the command line is wrong
  141  whoever read the output stopped reading`

/** A volume or snapshot and its pool. */
export interface HandleArgument {
  pool: string
  name: string
}

/** POOL/NAME. What may be a name is the agent's to say. */
export function handle(text: string): HandleArgument {
  const [, pool, name] = /^([^/]+)\/([^/]+)$/.exec(text) ?? []
  if (pool === undefined) throw new InvalidArgumentError('It is POOL/NAME, as in tank/documents.')
  return { pool, name }
}

/** Gives an order. What that takes is loaded only now: help and usage errors need none of it. */
export async function order(
  options: AdminOptions,
  give: (calls: typeof import('./admin-calls.ts')) => Promise<void>
): Promise<void> {
  void options
  await give(await import('./admin-calls.ts'))
}
