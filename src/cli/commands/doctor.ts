/**
 * `deltamapper doctor`: what this node can do, what is missing, and the way out.
 */
import { type Command, Option } from 'commander'
import { DEFAULT_ENDPOINT, ENDPOINT_VARIABLE } from '../command-line/endpoint.ts'
import type { DoctorOptions } from './show-examination.ts'

export function addDoctorCommand(program: Command): void {
  program
    .command('doctor')
    .summary('what this node can do, and what stands in the way')
    .description(
      'Shows what matters to serving snapshots of this node: device-mapper, LVM, thin pools and how full they are, which snapshots ' +
        'can still serve as base, metadata snapshots that are held and whose they are; and what stands in the way, each with the ' +
        'way out. Asks the agent, which alone can look into its catalog; where none answers, looks by itself, and says so. ' +
        'Changes nothing.'
    )
    .addOption(
      new Option(
        '--endpoint <address>',
        `the unix socket of the agent (default: $${ENDPOINT_VARIABLE}, else ${DEFAULT_ENDPOINT})`
      ).conflicts('local')
    )
    .option('--local', 'do not ask an agent')
    .addOption(new Option('-o, --output <format>', 'how to show it').choices(['table', 'json']).default('table'))
    .addHelpText(
      'after',
      `
A finding is a problem (it stands in the way), a warning (it will, or may) or a
note. Where a command takes the way out, it is shown and never run.

Exit status:
  0    nothing stands in the way: no finding is a problem
  1    something does; the output is complete all the same
  2    the command line is wrong
  130  interrupted (Ctrl-C)
  141  whoever read the output stopped reading

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
