/**
 * `deltamapper inspect FILE-OR-DEVICE`: what the metadata of a thin pool, an era device or a classic snapshot says of it.
 */
import { type Command, Option } from 'commander'
import type { InspectOptions } from './show-inspection.ts'

export function addInspectCommand(program: Command): void {
  program
    .command('inspect')
    .summary(
      "what a thin pool's metadata says of the pool and its devices, or an era device's of its eras, or a classic snapshot's store of what it has copied"
    )
    .description(
      "Shows the superblock of a thin pool's metadata, the metadata snapshot that may be held and how " +
        'old it is, and all thin devices with what they map, when they were created, and whose snapshot they are as far as ' +
        'that can be told. Of the metadata of an era device: which era it is in, the metadata snapshot, and the eras not yet ' +
        'digested. Of a base record: what it stands for, and that it is whole. Of the store of a classic LVM snapshot: its chunk size, how ' +
        'many chunks of the origin it has copied, and how full it is. Reads only.'
    )
    .argument(
      '<METADATA-FILE-OR-DEVICE>',
      'the metadata device (LVM: /dev/mapper/VG-POOL_tmeta, /dev/mapper/VG-SNAPSHOT-cow), or a copy of it'
    )
    .option('--live-root', 'list the devices of the live pool even where a metadata snapshot is held')
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
  141  whoever read the output stopped reading

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
