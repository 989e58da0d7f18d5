/** `deltamapper backup …`: snapshots into chains of qcow2 files, which any qemu-img restores. */
import { type Command, Option } from 'commander'
import { DEFAULT_ENDPOINT, ENDPOINT_VARIABLE } from '../command-line/endpoint.ts'
import { atLeastOne, byteCount, recordedPool, seconds } from '../command-line/option-values.ts'
import type { BackupOptions, PruneCommandOptions, RestoreCommandOptions, VerifyCommandOptions } from './run-backup.ts'

const outputOption = () =>
  new Option('-o, --output <format>', 'how to show the answer').choices(['table', 'json']).default('table')

const endHelp = `
Exit status:
  0    it is done, and shown
  1    it is not: stderr says why, and what to do
  2    the command line is wrong
  130  interrupted (Ctrl-C)`

export function addBackupCommand(program: Command): void {
  // Otherwise `backup` takes the options of its subcommands for its own, where they are called the same.
  const backup = program
    .enablePositionalOptions()
    .command('backup')
    .summary('back up volumes: changed blocks only, into qcow2 files that any qemu-img restores')
    .enablePositionalOptions()
  addMake(backup)
  for (const add of [addList, addRestore, addVerify, addPrune]) add(backup)
}

function addMake(backup: Command): void {
  addSourceOptions(
    backup
      .description(
        'Takes a snapshot of each VOLUME and stores it in DIR/VOLUME: a full backup first, then what changed. `list`, ' +
          '`restore`, `verify` and `prune` work on what is there.'
      )
      .argument('[VOLUME...]', 'VG/LV or POOL/VOLUME; a tracked volume by its name')
      .option('--to <dir>', 'the folder of all backups, which has to exist')
      .option('--snapshot <name>', 'store this snapshot, which is there already, and leave it alone')
      .option('--keep-snapshot', 'keep the newest snapshot in the pool, as the base of the next backup')
      .option('--cow-size <bytes>', 'space for the snapshot of a volume that is not thin (lvcreate --size)', byteCount)
  )
    .option('--full', 'a full backup, also where an increment would do')
    .option('--keep <points>', 'prune to so many points afterwards', atLeastOne)
    .option('--compress', 'compress what is stored')
    .option('--rate <bytes>', 'read no more than so many bytes a second', byteCount)
    .option('--no-freeze', 'do not freeze the file systems of several volumes for their snapshots')
    .option('--before <command>', 'run this shell command before the snapshots; where it fails, none is taken')
    .option('--after <command>', 'run this shell command after the snapshots, before they are copied')
    .option('--hook-deadline <seconds>', 'how long each of them may take', seconds, 60)
    .option('--metric-file <file>', "write figures for node_exporter's textfile collector")
    .addOption(outputOption())
    .addHelpText(
      'after',
      `
Snapshots of LVM are made and removed here, by lvcreate and lvremove: read-only, and
with a tag by which the next run finds what a killed one has left. Those of owned
pools and tracked volumes are made by the agent.

An increment is made only onto a backup of the very base that it changed from. Where
that is not certain, a full backup is made, and said why. No snapshot stays in the
pool: the agent has a record of the last one, which counts until the machine is
restarted. --keep-snapshot keeps the newest snapshot itself, and classic snapshots
(--cow-size) need that: they leave no record.

Needs qemu-img and qemu-io (Debian: qemu-utils).
${endHelp}

Examples:
  deltamapper backup vg0/home --to /srv/backup --keep 14
  deltamapper backup vg0/db vg0/wal --to /srv/backup \\
    --before 'systemctl stop db' --after 'systemctl start db'
  deltamapper backup vg0/root --to /srv/backup --keep-snapshot --cow-size 2GiB
  deltamapper backup demo/harbour --snapshot monday --recorded demo=/srv/recorded-pool --to /srv/backup
  deltamapper backup list /srv/backup
  deltamapper backup restore /srv/backup --volume vg0/home --point 20261130T020000Z --to home.img`
    )
    .action(async (volumes: string[], options: BackupOptions) => {
      const { runBackup } = await import('./run-backup.ts')
      await runBackup(volumes, options)
    })
}

