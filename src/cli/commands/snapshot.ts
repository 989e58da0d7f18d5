/** `deltamapper snapshot …`: snapshots in owned pools, and of tracked volumes. */
import type { Command } from 'commander'
import type { AdminResponse } from '../../grpc/admin.ts'
import type { AdminClient } from '../../grpc/admin-client.ts'
import { asDeltamapperError } from '../../errors.ts'
import { addAdminOptions, adminHelp, type AdminOptions, handle, type HandleArgument, order } from './admin-command.ts'
import { addDestructiveOptions, type Confirmed, confirmed } from './confirmation.ts'
import { endpointAddress } from '../command-line/endpoint.ts'
import { oneLine, UsageError } from '../command-line/failure.ts'
import { seconds } from '../command-line/option-values.ts'
import { eraSnapshotFacts, eraSnapshotsTable } from '../output/era-tables.ts'
import { volumeFacts, volumesTable } from '../output/pool-tables.ts'
import type { ServedSnapshot } from '../output/served-table.ts'

export function addSnapshotCommand(program: Command): void {
  const snapshot = program
    .command('snapshot')
    .summary('take and delete snapshots in owned pools, and of tracked volumes')
    .description(
      'Snapshots of volumes in owned pools (`deltamapper volume`). They take no space until the volume is ' +
        'written to. To be backed up they need no block device: `deltamapper allocated POOL/NAME` and ' +
        '`deltamapper delta` work without one. Also snapshots of tracked volumes (`deltamapper era`), which ' +
        'LVM or a configured command takes of the data device.'
    )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper snapshot create tank/documents monday
  deltamapper allocated tank/monday
  deltamapper snapshot activate tank/monday
  deltamapper snapshot create srv monday`
    )

  for (const add of [addCreate, addList, addActivate, addDeactivate, addDelete]) add(snapshot)
}

function addCreate(snapshot: Command): void {
  addAdminOptions(
    snapshot
      .command('create')
      .summary('take a snapshot')
      .description(
        'Takes a snapshot of a volume (or of a snapshot), as POOL/NAME, or of a tracked volume. A file system that is mounted is frozen for ' +
          'the moment that it takes, so that what the snapshot holds is of one moment, and needs no repair.'
      )
      .argument('<POOL/VOLUME|VOLUME>', 'what to take it of: without a slash, a tracked volume')
      .argument('<NAME>', 'what the snapshot is to be called')
      .option(
        '--deadline <seconds>',
        'how long a tracked volume may be suspended for it (default: as configured)',
        seconds
      )
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper snapshot create tank/documents monday
  deltamapper snapshot create tank/documents "$(date +%F)" -o json
  deltamapper snapshot create srv monday --deadline 10`
    )
    .action(async (of: string, name: string, { deadline, ...options }: AdminOptions & { deadline?: number }) => {
      if (!of.includes('/')) {
        const deadlineMs = (deadline ?? 0) * 1000
        const create = async (agent: AdminClient) => {
          const snapshot = await agent.createEraSnapshot({ volume: of, name, deadlineMs })
          if (snapshot.warning !== '') process.stderr.write(`deltamapper: ${snapshot.warning}\n`)
          return snapshot
        }
        await order(options, create, eraSnapshotFacts)
        return
      }
      const { pool, name: origin } = handle(of)
      if (deadline !== undefined) {
        throw new UsageError('--deadline is for tracked volumes', 'leave it out: a snapshot in a pool takes a moment')
      }
      await order(options, (agent) => agent.createSnapshot({ pool, origin, name }), volumeFacts)
    })
}

/** The snapshots of the agent's own pools, and what it serves as well. */
interface Listed {
  readonly snapshots: AdminResponse<'listSnapshots'>['snapshots']
  /** Undefined where the agent does not say. */
  readonly served?: readonly ServedSnapshot[]
}

/** How long the agent may look at its node, in milliseconds. */
const LOOK_MS = 300_000

