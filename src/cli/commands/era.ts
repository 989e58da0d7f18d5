/**
 * `deltamapper era …`: volumes that are no thin ones, and whose writes dm-era tracks.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Command } from 'commander'
import { asDeltamapperError, DeltamapperError } from '../../errors.ts'
import type { AdminResponse } from '../../grpc/admin.ts'
import type { AdminClient } from '../../grpc/admin-client.ts'
import { addAdminOptions, adminHelp, type AdminOptions, order } from './admin-command.ts'
import { addDestructiveOptions, type Confirmed, confirmed } from './confirmation.ts'
import { endpointAddress } from '../command-line/endpoint.ts'
import { UsageError } from '../command-line/failure.ts'
import { byteCount, seconds } from '../command-line/option-values.ts'
import { eraVolumeFacts, eraVolumesTable } from '../output/era-tables.ts'

/** How often to try again, in milliseconds. */
const WAIT_INTERVAL_MS = 250
/**
 * What may be different in a moment, while a machine starts: an agent that is not there yet, or again; a device;
 * somebody who looks at it.
 */
const PASSING = ['DM_UNREACHABLE', 'DM_SHUTTING_DOWN', 'DM_NO_SUCH_DEVICE', 'DM_DEVICE_BUSY']

const volumeArgument = ['<VOLUME>', 'the name that it was attached under'] as const

export function addEraCommand(program: Command): void {
  const era = program
    .command('era')
    .summary('track changed blocks of volumes that are not thin')
    .description(
      'Thick LVM volumes, partitions and disks have no mapping tree that could be compared. For them, the ' +
        "kernel's dm-era notes for each block when it was last written to. Use an attached volume as " +
        '/dev/mapper/VOLUME instead of the device below. Its snapshots (`deltamapper snapshot create VOLUME ' +
        'NAME`) can be compared like any others.'
    )
    .addHelpText(
      'after',
      `
Costs: after a snapshot, the first write to each block waits until its note is on the
metadata device. Discards (fstrim) have no effect, because dm-era would not see all of
them. Nothing may write to the data device beside the volume: mount /dev/mapper/VOLUME only.
${adminHelp}

Examples:
  umount /srv
  deltamapper era attach srv --data /dev/vg0/srv --metadata /dev/vg0/srv_era
  mount /dev/mapper/srv /srv
  deltamapper snapshot create srv monday
  deltamapper snapshot create srv tuesday
  deltamapper delta srv/monday srv/tuesday`
    )

  for (const add of [addAttach, addDetach, addStatus, addActivate, addDeactivate, addGrow]) add(era)
}

function addAttach(era: Command): void {
  addAdminOptions(
    era
      .command('attach')
      .summary('begin to track a device')
      .description(
        'Makes /dev/mapper/VOLUME over a device that is not in use, and tracks its writes from then on. The ' +
          'device keeps its content. The metadata device must be blank.'
      )
      .argument('<VOLUME>', 'what it is to be called: letters, digits and + _ . -')
      .requiredOption(
        '--data <device>',
        'the device that is to be tracked, best by a path that stays (/dev/vg/lv, /dev/disk/by-…)'
      )
      .requiredOption(
        '--metadata <device>',
        'a blank device: 1 MiB, and 10 bytes for each block (160 MiB for each TiB of 64 KiB blocks)'
      )
      .option('--block-size <bytes>', 'the size of a tracked block, a multiple of 4KiB', byteCount, 65536)
      .option('--snapshot-size <size>', 'space for each LVM snapshot of a thick volume, such as 10g or 20%ORIGIN', '')
      .option(
        '--allow-lossy-kernel',
        'even on Linux before 5.12, which forgets writes in a crash unless it has the fixes'
      )
  )
    .addHelpText(
      'after',
      `${adminHelp}

Examples:
  deltamapper era attach srv --data /dev/vg0/srv --metadata /dev/vg0/srv_era
  deltamapper era attach db --data /dev/sdb1 --metadata /dev/sdb2 --block-size 256KiB`
    )
    .action(
      async (
        name: string,
        {
          data,
          metadata,
          blockSize,
          snapshotSize,
          allowLossyKernel = false,
          ...options
        }: AdminOptions & {
          data: string
          metadata: string
          blockSize: number
          snapshotSize: string
          allowLossyKernel?: boolean
        }
      ) => {
        const request = {
          ...{ name, dataDevice: data, metadataDevice: metadata, blockBytes: blockSize, snapshotSize, allowLossyKernel }
        }
        await order(options, (agent) => agent.attachEra(request), eraVolumeFacts)
      }
    )
}

