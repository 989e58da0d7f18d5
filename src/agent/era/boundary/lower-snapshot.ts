/**
 * The snapshot of the data device of a tracked volume, taken while the volume is suspended: by LVM if the data device
 * is one of its volumes, otherwise by a configured command.
 *
 * LVM must not look at a suspended volume (lvm/filter.ts). What LVM makes for a snapshot has its token as a tag, and
 * nothing without that tag is removed.
 */
import type { DeviceInfo, DeviceMapper, DeviceNumber } from '../../../../native/device-mapper.ts'
import { DeltamapperError, invalid } from '../../../errors.ts'
import type { EraVolume } from '../../catalog/era-volumes.ts'
import { type CommandLimits, describeCommand, oneLine, startCommand } from '../../lvm/command.ts'
import { refuseReservedName } from '../../lvm/reserved-names.ts'
import { settingOptions } from '../../lvm/settings.ts'

/** The most bytes that are kept of a command's output. */
const MAX_OUTPUT_BYTES = 65_536
/** How long removing one may take, in milliseconds. */
const REMOVE_DEADLINE_MS = 60_000
/** The default size of a classic snapshot. */
export const DEFAULT_SIZE = '20%ORIGIN'

/** How a volume's lower snapshots are taken; `snapshotBy` of its record. */
export interface SnapshotBy {
  /**
   * For LVM, if the volume is in no thin pool: a size as for `lvcreate --size`, or as for `--extents` if it contains a
   * `%`.
   */
  readonly size?: string
}

/** The configuration of one volume. */
export interface SnapshotCommands {
  /** The words of a command that takes a snapshot. Volume name, snapshot name and data device follow. */
  readonly take: readonly string[]
  /** The same for removing it. */
  readonly remove: readonly string[]
}

/** What a snapshot is, for people and for removing it; `lower` of its record. */
export type LowerSnapshotRecord =
  | { readonly kind: 'lvm'; readonly volume: string; readonly token: string }
  | { readonly kind: 'command'; readonly name: string }
  | { readonly kind: 'driver'; readonly reference: string }

export interface LowerSnapshot {
  readonly lower: LowerSnapshotRecord
  /** Takes it. @throws DM_LVM_FAILED, DM_TOOL_FAILED, the signal's reason; a snapshot may exist nevertheless */
  take(deadlineMs: number, signal: AbortSignal): Promise<void>
  /** Removes it, or any part of it that exists. @throws the same */
  remove(): Promise<void>
}

/** What takes and removes lower snapshots. */
export type LowerSnapshotting = Pick<LowerSnapshots, 'prepare' | 'recorded' | 'unfinished'>

export class LowerSnapshots {
  readonly #deviceMapper: DeviceMapper
  readonly #lvmCommand: readonly string[]
  readonly #commands: Readonly<Record<string, SnapshotCommands>>

  /** @param commands by the volume's name */
  constructor(
    deviceMapper: DeviceMapper,
    lvmCommand: readonly string[],
    commands: Readonly<Record<string, SnapshotCommands>>
  ) {
    this.#deviceMapper = deviceMapper
    this.#lvmCommand = lvmCommand
    this.#commands = commands
  }

