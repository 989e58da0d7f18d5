/**
 * The command line: the commands, and how they end. A command is loaded when it is called, and its needs when it runs:
 * loading takes longer than many an answer.
 */
import { Command, CommanderError } from 'commander'
import { searchPath } from '../search-path.ts'
import { describeFailure, UsageError } from './command-line/failure.ts'
import { packageVersion } from './command-line/version.ts'

/** The commands, in the order in which help lists them. */
const commands: Record<string, () => Promise<(program: Command) => void>> = {
  agent: async () => (await import('./commands/agent.ts')).addAgentCommand,
  router: async () => (await import('./commands/router.ts')).addRouterCommand,
  allocated: async () => (await import('./commands/allocated.ts')).addAllocatedCommand,
  delta: async () => (await import('./commands/delta.ts')).addDeltaCommand,
  kube: async () => (await import('./commands/kube.ts')).addKubeCommand,
  base: async () => (await import('./commands/base.ts')).addBaseCommand,
  inspect: async () => (await import('./commands/inspect.ts')).addInspectCommand,
  doctor: async () => (await import('./commands/doctor.ts')).addDoctorCommand,
  pool: async () => (await import('./commands/pool.ts')).addPoolCommand,
  volume: async () => (await import('./commands/volume.ts')).addVolumeCommand,
  snapshot: async () => (await import('./commands/snapshot.ts')).addSnapshotCommand,
  era: async () => (await import('./commands/era.ts')).addEraCommand,
  nbd: async () => (await import('./commands/nbd.ts')).addNbdCommand,
  backup: async () => (await import('./commands/backup.ts')).addBackupCommand,
  conformance: async () => (await import('./commands/conformance.ts')).addConformanceCommand,
  mock: async () => (await import('./commands/mock.ts')).addMockCommand
}

/**
 * How long V8 may finish compiling in other threads, in milliseconds. `process.exit` waits for those threads. One that
 * waits for a garbage collection in this thread would wait for ever, and the process with it (nodejs/node#54918; one
 * failure of 200 on a busy machine).
 */
const PAUSE_BEFORE_EXIT_MS = 100

/** Runs one command; ends the process unless it succeeded. */
export async function main(args: readonly string[]): Promise<void> {
  const { stdout, stderr, env } = process
  // Before anything is started, including by libraries.
  env['PATH'] = searchPath(env['PATH'])
  // The writer gets a failed write by its callback. Without these, the stream would report it a second time, and
  // fatally.
  stdout.on('error', () => undefined)
  stderr.on('error', () => undefined)
  try {
    await run(args)
  } catch (thrown) {
    const { line, status } = describeFailure(thrown)
    // Text that is still on its way to stdout is not awaited: its reader may be gone.
    stderr.write(line === undefined ? '' : `${line}\n`, () =>
      setTimeout(() => process.exit(status), PAUSE_BEFORE_EXIT_MS)
    )
  }
}

async function run(args: readonly string[]): Promise<void> {
  let help = ''
  // Options of the program itself, help, and usage errors are for all of them.
  const asked = Object.keys(commands).filter((name) => name === args[0])
  const program = await commandLine((text) => (help += text), asked.length > 0 ? asked : undefined)
  try {
    await program.parseAsync(args, { from: 'user' })
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    if (error.exitCode !== 0) throw usageError(error, program, args)
    const { written } = await import('./output/text-output.ts')
    await written(process.stdout, help)
  }
}

/**
 * The definitions of commands: what is parsed, and what man pages and completion are made from.
 *
 * @param writeOut gets the text of help
 */
export async function commandLine(writeOut: (text: string) => void, names = Object.keys(commands)): Promise<Command> {
  const program = new Command('deltamapper')
    .description(
      'Tells which blocks of a Linux volume are allocated in a snapshot, and which changed between two ' +
        'snapshots. It reads the metadata that device-mapper keeps, not the volume.'
    )
    .version(packageVersion(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print help for the program, or for a command')
    .configureOutput({ writeOut, writeErr: () => undefined })
    .exitOverride()
  for (const name of names) (await commands[name]())(program)
  return program.addHelpText(
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
}

/** Commander's errors in our form. */
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
