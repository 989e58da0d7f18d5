/** `deltamapper volume …`: thin volumes in owned pools. */
import type { Command } from 'commander'
import { addAdminOptions, adminHelp, type AdminOptions, handle, type HandleArgument, order } from './admin-command.ts'
import { addDestructiveOptions, type Confirmed, confirmed } from './confirmation.ts'
import { byteCount, count } from '../command-line/option-values.ts'
import { volumeFacts, volumesTable } from '../output/pool-tables.ts'

const volumeArgument = ['<POOL/NAME>', 'the volume', handle] as const

export function addVolumeCommand(program: Command): void {
  const volume = program
    .command('volume')
    .summary('make and manage volumes in owned pools')
    .description(
      'Thin volumes in owned pools (`deltamapper pool`). A volume takes space from its pool when it is ' +
        'written to. Its size is the most that it may take.'
    )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper volume create tank/documents --size 100GiB
  mkfs.ext4 /dev/mapper/tank-documents
  deltamapper volume grow tank/documents --size 200GiB`
    )

  for (const add of [addCreate, addList, addGrow, addActivate, addDeactivate, addDelete, addAdopt, addForget])
    add(volume)
}

function addCreate(volume: Command): void {
  addAdminOptions(
    volume
      .command('create')
      .summary('make a volume, and its block device')
      .description('Makes a volume, and its block device /dev/mapper/POOL-NAME. Dashes inside either name are doubled.')
      .argument('<POOL/NAME>', 'the pool, and the name of the new volume', handle)
      .requiredOption('--size <bytes>', 'a multiple of 512; it may be more than the pool has', byteCount)
      .option('--inactive', 'make no block device yet')
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper volume create tank/documents --size 100GiB
  deltamapper volume create tank/archive --size 2TiB --inactive`
    )
    .action(
      async (at: HandleArgument, { size, inactive = false, ...options }: AdminOptions & SizeOption & Inactive) => {
        await order(options, (agent) => agent.createVolume({ ...at, sizeBytes: size, inactive }), volumeFacts)
      }
    )
}

function addList(volume: Command): void {
  addAdminOptions(
    volume
      .command('list')
      .summary('the volumes of a pool, or of all')
      .description('Lists the volumes of a pool, or of all pools.')
      .argument('[POOL]', 'one pool; all of them if left out')
  )
    .addHelpText(
      'after',
      `${adminHelp}\n\nExamples:\n  deltamapper volume list\n  deltamapper volume list tank -o json`
    )
    .action(async (pool: string | undefined, options: AdminOptions) => {
      await order(
        options,
        (agent) => agent.listVolumes({ pool: pool ?? '' }),
        ({ volumes }) => volumesTable(volumes, 'volume')
      )
    })
}

function addGrow(volume: Command): void {
  addAdminOptions(
    volume
      .command('grow')
      .summary('make a volume larger')
      .description('Makes a volume larger. It stays in use. Enlarge its file system afterwards, with its own tool.')
      .argument(...volumeArgument)
      .requiredOption('--size <bytes>', 'the new size, a multiple of 512', byteCount)
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper volume grow tank/documents --size 200GiB
  resize2fs /dev/mapper/tank-documents
  deltamapper volume list tank`
    )
    .action(async (at: HandleArgument, { size, ...options }: AdminOptions & SizeOption) => {
      await order(options, (agent) => agent.growVolume({ ...at, sizeBytes: size }), volumeFacts)
    })
}

function addActivate(volume: Command): void {
  addAdminOptions(
    volume
      .command('activate')
      .summary('make the block device of a volume')
      .description('Makes the block device of a volume. The pool must be active.')
      .argument(...volumeArgument)
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper volume activate tank/documents
  deltamapper volume activate tank/documents -o json | jq -r .device.path`
    )
    .action(async (at: HandleArgument, options: AdminOptions) => {
      await order(options, (agent) => agent.activateVolume({ ...at, writable: false }), volumeFacts)
    })
}