  /**
   * Prepares a snapshot: everything that can be found out before the suspension.
   *
   * @param dataDevice the device below the volume
   * @throws DM_CONFIG_INVALID when no method is configured; DM_ARGUMENT_INVALID for a name that LVM would refuse;
   *   DM_LVM_FAILED
   */
  async prepare(
    { name: volumeName, dataDevice: dataPath, snapshotBy }: EraVolume,
    dataDevice: DeviceNumber,
    snapshot: string,
    token: string
  ): Promise<LowerSnapshot> {
    const commands = Object.hasOwn(this.#commands, volumeName) ? this.#commands[volumeName] : undefined
    if (commands) return commandSnapshot(commands, [volumeName, snapshot, dataPath])
    const info = await this.#deviceMapper.info(dataDevice)
    const lv = info && lvmNames(info)
    if (!lv) {
      throw new DeltamapperError(
        'DM_CONFIG_INVALID',
        `${dataPath} is no volume of LVM's, and nothing says how a snapshot of it is taken`,
        `configure era.snapshotCommands.${volumeName}, or have your driver take it between BeginSnapshot and EndSnapshot`
      )
    }
    return this.#lvmSnapshot(lv, snapshot, token, parseSnapshotBy(snapshotBy))
  }

  /** How to remove a recorded snapshot. Undefined if a driver must do it. */
  async recorded(
    lower: LowerSnapshotRecord,
    { name, dataDevice }: EraVolume
  ): Promise<Pick<LowerSnapshot, 'remove'> | undefined> {
    switch (lower.kind) {
      case 'driver':
        return undefined
      case 'command': {
        const commands = Object.hasOwn(this.#commands, name) ? this.#commands[name] : undefined
        return commands && commandSnapshot(commands, [name, lower.name, dataDevice])
      }
      case 'lvm':
        return { remove: () => this.#removeTagged(lower.token) }
    }
  }

  /** Removes what an agent that died may have left of a snapshot that it was taking. */
  async unfinished(
    volume: EraVolume,
    snapshot: string,
    token: string
  ): Promise<Pick<LowerSnapshot, 'remove'> | undefined> {
    const isCommand = Object.hasOwn(this.#commands, volume.name)
    const lower: LowerSnapshotRecord = isCommand
      ? { kind: 'command', name: snapshot }
      : { kind: 'lvm', volume: '', token }
    return this.recorded(lower, volume)
  }

  async #lvmSnapshot(
    { vg, lv }: { vg: string; lv: string },
    snapshot: string,
    token: string,
    { size }: SnapshotBy
  ): Promise<LowerSnapshot> {
    refuseReservedName(snapshot)
    const settings = await this.#settings()
    const report = ['lvs', ...settings, '--readonly', '--noheadings', '-o', 'segtype', `${vg}/${lv}`]
    const isThin = (await this.#lvm(report, REMOVE_DEADLINE_MS)).split('\n').some((line) => line.trim() === 'thin')
    const wanted = size ?? DEFAULT_SIZE
    const room = isThin ? [] : [wanted.includes('%') ? '--extents' : '--size', wanted]
    const words = ['lvcreate', ...settings, '--yes', '--snapshot', ...room, '--addtag', tagOf(token)]
    return {
      lower: { kind: 'lvm', volume: `${vg}/${snapshot}`, token },
      take: async (deadlineMs, signal) => {
        await this.#lvm([...words, '--name', snapshot, `${vg}/${lv}`], deadlineMs, signal)
      },
      remove: () => this.#removeTagged(token)
    }
  }

  async #removeTagged(token: string): Promise<void> {
    const settings = await this.#settings()
    await this.#lvm(['lvremove', ...settings, '--yes', '--select', `lv_tags=${tagOf(token)}`], REMOVE_DEADLINE_MS)
  }

  async #lvm(words: readonly string[], deadlineMs: number, signal?: AbortSignal): Promise<string> {
    const described = `${this.#lvmCommand[0]} ${words[0]}`
    return runCommand([...this.#lvmCommand, ...words], described, { deadlineMs, signal }, 'DM_LVM_FAILED')
  }

  /** LVM must not look at what stands on the volume either: it hangs as the volume does. */
  #settings(): Promise<string[]> {
    return settingOptions(this.#lvmCommand, { holders: true })
  }
}

/** @throws DM_ARGUMENT_INVALID for a size that LVM would refuse */
export function formatSnapshotBy(size: string): string {
  if (size === '') return ''
  if (!/^\d{1,15}(\.\d{1,3})?[bBsSkKmMgGtTpPeE]?$/.test(size) && !/^\d{1,3}%(ORIGIN|FREE|VG)$/.test(size)) {
    throw invalid(
      `${JSON.stringify(size.slice(0, 50))} is no size for a snapshot`,
      'give one that LVM knows, such as 10g or 20%ORIGIN'
    )
  }
  return JSON.stringify({ size } satisfies SnapshotBy)
}

function parseSnapshotBy(text: string): SnapshotBy {
  return text === '' ? {} : (JSON.parse(text) as SnapshotBy)
}

/** Volume group and logical volume of an LVM device; undefined for any other device, and for a part of a volume. */
export function lvmNames({ name, uuid }: Pick<DeviceInfo, 'name' | 'uuid'>): { vg: string; lv: string } | undefined {
  // LVM- and two UUIDs of 32 characters; a part of a volume has a suffix.
  if (!/^LVM-[A-Za-z0-9]{64}$/.test(uuid)) return undefined
  const [, vg, lv] = /^((?:[^-]|--)+)-((?:[^-]|--)+)$/.exec(name) ?? []
  if (vg === undefined || lv === undefined) return undefined
  return { vg: vg.replaceAll('--', '-'), lv: lv.replaceAll('--', '-') }
}

/** The tag of what LVM makes for a snapshot. */
export function tagOf(token: string): string {
  return `deltamapper_${token}`
}

function commandSnapshot({ take, remove }: SnapshotCommands, words: readonly [string, string, string]): LowerSnapshot {
  const run = async (command: readonly string[], deadlineMs: number, signal?: AbortSignal) => {
    const all = [...command, ...words]
    await runCommand(all, describeCommand(all), { deadlineMs, signal }, 'DM_TOOL_FAILED')
  }
  return {
    lower: { kind: 'command', name: words[1] },
    take: (deadlineMs, signal) => run(take, deadlineMs, signal),
    remove: () => run(remove, REMOVE_DEADLINE_MS)
  }
}

/** Does not wait for the end of a process that was killed: it may hang until the device is resumed. */
async function runCommand(
  words: readonly string[],
  described: string,
  limits: Omit<CommandLimits, 'maxOutputBytes'>,
  code: 'DM_LVM_FAILED' | 'DM_TOOL_FAILED'
): Promise<string> {
  const running = startCommand(words, { ...limits, maxOutputBytes: MAX_OUTPUT_BYTES }, described)
  const { exitCode, stdout, stderr } = await running.result.catch((cause: unknown) => {
    if (!(cause instanceof DeltamapperError) || cause.code !== 'DM_LVM_FAILED') throw cause
    throw new DeltamapperError(code, cause.message, cause.remedy, { cause })
  })
  if (exitCode === 0) return stdout
  throw new DeltamapperError(
    code,
    `\`${described}\` ended with exit status ${exitCode}: ${oneLine(stderr) || 'without a word'}`,
    'correct what it reports, and ask again'
  )
}
