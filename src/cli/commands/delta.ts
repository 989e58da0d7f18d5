/**
 * `deltamapper delta BASE TARGET`: what an incremental backup has to copy.
 */
import { type Command, Option } from 'commander'
import { addExtentsOptions, answerExtents, extentsHelp, rangesHelp } from './extents-command.ts'
import { era, eraBlockSize } from '../command-line/option-values.ts'
import type { ExtentsOptions } from './show-extents.ts'

export function addDeltaCommand(program: Command): void {
  const command = program
    .command('delta')
    .summary('list the extents that changed between two snapshots, for an incremental backup')
    .description(
      'Lists the byte ranges in which snapshot TARGET differs from snapshot BASE of the same volume, ' +
        'without reading the volume. Discarded blocks are listed too, because they read as zeros now. An ' +
        'incremental backup copies these ranges onto a copy of BASE. With --since, lists the blocks of an era ' +
        'device that were written since an era. With --cow, lists what differs between two classic LVM ' +
        'snapshots (lvcreate -s -L) of one volume.'
    )
    .usage(
      '[options] <BASE> <TARGET>\n       deltamapper delta [options] --xml <file>\n       deltamapper delta [options] --metadata <file> --since <era>\n       deltamapper delta [options] --base-record <file> <TARGET>\n       deltamapper delta [options] --xml <file> --since <era> | --block-size <bytes>\n       deltamapper delta [options] --cow <store> [--target-cow <store>] --size <bytes>'
    )
    .argument('[BASE]', 'the older snapshot, as SOURCE/NAME; with --metadata a thin device id')
    .argument('[TARGET]', 'the newer snapshot')
  addExtentsOptions(command, true)
    .option(
      '--since <era>',
      'with the --metadata of an era device, or the output of era_dump: list the blocks written in this era ' +
        'and later; without BASE and TARGET',
      era
    )
    .addOption(
      new Option(
        '--base-record <file>',
        'the record of a base that is gone (`deltamapper base save`), in place of BASE. It is lent to the agent that has ' +
          'made it; with --metadata, it is compared with that'
      ).conflicts(['xml', 'since'])
    )
    .option(
      '--block-size <bytes>',
      "with the output of era_invalidate: the size of the era device's blocks, which is not in it",
      eraBlockSize
    )
  addClassicOptions(command)
    .addHelpText(
      'after',
      `${extentsHelp}${rangesHelp}

Classic snapshots (--cow): a store does not say whose it is, nor which of two is
older, whether a merge is under way, or whether the snapshot was split off and
joined again. The agent asks LVM and the kernel; here, that is up to you. What it
lists is then all that differs, and without --compare some that does not.

Examples:
  deltamapper delta vg0/data-monday vg0/data-tuesday
  deltamapper delta demo/snap-1 demo/snap-2 --endpoint unix:///tmp/agent.sock -o ndjson
  deltamapper delta 3 7 --metadata /dev/mapper/vg0-pool_tmeta -o map
  deltamapper delta --base-record monday.base vg0/data-tuesday
  deltamapper delta --base-record monday.base 7 --metadata /dev/mapper/vg0-pool_tmeta
  deltamapper delta --metadata /dev/vg0/era-metadata --since 17 --size 20GiB
  thin_delta --thin1 3 --thin2 7 tmeta.img | deltamapper delta --xml - --size 20GiB
  era_dump era.img | deltamapper delta --xml - --since 17 --size 20GiB
  deltamapper delta --xml blocks.xml --block-size 64KiB --size 20GiB
  deltamapper delta --cow /dev/mapper/v-mon-cow --target-cow /dev/mapper/v-tue-cow --size 20GiB`
    )
    .action(async (base: string | undefined, target: string | undefined, options: ExtentsOptions) =>
      answerExtents({ ask: 'delta', base, target }, options)
    )
}

/** Answers from the stores of classic snapshots. */
function addClassicOptions(command: Command): Command {
  return command
    .addOption(
      new Option(
        '--cow <store>',
        "the store of the older of two classic LVM snapshots (/dev/mapper/VG-SNAPSHOT-cow), or a copy of it; with --size, the target's size"
      ).conflicts(['endpoint', 'metadata', 'xml', 'since', 'baseRecord'])
    )
    .option(
      '--target-cow <store>',
      'with --cow: the store of the newer one. Left out, nobody may have written into that snapshot: the older store does not show it'
    )
    .option(
      '--compare',
      'with --target-cow: compare the old contents of what both stores have, and leave out what is the same. Only where nobody has ever written into the older snapshot since its backup'
    )
}
