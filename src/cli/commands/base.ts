/** `deltamapper base …`: records of base snapshots, which replace them once they are removed. */
import { type Command, Option } from 'commander'
import { baseFacts, basesTable } from '../output/base-tables.ts'
import { addAdminOptions, adminHelp, type AdminOptions, order } from './admin-command.ts'
import { addDestructiveOptions, type Confirmed, confirmed } from './confirmation.ts'
import { refuseStray } from '../answers/stray-options.ts'
import { DEFAULT_ENDPOINT, ENDPOINT_VARIABLE } from '../command-line/endpoint.ts'
import { refuseThinId } from '../command-line/failure.ts'
import { byteCount } from '../command-line/option-values.ts'
import type { SaveOptions } from './save-base.ts'

/** With metadata, or from an agent. */
type SaveAnyOptions = Omit<SaveOptions, 'metadata'> & { readonly metadata?: string; readonly endpoint?: string }

export function addBaseCommand(program: Command): void {
  const base = program
    .command('base')
    .summary("record a snapshot's mappings, so that it may be removed and still be a base")
    .description(
      'A base record holds which data blocks a snapshot mapped, and when they were written: about 0.01 % of ' +
        'its data. With it, you can ask for a delta after the snapshot was removed.'
    )
  base
    .command('save')
    .summary("write a snapshot's record to a file")
    .description(
      'Writes the record of a snapshot to a file. Keep it with the backup of that snapshot: `delta --base-record` tells ' +
        'what changed since, also when the snapshot is gone. An agent hands out the record that it made when it answered ' +
        "about VG/LV. From a pool's metadata, the record of any thin device is made; it must not have been written to " +
        'since it was backed up.'
    )
    .usage(
      '[options] --to <file> <VG/LV>\n       deltamapper base save [options] --metadata <file> --to <file> <THIN-ID>'
    )
    .argument('<SNAPSHOT>', 'the handle by which an agent first served it; with --metadata, its thin device id')
    .addOption(
      new Option(
        '--endpoint <address>',
        `the unix socket of the agent that has served it (default: $${ENDPOINT_VARIABLE}, else ${DEFAULT_ENDPOINT})`
      ).conflicts('metadata')
    )
    .option('--metadata <file>', "a thin pool's metadata device, or a copy of it, in place of an agent")
    .requiredOption('--to <file>', 'where the record goes; what is there before is replaced, once the record is whole')
    .option('--size <bytes>', 'with --metadata: size of the snapshot (default: where its mappings end)', byteCount)
    .option('--live-root', 'with --metadata: read the live pool even if a metadata snapshot is held')
    .addHelpText(
      'after',
      `
Exit status:
  0    the record is written, and on disk
  1    it is not: stderr says why, and what to do
  2    the command line is wrong
  130  interrupted (Ctrl-C)

Examples:
  deltamapper base save vg0/monday --to monday.base
  deltamapper delta --base-record monday.base vg0/tuesday
  deltamapper base save 3 --metadata /dev/mapper/vg0-pool_tmeta --size 20GiB --to monday.base
  deltamapper inspect monday.base
  deltamapper delta --base-record monday.base 7 --metadata /dev/mapper/vg0-pool_tmeta`
    )
    .action(async (snapshot: string, { metadata, endpoint, ...options }: SaveAnyOptions) => {
      if (metadata !== undefined) {
        const { saveBase } = await import('./save-base.ts')
        await saveBase(snapshot, { metadata, ...options })
        return
      }
      refuseThinId(snapshot, 'VG/LV')
      refuseStray({ '--size': options.size, '--live-root': options.liveRoot }, 'an agent')
      const { saveAgentBase } = await import('./save-agent-base.ts')
      await saveAgentBase(snapshot, { to: options.to, ...(endpoint !== undefined && { endpoint }) })
    })
  addAgentCommands(base)
}

/** What an agent has. */
function addAgentCommands(base: Command): void {
  addAdminOptions(
    base
      .command('list')
      .summary('which snapshots an agent has served, and whether they may go')
      .description(
        'Lists the snapshots of thin pools that an agent has served. may-go: it may be removed, its record stands for it then. ' +
          'stands: it is gone, and its record stands for it. must-stay: without it, the next backup is a full one. ' +
          'lost: it is gone, and so is what it was a base for.'
      )
  )
    .addHelpText('after', `${adminHelp}\n\nExamples:\n  deltamapper base list\n  deltamapper base list -o json`)
    .action(async (options: AdminOptions) => {
      await order(options, (agent) => agent.listBases({}), basesTable)
    })
  addAdminOptions(
    base
      .command('show')
      .summary('one of them')
      .description('Shows what an agent knows of a snapshot that it has served, and of its record.')
      .argument('<VG/LV>', 'the handle by which it was first served')
  )
    .addHelpText(
      'after',
      `${adminHelp}\n\nExamples:\n  deltamapper base show vg0/monday\n  deltamapper base show '*/6b2d1e90-3c55-4f62-a4d5-8a61c9d3b001'`
    )
    .action(async (handle: string, options: AdminOptions) => {
      await order(options, (agent) => agent.getBase({ handle }), baseFacts)
    })
  addDestructiveOptions(
    base
      .command('drop')
      .summary('remove a record')
      .description(
        'Removes the record of a snapshot. If the snapshot is gone, what is backed up next has to be backed up in full.'
      )
      .argument('<VG/LV>', 'the handle by which it was first served')
  )
    .addHelpText(
      'after',
      `${adminHelp}\n\nExamples:\n  deltamapper base drop vg0/monday\n  deltamapper base drop vg0/monday --yes`
    )
    .action(async (handle: string, { yes, ...options }: AdminOptions & Confirmed) => {
      await confirmed(`the record of ${handle} is removed`, yes)
      await order(
        options,
        async (agent) => {
          await agent.dropBase({ handle })
          return { dropped: handle }
        },
        () => `the record of ${handle} is removed\n`
      )
    })
}
