/**
 * `deltamapper doctor`: what this node can do, what is missing, and the way out.
 */
import { type Command, Option } from 'commander'
import { DEFAULT_ENDPOINT, ENDPOINT_VARIABLE } from '../command-line/endpoint.ts'
import { seconds } from '../command-line/option-values.ts'
import type { DoctorOptions } from './show-examination.ts'

export function addDoctorCommand(program: Command): void {
  program
    .command('doctor')
    .summary('find problems of this node, and their solutions')
    .description(
      "Inspects everything that serving this node's snapshots needs: device-mapper, LVM, thin pools and how " +
        'full they are, which snapshots can still be a base, and who holds metadata snapshots. Lists ' +
        'problems, each with its solution. Asks the agent, because only the agent can read its catalog. If ' +
        'none answers, inspects the node itself, and says so. Changes nothing.'
    )
    .addOption(
      new Option(
        '--endpoint <address>',
        `the unix socket of the agent (default: $${ENDPOINT_VARIABLE}, else ${DEFAULT_ENDPOINT})`
      ).conflicts('local')
    )
    .option('--local', 'do not ask an agent')
    .option(
      '--wait <seconds>',
      'without an agent: how long to wait for each thing it looks at, on a slow node (default: 8)',
      seconds
    )
    .addOption(new Option('-o, --output <format>', 'how to show it').choices(['table', 'json']).default('table'))
    .addHelpText(
      'after',
      `
A finding is a problem (something does not work), a warning (it will or may not) or
a note. If a command solves it, the command is shown and never run.

Exit status:
  0    no finding is a problem
  1    at least one is; the output is complete nevertheless
  2    the command line is wrong
  130  interrupted (Ctrl-C)
  141  the reader of the output stopped reading

Examples:
  deltamapper doctor
  deltamapper doctor --local
  deltamapper doctor -o json | jq -r '.findings[] | select(.severity == "problem") | .what'`
    )
    .action(async (options: DoctorOptions) => {
      const { showExamination } = await import('./show-examination.ts')
      await showExamination(options)
    })
}