function addDeactivate(volume: Command): void {
  addAdminOptions(
    volume
      .command('deactivate')
      .summary('remove the block device of a volume')
      .description('Removes the block device of a volume that is not in use. The volume keeps its content.')
      .argument(...volumeArgument)
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper volume deactivate tank/documents
  deltamapper volume list tank`
    )
    .action(async (at: HandleArgument, options: AdminOptions) => {
      await order(options, (agent) => agent.deactivateVolume(at), volumeFacts)
    })
}

function addDelete(volume: Command): void {
  addDestructiveOptions(
    volume
      .command('delete')
      .summary('delete a volume with its content')
      .description(
        'Deletes a volume that is not in use, with its content. Its snapshots stay, and can still be ' + 'compared.'
      )
      .argument(...volumeArgument)
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper volume delete tank/documents
  deltamapper volume delete tank/documents --yes -o json`
    )
    .action(async (at: HandleArgument, { yes, ...options }: AdminOptions & Confirmed) => {
      await confirmed(`volume ${at.pool}/${at.name} is deleted with all data in it`, yes)
      await order(
        options,
        async (agent) => {
          await agent.deleteVolume(at)
          return { deleted: `${at.pool}/${at.name}` }
        },
        ({ deleted }) => `volume ${deleted} is deleted\n`
      )
    })
}

function addAdopt(volume: Command): void {
  addAdminOptions(
    volume
      .command('adopt')
      .summary('add a thin device that only the kernel has to the catalog')
      .description(
        'Gives a name and a size to a thin device that another program has made in the pool. Thin metadata ' +
          'has neither. Give the size that the device was used with: blocks beyond it would be missing from ' +
          'backups.'
      )
      .argument('<POOL/NAME>', 'the pool, and what it is to be called', handle)
      .requiredOption('--thin-id <id>', 'its thin device id, as `deltamapper pool check` tells', count)
      .requiredOption('--size <bytes>', 'its size, a multiple of 512', byteCount)
      .option('--origin <name>', 'the volume or snapshot that it is a snapshot of; a volume, if left out')
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper pool check tank
  deltamapper volume adopt tank/found --thin-id 7 --size 10GiB
  deltamapper volume adopt tank/tuesday --thin-id 8 --size 100GiB --origin documents`
    )
    .action(async (at: HandleArgument, { size, thinId, origin = '', ...options }: AdminOptions & AdoptOptions) => {
      await order(options, (agent) => agent.adoptThin({ ...at, thinId, sizeBytes: size, origin }), volumeFacts)
    })
}

function addForget(volume: Command): void {
  addDestructiveOptions(
    volume
      .command('forget')
      .summary('remove a volume or snapshot that the pool has lost from the catalog')
      .description(
        'Removes a volume or snapshot from the catalog that is no longer in the pool. If it still is in the ' +
          'pool, delete it (`deltamapper volume delete`).'
      )
      .argument('<POOL/NAME>', 'the volume or snapshot', handle)
      .option('--unseen', 'even if the pool cannot be read, so that nothing shows whether it is gone')
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper pool check tank
  deltamapper volume forget tank/documents`
    )
    .action(async (at: HandleArgument, { unseen = false, yes, ...options }: ForgetOptions) => {
      await confirmed(`the catalog's record of ${at.pool}/${at.name} is struck off`, yes)
      await order(
        options,
        async (agent) => {
          await agent.forgetThin({ ...at, unseen })
          return { forgotten: `${at.pool}/${at.name}` }
        },
        ({ forgotten }) => `${forgotten} is forgotten\n`
      )
    })
}

interface ForgetOptions extends AdminOptions, Confirmed {
  unseen?: boolean
}

interface SizeOption {
  size: number
}

interface Inactive {
  inactive?: boolean
}

interface AdoptOptions extends SizeOption {
  thinId: number
  origin?: string
}