function addDetach(era: Command): void {
  addDestructiveOptions(
    era
      .command('detach')
      .summary('end the tracking of a volume')
      .description(
        'Removes /dev/mapper/VOLUME, which must not be in use, and forgets its history: existing snapshots ' +
          'stay, but can no longer be compared. The data device keeps its content. The metadata device is made ' +
          'blank.'
      )
      .argument(...volumeArgument)
  )
    .addHelpText(
      'after',
      `${adminHelp}\n\nExamples:\n  umount /srv\n  deltamapper era detach srv\n  deltamapper era detach srv -o json`
    )
    .action(async (volume: string, { yes, ...options }: AdminOptions & Confirmed) => {
      await confirmed(`the history of volume ${volume} is forgotten, and its metadata device made blank`, yes)
      await order(
        options,
        async (agent) => {
          await agent.detachEra({ volume })
          return { detached: volume }
        },
        ({ detached }) => `volume ${detached} is detached\n`
      )
    })
}

function addStatus(era: Command): void {
  addAdminOptions(
    era
      .command('status')
      .summary('the tracked volumes, or one')
      .description('Shows one tracked volume, or all: their devices, their era, and their problems.')
      .argument('[VOLUME]', 'one volume; all of them if left out')
  )
    .addHelpText('after', `${adminHelp}\n\nExamples:\n  deltamapper era status\n  deltamapper era status srv -o json`)
    .action(async (volume: string | undefined, options: AdminOptions) => {
      await order(
        options,
        (agent) => agent.listEra({ volume: volume ?? '' }),
        ({ volumes }) => (volume === undefined ? eraVolumesTable(volumes) : volumes.map(eraVolumeFacts).join(''))
      )
    })
}

function addActivate(era: Command): void {
  addDestructiveOptions(
    era
      .command('activate')
      .summary('make the devices of a volume, for example after a restart')
      .description(
        'Makes /dev/mapper/VOLUME again, after a restart of the machine or `era deactivate`. If the data ' +
          'device was written to meanwhile, a new history begins, and the next backup is a full one. Refused if ' +
          'the metadata is not what it was.'
      )
      .argument('[VOLUME]', 'the volume')
      .option('--all', 'all volumes; each is tried, even if others fail')
      .option('--start-over', 'if the metadata is not what it was, format it anew and begin a new history')
      .option('--wait <seconds>', 'how long to wait for a starting agent, and for devices', seconds)
  )
    .addHelpText(
      'after',
      `${adminHelp}\n\nExamples:\n  deltamapper era activate srv\n  deltamapper era activate --all\n  deltamapper era activate srv --start-over`
    )
    .action(
      async (
        volume: string | undefined,
        { all = false, startOver = false, wait = 0, yes, ...options }: ActivateOptions
      ) => {
        checkOneOrAll(volume, all)
        if (startOver)
          await confirmed(
            `the history of ${volume === undefined ? 'every volume' : `volume ${volume}`} is given up where it does not fit`,
            yes
          )
        await forOneOrAll(volume, options, wait, (agent, each) => agent.activateEra({ volume: each, startOver }))
      }
    )
}

function addDeactivate(era: Command): void {
  addAdminOptions(
    era
      .command('deactivate')
      .summary('remove the devices of a volume')
      .description(
        'Removes /dev/mapper/VOLUME, which must not be in use. Until it is activated again, nothing should ' +
          'write to the data device: that would end its history, as a restart of the machine does. With ' +
          '--at-shutdown the history continues after a restart. Use that option at the very end of a shutdown, ' +
          'as deltamapper-era.service does, when nothing can write to the data device any more.'
      )
      .argument('[VOLUME]', 'the volume')
      .option('--all', 'all volumes; each is tried, even if others fail')
      .option(
        '--at-shutdown',
        'nothing writes to the data device until the machine has stopped: continue the history after a ' + 'restart'
      )
      .option('--wait <seconds>', 'how long to wait for an agent that is about to start, and for who looks on', seconds)
  )
    .addHelpText(
      'after',
      `${adminHelp}\n\nExamples:\n  deltamapper era deactivate srv\n  deltamapper era deactivate --all --at-shutdown`
    )
    .action(
      async (
        volume: string | undefined,
        { all = false, atShutdown = false, wait = 0, ...options }: DeactivateOptions
      ) => {
        checkOneOrAll(volume, all)
        await forOneOrAll(volume, options, wait, (agent, each) => agent.deactivateEra({ volume: each, atShutdown }))
      }
    )
}

