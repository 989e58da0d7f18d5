/**
 * `deltamapper snapshot …`: snapshots in pools of the agent's own.
 */
import type { Command } from 'commander'
import { addAdminOptions, adminHelp, type AdminOptions, handle, type HandleArgument, order } from './admin-command.ts'
import { volumeFacts, volumesTable } from './output/pool-tables.ts'

export function addSnapshotCommand(program: Command): void {
  const snapshot = program
    .command('snapshot')
    .summary('take and delete snapshots in pools of our own')
    .description(
      'Snapshots of the volumes that the agent has made (`deltamapper volume`). They take no space until the volume is written to, and ' +
        'need no block device to be backed up: `deltamapper allocated POOL/NAME` and `deltamapper delta` work on them as they are.'
    )
    .addHelpText(
      'after',
      `
Exit status:
  0    it is done, and shown
  1    it is not: stderr says why, and what to do
  2    the command line is wrong

Examples:
  deltamapper snapshot create tank/documents monday
  deltamapper allocated tank/monday
  deltamapper snapshot activate tank/monday`
    )

  addAdminOptions(
    snapshot
      .command('create')
      .summary('take a snapshot')
      .description(
        'Takes a snapshot of a volume (or of a snapshot), as POOL/NAME. A file system that is mounted is frozen for the moment that it ' +
          'takes, so that what the snapshot holds is of one moment, and needs no repair.'
      )
      .argument('<POOL/VOLUME>', 'what to take it of', handle)
      .argument('<NAME>', 'what the snapshot is to be called')
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper snapshot create tank/documents monday
  deltamapper snapshot create tank/documents "$(date +%F)" -o json`
    )
    .action(async ({ pool, name: origin }: HandleArgument, name: string, options: AdminOptions) => {
      await order(options, (agent) => agent.createSnapshot({ pool, origin, name }), volumeFacts)
    })

  addAdminOptions(
    snapshot
      .command('list')
      .summary('the snapshots of a pool, or of all')
      .description('Lists the snapshots of a pool, or of all pools.')
      .argument('[POOL]', 'one pool; all of them if left out')
  )
    .addHelpText(
      'after',
      `${adminHelp}\n\nExamples:\n  deltamapper snapshot list\n  deltamapper snapshot list tank -o json`
    )
    .action(async (pool: string | undefined, options: AdminOptions) => {
      await order(
        options,
        (agent) => agent.listSnapshots({ pool: pool ?? '' }),
        ({ snapshots }) => volumesTable(snapshots, 'snapshot')
      )
    })

  addAdminOptions(
    snapshot
      .command('activate')
      .summary('make a block device of a snapshot, to read from it')
      .description(
        'Makes a block device of a snapshot: read-only, because one that was written to can no longer be the base of an incremental backup.'
      )
      .argument('<POOL/NAME>', 'the snapshot', handle)
      .option('--writable', 'let it be written to, and give up on that')
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper snapshot activate tank/monday
  mount -o ro /dev/mapper/tank-monday /mnt
  deltamapper snapshot activate tank/scratch --writable`
    )
    .action(async (at: HandleArgument, { writable = false, ...options }: AdminOptions & { writable?: boolean }) => {
      await order(options, (agent) => agent.activateVolume({ ...at, writable }), volumeFacts)
    })

  addAdminOptions(
    snapshot
      .command('deactivate')
      .summary('remove the block device of a snapshot')
      .description('Removes the block device of a snapshot that nobody uses. The snapshot stays.')
      .argument('<POOL/NAME>', 'the snapshot', handle)
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper snapshot deactivate tank/monday
  deltamapper snapshot list tank`
    )
    .action(async (at: HandleArgument, options: AdminOptions) => {
      await order(options, (agent) => agent.deactivateVolume(at), volumeFacts)
    })

  addAdminOptions(
    snapshot
      .command('delete')
      .summary('delete a snapshot')
      .description(
        'Deletes a snapshot that nobody uses. Keep the newest one that was backed up: without it, the next backup is a full one.'
      )
      .argument('<POOL/NAME>', 'the snapshot', handle)
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper snapshot delete tank/monday
  deltamapper snapshot delete tank/monday -o json`
    )
    .action(async (at: HandleArgument, options: AdminOptions) => {
      await order(
        options,
        async (agent) => {
          await agent.deleteSnapshot(at)
          return { deleted: `${at.pool}/${at.name}` }
        },
        ({ deleted }) => `snapshot ${deleted} is deleted\n`
      )
    })
}
