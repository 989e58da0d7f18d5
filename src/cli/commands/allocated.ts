/**
 * `deltamapper allocated TARGET`: what a full backup has to copy.
 */
import type { Command } from 'commander'
import { addExtentsOptions, answerExtents, extentsHelp, rangesHelp } from './extents-command.ts'
import type { ExtentsOptions } from './show-extents.ts'

export function addAllocatedCommand(program: Command): void {
  const command = program
    .command('allocated')
    .summary('list the allocated extents of a snapshot, for a full backup')
    .description(
      'Lists the byte ranges of snapshot TARGET that are allocated, without reading the volume. ' +
        'A full backup copies these; everything else reads as zeros.'
    )
    .usage('[options] <TARGET>\n       deltamapper allocated [options] --xml <file> [TARGET]')
    .argument('[TARGET]', 'a snapshot handle, SOURCE/NAME; with --metadata or --xml a thin device id')
  addExtentsOptions(command, false)
    .addHelpText(
      'after',
      `${extentsHelp}${rangesHelp}

Examples:
  deltamapper allocated vg0/data-monday
  deltamapper allocated demo/snap-1 --endpoint unix:///tmp/agent.sock -o json
  deltamapper allocated 3 --metadata /dev/mapper/vg0-pool_tmeta --size 20GiB -o map
  deltamapper allocated 3 --xml pool.xml --size 20GiB`
    )
    .action(async (target: string | undefined, options: ExtentsOptions) =>
      answerExtents({ ask: 'allocated', target }, options)
    )
}