/** All that there is. An agent that takes no orders serves snapshots all the same. @throws what the agent answers */
async function listed(agent: AdminClient, address: string): Promise<Listed> {
  const [{ askForExamination }, { servedSnapshots }] = await Promise.all([
    import('../../agent/inventory/ask.ts'),
    import('../output/served-table.ts')
  ])
  const [own, seen] = await Promise.allSettled([
    agent.listSnapshots({ pool: '' }),
    askForExamination(address, { deadlineMs: LOOK_MS })
  ])
  if (seen.status === 'rejected') {
    if (own.status === 'rejected') throw own.reason
    const { message } = asDeltamapperError(seen.reason)
    process.stderr.write(`deltamapper: what else this agent serves is not known: ${oneLine(message)}\n`)
    return own.value
  }
  if (own.status === 'fulfilled') return { ...own.value, served: servedSnapshots(seen.value, false) }
  if (asDeltamapperError(own.reason).code !== 'DM_SERVER_FAILED') throw own.reason
  return { snapshots: [], served: servedSnapshots(seen.value, true) }
}

function addList(snapshot: Command): void {
  addAdminOptions(
    snapshot
      .command('list')
      .summary('the snapshots of a pool or tracked volume, or of all')
      .description(
        'Lists the snapshots of a pool or of a tracked volume; without one, those of all pools that the agent manages, or ' +
          'of all tracked volumes; and then what else it serves: the snapshots of LVM, of other pools, and recorded ones.'
      )
      .argument('[POOL|VOLUME]', 'one pool or tracked volume')
      .option('--tracked', 'list those of tracked volumes instead of pools')
  )
    .addHelpText(
      'after',
      `${adminHelp}\n\nExamples:\n  deltamapper snapshot list\n  deltamapper snapshot list tank -o json\n  deltamapper snapshot list srv --tracked`
    )
    .action(async (of: string | undefined, { tracked = false, ...options }: AdminOptions & { tracked?: boolean }) => {
      if (tracked) {
        await order(
          options,
          (agent) => agent.listEraSnapshots({ volume: of ?? '' }),
          ({ snapshots }) => eraSnapshotsTable(snapshots)
        )
        return
      }
      if (of === undefined) {
        const { servedTable } = await import('../output/served-table.ts')
        await order(
          options,
          (agent) => listed(agent, endpointAddress(options.endpoint)),
          ({ snapshots, served = [] }) =>
            volumesTable(snapshots, 'snapshot') + (served.length === 0 ? '' : `\n${servedTable(served)}`)
        )
        return
      }
      await order(
        options,
        (agent) => agent.listSnapshots({ pool: of }),
        ({ snapshots }) => volumesTable(snapshots, 'snapshot')
      )
    })
}

function addActivate(snapshot: Command): void {
  addAdminOptions(
    snapshot
      .command('activate')
      .summary('make a block device of a snapshot, to read from it')
      .description(
        'Makes a block device of a snapshot. It is read-only, because a snapshot that was written to can no ' +
          'longer be the base of an incremental backup.'
      )
      .argument('<POOL/NAME>', 'the snapshot', handle)
      .option('--writable', 'let it be written to; it can no longer be a base')
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
}

function addDeactivate(snapshot: Command): void {
  addAdminOptions(
    snapshot
      .command('deactivate')
      .summary('remove the block device of a snapshot')
      .description('Removes the block device of a snapshot that is not in use. The snapshot stays.')
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
}

function addDelete(snapshot: Command): void {
  addDestructiveOptions(
    snapshot
      .command('delete')
      .summary('delete a snapshot')
      .description(
        'Deletes a snapshot that is not in use. Keep the newest one that you backed up: without it, the next ' +
          'backup is a full one. (A snapshot of a tracked volume can be a base even after it was deleted.)'
      )
      .argument('<POOL/NAME>', 'the snapshot; or VOLUME/NAME, of a tracked volume', handle)
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper snapshot delete tank/monday
  deltamapper snapshot delete tank/monday --yes -o json`
    )
    .action(async (at: HandleArgument, { yes, ...options }: AdminOptions & Confirmed) => {
      await confirmed(`snapshot ${at.pool}/${at.name} is deleted`, yes)
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
