/**
 * `deltamapper nbd TARGET`: a snapshot for the tools that people have, with what changed in it.
 */
import { type Command, Option } from 'commander'
import { addTlsOptions, DEFAULT_ENDPOINT, ENDPOINT_VARIABLE } from '../command-line/endpoint.ts'
import { UsageError } from '../command-line/failure.ts'
import { byteCount, recordedPool } from '../command-line/option-values.ts'
import type { NbdOptions } from '../answers/nbd-options.ts'

// eslint-disable-next-line max-lines-per-function -- one command's options and help, which are read together
export function addNbdCommand(program: Command): void {
  const command = program
    .command('nbd')
    .summary('serve a snapshot over NBD, for qemu-img, nbdcopy, nbdinfo and others: full and incremental backups')
    .description(
      'Serves snapshot TARGET, read-only, as a network block device: its data, what it has allocated (base:allocation), and what ' +
        'changed since each BASE (qemu:dirty-bitmap:BASE). The export BASE..TARGET shows unchanged ranges as holes that are not zeros, ' +
        'which `qemu-img convert -B` leaves to the backing file: an incremental backup. Always give qemu-img `-f raw`.'
    )
    .argument('<TARGET>', 'the snapshot, as SOURCE/NAME; with --metadata a thin device id')
    .option('--base <snapshot>', 'an older snapshot of the same volume; may be given several times', collected)
    .addOption(
      new Option(
        '--endpoint <address>',
        `ask the agent at this socket (default: $${ENDPOINT_VARIABLE}, else ${DEFAULT_ENDPOINT}), and read the snapshot's block device`
      ).conflicts(['metadata', 'recorded'])
    )
  addTlsOptions(command)
    .option(
      '--device <path>',
      "the snapshot's block device (default: /dev/SOURCE/NAME; of a tracked volume, what LVM took below)"
    )
    .option('--activate', "activate the snapshot's logical volume, and deactivate it at the end")
    .addOption(
      new Option(
        '--metadata <file>',
        "read a copy of a thin pool's metadata instead, or its device while the pool is inactive"
      ).conflicts('recorded')
    )
    .option('--data <file>', "with --metadata: the pool's data, a copy or a device")
    .option('--size <bytes>', 'with --metadata: size of TARGET, which metadata does not hold', byteCount)
    .option('--base-size <bytes>', 'with --metadata: size of each BASE', byteCount)
    .option(
      '--base-record <file>',
      'with --metadata: the record of a base that is gone (`deltamapper base save`), which is called by its thin device id; may be given several times',
      collected
    )
    .option('--live-root', 'with --metadata: read the live pool even where a metadata snapshot is held')
    .option('--recorded <name=dir>', 'a recorded pool instead: a folder with images and a description', recordedPool)
    .addOption(
      new Option('--socket <path>', 'listen on this unix socket until SIGTERM or SIGINT').conflicts(['run', 'list'])
    )
    .option('--socket-mode <mode>', 'who may connect (default: 0600)', mode)
    .addOption(
      new Option(
        '--run <command>',
        'run a shell command with $uri, $increment and $socket set, and end with it'
      ).conflicts('list')
    )
    .option('--rate <bytes>', 'read no more than so many bytes a second of the data', byteCount)
    .option('--list', 'print exports and contexts, and end')
    .addHelpText(
      'after',
      `
$uri leads to TARGET, $increment to BASE..TARGET of the first BASE. Started by a
systemd socket unit, it serves the socket that it is given.

Every map is walked to its end once before the first client is let in. Before
any data or state leaves, the snapshot has to be what it was; where it is not,
requests fail, the client's tool ends with an error, and so does this command.

Exit status:
  0    stopped by SIGTERM or SIGINT; with --list: printed
  1    it could not start, or something could not be served: stderr says why
  2    the command line is wrong
With --run it is the command's, but never 0 where something was not served.

Examples:
  deltamapper nbd vg0/monday --run 'qemu-img convert -f raw -O qcow2 "$uri" full.qcow2'
  deltamapper nbd vg0/tuesday --base vg0/monday --run \\
    'qemu-img convert -f raw -O qcow2 -B full.qcow2 -F qcow2 "$increment" inc1.qcow2'
  deltamapper nbd demo/tuesday --base demo/monday --recorded demo=/srv/recorded-pool --list
  deltamapper nbd 7 --base 3 --metadata tmeta.img --data tdata.img \\
    --size 20GiB --base-size 20GiB --socket /run/nbd.sock`
    )
    .action(async (target: string, options: NbdOptions) => {
      const { runNbd } = await import('./run-nbd.ts')
      await runNbd(target, options)
    })
}

function collected(text: string, previous: string[] = []): string[] {
  return [...previous, text]
}

function mode(text: string): number {
  if (/^0?[0-7]{3}$/.test(text)) return Number.parseInt(text, 8)
  throw new UsageError(`${JSON.stringify(text)} is no mode of a socket`, 'give one such as 0600 or 0660')
}