function addSourceOptions(command: Command): Command {
  return command
    .addOption(
      new Option(
        '--endpoint <address>',
        `the unix socket of the agent (default: $${ENDPOINT_VARIABLE}, else ${DEFAULT_ENDPOINT})`
      ).conflicts('recorded')
    )
    .option('--recorded <name=dir>', 'read a recorded pool instead, without agent and kernel', recordedPool)
}

function addList(backup: Command): void {
  backup
    .command('list')
    .summary('the points that can be restored')
    .description('Lists the points of all volumes in DIR, oldest first.')
    .argument('<DIR>', 'the folder of all backups')
    .addOption(outputOption())
    .addHelpText('after', `${endHelp}\n\nExamples:\n  deltamapper backup list /srv/backup -o json`)
    .action(async (dir: string, { output }: { output: 'table' | 'json' }) => {
      const { runList } = await import('./run-backup.ts')
      await runList(dir, output)
    })
}

function addRestore(backup: Command): void {
  backup
    .command('restore')
    .summary('write a point to a file or a block device')
    .description(
      'Writes a point to a file or a block device. The files that it is read through are held against their digests ' +
        'first. A device must not be in use, and has to be as large as the volume was.'
    )
    .argument('<DIR>', 'the folder of all backups')
    .requiredOption('--volume <volume>', 'whose point')
    .requiredOption('--point <point>', 'which one, as `list` names it')
    .requiredOption('--to <path>', 'a file, or a block device')
    .option('--force', 'also over a file that is there, or onto a larger device')
    .option('--unverified', 'do not read the files first')
    .addOption(outputOption())
    .addHelpText(
      'after',
      `
Without deltamapper: \`qemu-img convert -f qcow2 -O raw DIR/VOLUME/POINT.qcow2 PATH\`.
${endHelp}

Examples:
  deltamapper backup restore /srv/backup --volume vg0/home --point 20261130T020000Z --to home.img
  deltamapper backup restore /srv/backup --volume vg0/home --point 20261130T020000Z --to /dev/vg0/restored`
    )
    .action(async (dir: string, options: RestoreCommandOptions) => {
      const { runRestore } = await import('./run-backup.ts')
      await runRestore(dir, options)
    })
}

function addVerify(backup: Command): void {
  addSourceOptions(
    backup
      .command('verify')
      .summary('read all backups, and hold them against their digests')
      .description(
        'Reads every file in DIR and holds it against its digest. The newest point of each volume is compared with ' +
          'its snapshot, while that is there.'
      )
      .argument('<DIR>', 'the folder of all backups')
      .option('--volume <volume>', 'this one only')
  )
    .addOption(outputOption())
    .addHelpText('after', `${endHelp}\n\nExamples:\n  deltamapper backup verify /srv/backup`)
    .action(async (dir: string, options: VerifyCommandOptions) => {
      const { runVerify } = await import('./run-backup.ts')
      await runVerify(dir, options)
    })
}

function addPrune(backup: Command): void {
  backup
    .command('prune')
    .summary('keep the newest points only')
    .description(
      'Drops the oldest points of each volume and keeps N. The oldest that stays becomes a full backup, by `qemu-img ' +
        'commit`. That reads the oldest file twice, for its digest. A prune that is cut off is finished by the next run.'
    )
    .argument('<DIR>', 'the folder of all backups')
    .requiredOption('--keep <points>', 'how many points of each volume stay', atLeastOne)
    .option('--volume <volume>', 'this one only')
    .addOption(outputOption())
    .addHelpText('after', `${endHelp}\n\nExamples:\n  deltamapper backup prune /srv/backup --keep 14`)
    .action(async (dir: string, options: PruneCommandOptions) => {
      const { runPrune } = await import('./run-backup.ts')
      await runPrune(dir, options)
    })
}
