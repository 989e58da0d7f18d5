/**
 * `deltamapper pool …`: thin pools that the agent makes and drives itself.
 */
import { type Command, Option } from 'commander'
import { addAdminOptions, adminHelp, type AdminOptions, order } from './admin-command.ts'
import { byteCount } from '../command-line/option-values.ts'
import { poolFacts, poolsTable, reconciliation } from '../output/pool-tables.ts'

interface CreateOptions extends AdminOptions {
  data: string
  metadata: string
  blockSize: number
  lowWater?: number
  whenFull: 'error' | 'queue'
}

export function addPoolCommand(program: Command): void {
  const pool = program
    .command('pool')
    .summary('make and drive thin pools of our own')
    .description(
      'Thin pools that the agent makes of two block devices and drives itself, on plain device-mapper. What is in them goes by ' +
        "POOL/NAME. The agent keeps their book: names and sizes are in its catalog. LVM's pools are served as they are, and are not " +
        'for these commands.'
    )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper pool create tank --data /dev/sdb --metadata /dev/sdc
  deltamapper volume create tank/documents --size 100GiB
  deltamapper snapshot create tank/documents monday
  deltamapper delta tank/sunday tank/monday`
    )

  addAdminOptions(
    pool
      .command('create')
      .summary('make a pool of two devices that hold nothing')
      .description(
        'Makes pool NAME of a data and a metadata device, and activates it. Both must be blank: what holds a file system, a partition ' +
          'table or another pool is refused. Name them by links that stay the same, such as those in /dev/disk/by-id.'
      )
      .argument('<NAME>', 'at most 63 letters, digits and + _ . -')
      .requiredOption('--data <device>', 'where the blocks of its volumes go')
      .requiredOption(
        '--metadata <device>',
        'where it is kept which block is whose: 2 MiB or more, 48 bytes for each data block'
      )
      .option('--block-size <bytes>', 'what is mapped at once: 64KiB to 1GiB, a multiple of 64KiB', byteCount, 65536)
      .option('--low-water <bytes>', 'warn at so much free data space (default: a twentieth)', byteCount)
      .addOption(
        new Option(
          '--when-full <how>',
          'what becomes of a write that finds no free block: it fails, or waits for a minute'
        )
          .choices(['error', 'queue'])
          .default('error')
      )
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper pool create tank --data /dev/sdb --metadata /dev/sdc
  deltamapper pool create tank --data /dev/sdb --metadata /dev/sdc --block-size 256KiB`
    )
    .action(async (name: string, { data, metadata, blockSize, lowWater, whenFull, ...options }: CreateOptions) => {
      const request = {
        ...{ name, dataDevice: data, metadataDevice: metadata, blockBytes: blockSize, whenFull },
        ...(lowWater !== undefined && { lowWaterBytes: lowWater })
      }
      await order(options, (agent) => agent.createPool(request), poolFacts)
    })

  addAdminOptions(
    pool
      .command('list')
      .summary('all pools, and how full they are')
      .description('Lists the pools, and how full they are.')
  )
    .addHelpText('after', `${adminHelp}\n\nExamples:\n  deltamapper pool list\n  deltamapper pool list -o json`)
    .action(async (options: AdminOptions) => {
      await order(
        options,
        (agent) => agent.listPools({}),
        ({ pools }) => poolsTable(pools)
      )
    })

  addAdminOptions(
    pool
      .command('show')
      .summary('everything about one pool')
      .description(
        'Shows how full pool NAME is, what state it is in, what it stands on, and whether its metadata snapshot is held (whose it is, ' +
          '`deltamapper doctor` tells).'
      )
      .argument('<NAME>', 'the pool')
  )
    .addHelpText(
      'after',
      `${adminHelp}\n\nExamples:\n  deltamapper pool show tank\n  deltamapper pool show tank -o json`
    )
    .action(async (name: string, options: AdminOptions) => {
      await order(options, (agent) => agent.getPool({ pool: name }), poolFacts)
    })

  addAdminOptions(
    pool
      .command('activate')
      .summary('put a pool into use, as after a restart of the machine')
      .description(
        'Activates pool NAME, on the devices that it was made of. The agent never does that by itself. Where the devices have grown, so ' +
          'has the pool. What is on them must be what the pool left there.'
      )
      .argument('<NAME>', 'the pool')
      .option('--with-volumes', 'activate its volumes too (snapshots are not: they need no device to be backed up)')
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper pool activate tank
  deltamapper pool activate tank --with-volumes`
    )
    .action(async (name: string, { withVolumes = false, ...options }: AdminOptions & { withVolumes?: boolean }) => {
      await order(options, (agent) => agent.activatePool({ pool: name, withVolumes }), poolFacts)
    })

  addAdminOptions(
    pool
      .command('deactivate')
      .summary('take a pool out of use')
      .description('Takes pool NAME out of use. Everything stays on its devices.')
      .argument('<NAME>', 'the pool')
      .option('--with-volumes', 'deactivate its volumes and snapshots first; none of them may be in use')
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper pool deactivate tank
  deltamapper pool deactivate tank --with-volumes`
    )
    .action(async (name: string, { withVolumes = false, ...options }: AdminOptions & { withVolumes?: boolean }) => {
      await order(options, (agent) => agent.deactivatePool({ pool: name, withVolumes }), poolFacts)
    })

  addAdminOptions(
    pool
      .command('grow')
      .summary('take all of the devices, after they have grown')
      .description(
        'Lets pool NAME take the whole of its data and metadata devices, after you have enlarged them. Its volumes stay in use.'
      )
      .argument('<NAME>', 'the pool')
  )
    .addHelpText(
      'after',
      `${adminHelp}\n\nExamples:\n  deltamapper pool grow tank\n  deltamapper pool grow tank -o json`
    )
    .action(async (name: string, options: AdminOptions) => {
      await order(options, (agent) => agent.growPool({ pool: name }), poolFacts)
    })

  addAdminOptions(
    pool
      .command('remove')
      .summary('forget a pool that is empty')
      .description(
        'Deactivates and forgets pool NAME, which may have no volumes and snapshots any more. Its devices stay as they are, unless ' +
          '--wipe makes the start of both blank, so that they can be used again.'
      )
      .argument('<NAME>', 'the pool')
      .option('--wipe', 'overwrite the first MiB of both devices')
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper pool remove tank
  deltamapper pool remove tank --wipe`
    )
    .action(async (name: string, { wipe = false, ...options }: AdminOptions & { wipe?: boolean }) => {
      await order(
        options,
        async (agent) => {
          await agent.removePool({ pool: name, wipe })
          return { removed: name }
        },
        () => `pool ${name} is removed\n`
      )
    })

  addAdminOptions(
    pool
      .command('check')
      .summary('compare the catalog with the kernel')
      .description(
        'Compares what the agent has in its catalog with what the kernel has, settles what was interrupted, and tells everything else ' +
          'that disagrees, with what can be done about it. Of that, nothing is changed.'
      )
      .argument('[NAME]', 'one pool; all of them if left out')
  )
    .addHelpText('after', `${adminHelp}\n\nExamples:\n  deltamapper pool check\n  deltamapper pool check tank -o json`)
    .action(async (name: string | undefined, options: AdminOptions) => {
      await order(options, (agent) => agent.reconcile({ pool: name ?? '' }), reconciliation)
    })

  addAdminOptions(
    pool
      .command('accept')
      .summary('take the transaction id that the kernel has for right')
      .description(
        'On your word: takes the transaction id that the kernel has of pool NAME for right, after somebody else has moved it, and gives up ' +
          'what was begun and contradicts it. Find out who it was first; `deltamapper pool check` tells what has changed.'
      )
      .argument('<NAME>', 'the pool')
  )
    .addHelpText('after', `${adminHelp}\n\nExamples:\n  deltamapper pool check tank\n  deltamapper pool accept tank`)
    .action(async (name: string, options: AdminOptions) => {
      await order(options, (agent) => agent.acceptKernel({ pool: name }), poolFacts)
    })
}
