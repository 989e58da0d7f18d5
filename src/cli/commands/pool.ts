/** `deltamapper pool …`: owned pools, which the agent makes and manages. */
import { type Command, Option } from 'commander'
import { addAdminOptions, adminHelp, type AdminOptions, order } from './admin-command.ts'
import { addDestructiveOptions, type Confirmed, confirmed } from './confirmation.ts'
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
    .summary('make and manage owned pools: thin pools of the agent')
    .description(
      'Owned pools: thin pools that the agent makes of two block devices and manages itself, on plain ' +
        "device-mapper. Their volumes and snapshots are POOL/NAME; names and sizes are in the agent's " +
        "catalog. LVM's pools are served without these commands, which refuse them."
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

  for (const add of [addCreate, addList, addShow, addActivate, addDeactivate, addGrow, addRemove, addCheck, addAccept])
    add(pool)
}

function addCreate(pool: Command): void {
  addAdminOptions(
    pool
      .command('create')
      .summary('make a pool of two blank devices')
      .description(
        'Makes pool NAME of a data and a metadata device, and activates it. Both must be blank: a device with ' +
          'a file system, a partition table or another pool is refused. Use stable links, such as those in ' +
          '/dev/disk/by-id.'
      )
      .argument('<NAME>', 'at most 63 letters, digits and + _ . -')
      .requiredOption('--data <device>', 'the device for the blocks of its volumes')
      .requiredOption(
        '--metadata <device>',
        "the device for the pool's metadata: 2 MiB or more, 48 bytes for each data block"
      )
      .option('--block-size <bytes>', 'the size of a data block: 64KiB to 1GiB, a multiple of 64KiB', byteCount, 65536)
      .option('--low-water <bytes>', 'warn at so much free data space (default: 5 %)', byteCount)
      .addOption(
        new Option('--when-full <how>', 'what a write does that finds no free block: it fails, or waits for a minute')
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
}

function addList(pool: Command): void {
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
}

function addShow(pool: Command): void {
  addAdminOptions(
    pool
      .command('show')
      .summary('everything about one pool')
      .description(
        'Shows how full pool NAME is, its state, its devices, and whether its metadata snapshot is held ' +
          '(`deltamapper doctor` shows by whom).'
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
}

function addActivate(pool: Command): void {
  addAdminOptions(
    pool
      .command('activate')
      .summary('activate a pool, for example after a restart of the machine')
      .description(
        'Activates pool NAME, on the devices that it was made of. The agent never does that by itself. If the ' +
          'devices have grown, so has the pool. Their content must be what the pool left there.'
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
}

function addDeactivate(pool: Command): void {
  addAdminOptions(
    pool
      .command('deactivate')
      .summary('deactivate a pool')
      .description('Deactivates pool NAME. Everything stays on its devices.')
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
}

function addGrow(pool: Command): void {
  addAdminOptions(
    pool
      .command('grow')
      .summary('enlarge a pool, after its devices have grown')
      .description(
        'Enlarges pool NAME to the whole of its data and metadata devices, after you have enlarged these. Its ' +
          'volumes stay in use.'
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
}

function addRemove(pool: Command): void {
  addDestructiveOptions(
    pool
      .command('remove')
      .summary('forget a pool that is empty')
      .description(
        'Deactivates and forgets pool NAME, which must have no volumes and snapshots. Its devices keep their ' +
          'content, unless --wipe makes the start of both blank for another use.'
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
    .action(async (name: string, { wipe = false, yes, ...options }: AdminOptions & Confirmed & { wipe?: boolean }) => {
      if (wipe) await confirmed(`pool ${name} is forgotten, and the start of both of its devices overwritten`, yes)
      await order(
        options,
        async (agent) => {
          await agent.removePool({ pool: name, wipe })
          return { removed: name }
        },
        () => `pool ${name} is removed\n`
      )
    })
}

function addCheck(pool: Command): void {
  addAdminOptions(
    pool
      .command('check')
      .summary('compare the catalog with the kernel')
      .description(
        "Compares the agent's catalog with the kernel, and recovers interrupted changes. Lists every other " +
          'difference with what you can do about it, and does not change these.'
      )
      .argument('[NAME]', 'one pool; all of them if left out')
  )
    .addHelpText('after', `${adminHelp}\n\nExamples:\n  deltamapper pool check\n  deltamapper pool check tank -o json`)
    .action(async (name: string | undefined, options: AdminOptions) => {
      await order(options, (agent) => agent.reconcile({ pool: name ?? '' }), reconciliation)
    })
}

function addAccept(pool: Command): void {
  addDestructiveOptions(
    pool
      .command('accept')
      .summary("take over the kernel's transaction id")
      .description(
        "Use this after another program changed pool NAME. Takes over the kernel's transaction id, and rolls " +
          'back an unfinished change that contradicts it. First find out which program it was; `deltamapper ' +
          'pool check` shows what has changed.'
      )
      .argument('<NAME>', 'the pool')
  )
    .addHelpText('after', `${adminHelp}\n\nExamples:\n  deltamapper pool check tank\n  deltamapper pool accept tank`)
    .action(async (name: string, { yes, ...options }: AdminOptions & Confirmed) => {
      await confirmed(`pool ${name} is taken as the kernel has it: what was begun and contradicts it is given up`, yes)
      await order(options, (agent) => agent.acceptKernel({ pool: name }), poolFacts)
    })
}
