/**
 * `deltamapper delta BASE TARGET`: what an incremental backup has to copy.
 */
import type { Command } from 'commander'
import { addExtentsOptions, answerExtents, extentsHelp } from './extents-command.ts'
import { era, eraBlockSize } from '../command-line/option-values.ts'
import type { ExtentsOptions } from './show-extents.ts'

export function addDeltaCommand(program: Command): void {
  const command = program
    .command('delta')
    .summary('what changed from one snapshot to another: the extents of an incremental backup')
    .description(
      'Lists the byte ranges in which snapshot TARGET differs from snapshot BASE of the same volume, without reading the volume. ' +
        'What was discarded in between is listed too: it reads as zeros now. An incremental backup copies these ranges onto ' +
        'a copy of BASE. With --since, lists what was written to a device below an era target since an era.'
    )
    .usage(
      '[options] <BASE> <TARGET>\n       deltamapper delta [options] --xml <file>\n       deltamapper delta [options] --metadata <file> --since <era>\n       deltamapper delta [options] --xml <file> --since <era> | --block-size <bytes>'
    )
    .argument('[BASE]', 'the older snapshot, as SOURCE/NAME; with --metadata a thin device id')
    .argument('[TARGET]', 'the newer snapshot')
  addExtentsOptions(command, true)
    .option(
      '--since <era>',
      'with the --metadata of an era device, or what era_dump has printed: what was written to in this era and later; without BASE and TARGET',
      era
    )
    .option(
      '--block-size <bytes>',
      "with what era_invalidate has printed: the size of the era device's blocks, which it does not say",
      eraBlockSize
    )
    .addHelpText(
      'after',
      `${extentsHelp}

Examples:
  deltamapper delta vg0/data-monday vg0/data-tuesday
  deltamapper delta demo/snap-1 demo/snap-2 --endpoint unix:///tmp/agent.sock -o ndjson
  deltamapper delta 3 7 --metadata /dev/mapper/vg0-pool_tmeta -o map
  deltamapper delta --metadata /dev/vg0/era-metadata --since 17 --size 20GiB
  thin_delta --thin1 3 --thin2 7 tmeta.img | deltamapper delta --xml - --size 20GiB
  era_dump era.img | deltamapper delta --xml - --since 17 --size 20GiB
  deltamapper delta --xml blocks.xml --block-size 64KiB --size 20GiB`
    )
    .action(async (base: string | undefined, target: string | undefined, options: ExtentsOptions) =>
      answerExtents({ ask: 'delta', base, target }, options)
    )
}