function addGrow(era: Command): void {
  addAdminOptions(
    era
      .command('grow')
      .summary('enlarge a volume, after its data device has grown')
      .description(
        'Makes a volume as large as its data device, after that has grown (lvextend, growpart). What is mounted stays in use; its file system ' +
          'can be enlarged afterwards. For backups, what was added has changed throughout.\n\n' +
          'LVM extends a thick volume in use only once it has no classic snapshot: delete those first (deltamapper snapshot delete). ' +
          'What asks for the status of all devices in a loop (lvs, dmsetup status) can keep the volume from growing: end it meanwhile.'
      )
      .argument(...volumeArgument)
  )
    .addHelpText(
      'after',
      `${adminHelp}\n\nExamples:\n  lvextend --size +100g vg0/srv\n  deltamapper era grow srv\n  resize2fs /dev/mapper/srv\n  deltamapper era grow srv -o json`
    )
    .action(async (volume: string, options: AdminOptions) => {
      await order(options, (agent) => agent.growEra({ volume }), eraVolumeFacts)
    })
}

interface DeactivateOptions extends AdminOptions {
  all?: boolean
  atShutdown?: boolean
  wait?: number
}

interface ActivateOptions extends AdminOptions, Confirmed {
  all?: boolean
  startOver?: boolean
  wait?: number
}

/**
 * Waits for an agent to take orders, until `deadline` of performance.now(). Whoever gives one next is told if it does
 * not.
 */
async function untilReachable({ endpoint }: AdminOptions, deadline: number): Promise<void> {
  const { connectAdmin } = await import('../../grpc/admin-client.ts')
  for (; performance.now() < deadline; await sleep(WAIT_INTERVAL_MS)) {
    const agent = connectAdmin(endpointAddress(endpoint))
    try {
      await agent.listEra({ volume: '' })
      return
    } catch (error) {
      if (asDeltamapperError(error).code !== 'DM_UNREACHABLE') return
    } finally {
      agent.close()
    }
  }
}

/** Tries again what fails for a reason that may pass, until `deadline` of performance.now(). */
async function patiently<T>(deadline: number, work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await work()
    } catch (error) {
      if (performance.now() >= deadline || !mayPass(error)) throw error
    }
    await sleep(WAIT_INTERVAL_MS)
  }
}

function mayPass(error: unknown): boolean {
  return PASSING.includes(asDeltamapperError(error).code)
}

/** @throws UsageError */
function checkOneOrAll(volume: string | undefined, all: boolean): void {
  if ((volume === undefined) === all) return
  throw new UsageError(
    volume === undefined ? 'no volume was named' : `${volume} and --all do not go together`,
    'name a volume, or say --all'
  )
}

/** An order to the agent about one volume, answered with the volume as it is now. */
type VolumeOrder = (agent: AdminClient, volume: string) => Promise<AdminResponse<'growEra'>>

/**
 * Gives an order for one volume, or for all of them if it is undefined. What may pass is tried again.
 *
 * @param waitSeconds for how long
 */
async function forOneOrAll(
  volume: string | undefined,
  options: AdminOptions,
  waitSeconds: number,
  give: VolumeOrder
): Promise<void> {
  const deadline = performance.now() + waitSeconds * 1000
  if (waitSeconds > 0) await untilReachable(options, deadline)
  if (volume === undefined) await forAll(options, give, deadline)
  else await order(options, (agent) => patiently(deadline, () => give(agent, volume)), eraVolumeFacts)
}

/**
 * Does something to every volume, even where it fails for some. What may pass is tried again, with the others in
 * between, until `deadline` of performance.now().
 *
 * @throws what it failed of first, with how many others did
 */
async function forAll(options: AdminOptions, give: VolumeOrder, deadline: number): Promise<void> {
  await order(
    options,
    async (agent) => {
      const volumes: AdminResponse<'growEra'>[] = []
      const failures: DeltamapperError[] = []
      let waiting = (await agent.listEra({ volume: '' })).volumes.map(({ name }) => name)
      while (waiting.length > 0) {
        const again: string[] = []
        for (const name of waiting) {
          try {
            volumes.push(await give(agent, name))
          } catch (error) {
            if (mayPass(error) && performance.now() < deadline) again.push(name)
            else failures.push(asDeltamapperError(error))
          }
        }
        waiting = again
        if (again.length > 0) await sleep(WAIT_INTERVAL_MS)
      }
      const [first, ...others] = failures
      if (!first) return { volumes }
      const more =
        others.length === 0 ? '' : ` (and ${others.length} more: ${others.map(({ code }) => code).join(', ')})`
      throw new DeltamapperError(first.code, `${first.message}${more}`, first.remedy)
    },
    ({ volumes }) => eraVolumesTable(volumes)
  )
}
