/**
 * `deltamapper inspect FILE-OR-DEVICE`: shows the metadata of a thin pool or of an era device, or a classic snapshot's
 * store.
 */
import { type Command, Option } from 'commander'
import type { InspectOptions } from './show-inspection.ts'

export function addInspectCommand(program: Command): void {
  program
    .command('inspect')
    .summary("show the metadata of a thin pool or era device, or a classic snapshot's store")
    .description(
      "Shows a thin pool's metadata: the superblock, the metadata snapshot and its age, and all thin " +
        'devices with their mapped blocks, creation times and, as far as that can be told, origins. Shows an ' +
        "era device's metadata: the current era, the metadata snapshot, and the eras not yet digested. Checks " +
        'and shows a base record. Of the store of a classic LVM snapshot, shows its chunk size, how many chunks ' +
        'of the origin it has copied, and how full it is. Reads only.'
    )
    .argument(
      '<METADATA-FILE-OR-DEVICE>',
      'the metadata device (LVM: /dev/mapper/VG-POOL_tmeta, /dev/mapper/VG-SNAPSHOT-cow), or a copy of it'
    )
    .option('--live-root', 'list the devices of the live pool even if a metadata snapshot is held')
    .addOption(new Option('-o, --output <format>', 'how to show it').choices(['table', 'json']).default('table'))
    .addHelpText(
      'after',
      `
Times are readings of the pool's clock, which counts the snapshots taken. Sizes
are in bytes; a block that several devices map counts in each of them.

Exit status:
  0    all of it is shown
  1    it is not: stderr says why, and what to do
  2    the command line is wrong
  130  interrupted (Ctrl-C)
  141  the reader of the output stopped reading

Examples:
  deltamapper inspect /dev/mapper/vg0-pool_tmeta
  deltamapper inspect metadata.img --live-root
  deltamapper inspect /dev/mapper/vg0-monday-cow
  deltamapper inspect metadata.img -o json | jq '.devices[] | select(.mapped_blocks > 1000) | .id'`
    )
    .action(async (path: string, options: InspectOptions) => {
      const { showInspection } = await import('./show-inspection.ts')
      await showInspection(path, options)
    })
}
