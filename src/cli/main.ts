/**
 * The command line: which commands there are, and how they end. What a command needs is loaded when it runs.
 */
import { Command, CommanderError } from 'commander'
import { addAgentCommand } from './agent.ts'
import { addAllocatedCommand } from './allocated.ts'
import { addDeltaCommand } from './delta.ts'
import { addDoctorCommand } from './doctor.ts'
import { addEraCommand } from './era.ts'
import { describeFailure, UsageError } from './failure.ts'
import { addInspectCommand } from './inspect.ts'
import { written } from './output/text-output.ts'
import { addKubeCommand } from './kube.ts'
import { addPoolCommand } from './pool.ts'
import { addRouterCommand } from './router.ts'
import { addSnapshotCommand } from './snapshot.ts'
import { packageVersion } from './version.ts'
import { addVolumeCommand } from './volume.ts'

/** Runs one command; ends the process unless it went well. */
export async function main(args: readonly string[]): Promise<void> {
  const { stdout, stderr } = process
  // Whoever writes is told of a failed write by its callback. Without these, the stream would say it a second time, and fatally.
  stdout.on('error', () => undefined)
  stderr.on('error', () => undefined)
  try {
    await run(args)
  } catch (thrown) {
    const { line, status } = describeFailure(thrown)
    // What is still on its way to stdout is not waited for: nobody may be reading it.
    stderr.write(line === undefined ? '' : `${line}\n`, () => process.exit(status))
  }
}

async function run(args: readonly string[]): Promise<void> {
  let help = ''
  const program = new Command('deltamapper')
    .description(
      'Tells which blocks of a Linux volume are allocated in a snapshot, and which changed between two snapshots, from ' +
        'the metadata that device-mapper keeps: without reading the volume.'
    )
    .version(packageVersion(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this, or with a command what it does')
    .configureOutput({ writeOut: (text) => (help += text), writeErr: () => undefined })
    .exitOverride()
  addAgentCommand(program)
  addRouterCommand(program)
  addAllocatedCommand(program)
  addDeltaCommand(program)
  addKubeCommand(program)
  addInspectCommand(program)
  addDoctorCommand(program)
  addPoolCommand(program)
  addVolumeCommand(program)
  addSnapshotCommand(program)
  addEraCommand(program)
  program.addHelpText(
    'after',
    `
All sizes and offsets are in bytes. Exit status: 0 complete, 2 wrong usage,
otherwise not complete; then one line on stderr says what is wrong and what to
do.

Examples:
  deltamapper agent --listen unix:///tmp/agent.sock --recorded demo=/srv/recorded-pool
  deltamapper delta demo/snap-1 demo/snap-2 --endpoint unix:///tmp/agent.sock
  deltamapper delta 3 7 --metadata /dev/mapper/vg0-pool_tmeta -o map
  deltamapper inspect /dev/mapper/vg0-pool_tmeta
  deltamapper doctor`
  )
  try {
    await program.parseAsync(args, { from: 'user' })
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    if (error.exitCode !== 0) throw usageError(error, program, args)
    await written(process.stdout, help)
  }
}

/** What Commander has against the command line, in our form. */
function usageError({ code, message }: CommanderError, program: Command, args: readonly string[]): UsageError {
  const command = program.commands.find((each) => each.name() === args[0])
  const subcommand = command?.commands.find((each) => each.name() === args[1])
  const words = ['deltamapper', command?.name(), subcommand?.name(), '--help'].filter((word) => word !== undefined)
  const help = `\`${words.join(' ')}\``
  if (code === 'commander.help') {
    return new UsageError('no command was given', `${help} lists them`, 'DM_ARGUMENT_MISSING')
  }
  const what = message.replace(/^error: /, '').replace(/\.?\s*$/, '')
  return new UsageError(what, `see ${help}`, code.startsWith('commander.missing') ? 'DM_ARGUMENT_MISSING' : undefined)
}
