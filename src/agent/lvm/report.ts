/**
 * Asks LVM for the state of volume groups.
 *
 * - With `--readonly`: LVM reads its metadata from disk without a lock, and does not ask the kernel about its volumes.
 *   So it does not wait for a running lvcreate (which holds the group's lock), needs no lock directory shared with the
 *   host, and cannot change anything. The report then lacks what the kernel knows: activity, open state, a pool's
 *   health. device-mapper tells those better: LVM calls a pool inactive when only its thin volumes are active. An
 *   uncommitted change is not seen, and a half-written one fails LVM's own checksum. LVM still looks at every block
 *   device for its metadata, and waits for one that hangs. It is kept away from tracked volumes, which hang while they
 *   are suspended (filter.ts).
 * - Whole groups at once. Then a volume, its pool and its origins are of one moment, and no volume name from a client
 *   gets onto a command line. Questions about snapshots are answered from a report of all groups (one-look.ts).
 * - One command at a time, for any number of callers. Callers with the same question share the answer of a command that
 *   has not started yet. A running command is not shared, because its report may lack a snapshot taken since its start.
 * - Turns go round the waiting clients: a client that asks about many groups waits behind its own questions only.
 */
import { DeltamapperError, invalid } from '../../errors.ts'
import { type CommandResult, describeCommand, oneLine, startCommand } from './command.ts'
import {
  type LogicalVolume,
  logicalVolumeFields,
  parseDisks,
  parseLogicalVolumes,
  parseVolumeGroups,
  physicalVolumeFields,
  type VolumeGroup,
  volumeGroupFields
} from './parse.ts'
import { settingOptions } from './settings.ts'
import { parseSnapshotLinks, type SnapshotLinks } from './snapshot-links.ts'

export interface LvmOptions {
  /**
   * The words that start LVM; subcommand and options follow them. `['lvm']` by default (found through PATH). To reach a
   * host's LVM: `['nsenter', '-m', '-u', '-i', '-n', '-p', '-t', '1', '/sbin/lvm']` or `['chroot', '/host',
   * '/sbin/lvm']`.
   */
  command?: readonly string[]
  /** How long an answer may take, including the wait for its turn, in milliseconds; 20,000 by default. */
  deadlineMs?: number
  /** The longest report that is accepted, in bytes; 64 MiB (some 50,000 volumes) by default. */
  maxOutputBytes?: number
  /** The dialect of the reports: `json`, the default, is spoken by every version; `json_std` by 2.03.17 and later. */
  format?: 'json' | 'json_std'
}

/** LVM ended with an error, which may be about something else than the question. */
export class LvmRefused extends DeltamapperError {}

/** A command that waits for its turn, or has had it. */
interface Question {
  /** Who asked it first. */
  readonly client: string
  /** Its name in errors: the command as a person would type it, without our options. */
  readonly described: string
  readonly answer: Promise<CommandResult>
  /** Asks. Resolves when no process of it is left. @param onStart gets the process group */
  run(onStart: (pid: number | undefined) => void): Promise<void>
}

export class LvmReporter {
  readonly #command: readonly string[]
  readonly #deadlineMs: number
  readonly #maxOutputBytes: number
  readonly #format: string
  /** Waiting for their turn, in order, by their words. */
  readonly #waiting = new Map<string, Question>()
  /** Clients that had a turn since the queue was last empty, the longest ago first. */
  readonly #served = new Set<string>()
  #running: { described: string; pid: number | undefined } | undefined

  constructor({ command = ['lvm'], deadlineMs = 20_000, maxOutputBytes = 2 ** 26, format = 'json' }: LvmOptions = {}) {
    if (command.length === 0) {
      throw new DeltamapperError('DM_CONFIG_INVALID', 'the command line of LVM is empty', 'name a program, such as lvm')
    }
    this.#command = command
    this.#deadlineMs = deadlineMs
    this.#maxOutputBytes = maxOutputBytes
    this.#format = format
  }

  /**
   * All logical volumes of a group, hidden ones included; undefined when LVM sees no such group.
   *
   * @param client who asks, for the order of turns
   * @throws DM_LVM_FAILED
   */
  async logicalVolumes(volumeGroup: string, client?: string): Promise<LogicalVolume[] | undefined> {
    checkVolumeGroupName(volumeGroup)
    const report = await this.#ask('lvs', ['--all', ...this.#options(logicalVolumeFields)], [volumeGroup], client)
    return report === undefined ? undefined : parseLogicalVolumes(report)
  }

  /** All logical volumes of all groups that LVM sees, hidden ones included. @throws DM_LVM_FAILED */
  async allLogicalVolumes(): Promise<LogicalVolume[]> {
    return parseLogicalVolumes((await this.#ask('lvs', ['--all', ...this.#options(logicalVolumeFields)])) ?? '')
  }

  /** All volume groups that LVM sees. @throws DM_LVM_FAILED */
  async volumeGroups(): Promise<VolumeGroup[]> {
    const report = await this.#ask('vgs', this.#options(volumeGroupFields))
    return parseVolumeGroups(report ?? '')
  }

  /**
   * How the classic snapshots of a group are tied to their origins; undefined when LVM sees no such group. No report
   * has it, so that the group's metadata is read from one of its disks.
   *
   * What others do to the group meanwhile is no reason to refuse: the disk may have a newer state than the report.
   *
   * @throws DM_LVM_FAILED; also when a disk has an older state of it
   */
  async snapshotLinks(volumeGroup: string): Promise<SnapshotLinks | undefined> {
    checkVolumeGroupName(volumeGroup)
    const report = await this.#ask('vgs', this.#options([...volumeGroupFields, ...physicalVolumeFields]), [volumeGroup])
    if (report === undefined) return undefined
    const [group] = parseVolumeGroups(report)
    const disks = parseDisks(report)
    const disk = disks.find(({ hasMetadata }) => hasMetadata)?.path
    if (group === undefined) return undefined
    if (disk === undefined) {
      throw new DeltamapperError(
        'DM_LVM_FAILED',
        `no disk of volume group ${volumeGroup} that is here has a copy of its metadata`,
        'find the disks that are missing, or let one of those here have a copy (pvchange --metadataignore n)'
      )
    }
    const text = await this.#ask('pvck', ['--dump', 'metadata'], [disk])
    const found = parseSnapshotLinks(text ?? '', volumeGroup, new Map(disks.map(({ id, path }) => [id, path])))
    if (found.vgUuid === group.uuid && found.sequenceNumber >= group.sequenceNumber) return found
    throw new DeltamapperError(
      'DM_LVM_FAILED',
      `${disk} has state ${found.sequenceNumber} of volume group ${volumeGroup}, and LVM reports state ${group.sequenceNumber}`,
      'ask again: the group was just changed; or a disk was away meanwhile (`vgck --updatemetadata`)'
    )
  }

  #options(fields: readonly string[]): string[] {
    const units = ['--units', 'b', '--nosuffix']
    return ['--readonly', '--reportformat', this.#format, ...units, '--options', fields.join(',')]
  }

  /** The report; undefined when its subject does not exist. */
  async #ask(
    subcommand: string,
    options: readonly string[],
    names: readonly string[] = [],
    client = ''
  ): Promise<string | undefined> {
    const key = [subcommand, ...names].join(' ')
    const question = this.#waiting.get(key) ?? this.#enqueue(key, subcommand, [...options, '--', ...names], client)
    this.#next()
    const { exitCode, stdout, stderr } = await question.answer
    if (exitCode === 0) return stdout
    // 5 is every failure that is not the caller's (ECMD_FAILED in LVM's lib/commands/errors.h); only the text tells
    // which. (lvm.conf may put the place in LVM's source in front of it.)
    const notFound = names.some((name) => stderr.includes(`Volume group "${name}" not found\n`))
    if (exitCode === 5 && notFound) return undefined
    throw exitError(question.described, exitCode, stderr)
  }

  #enqueue(key: string, subcommand: string, words: readonly string[], client: string): Question {
    const { promise, resolve, reject } = Promise.withResolvers<CommandResult>()
    const described = describeCommand([...this.#command, ...key.split(' ')])
    const deadline = performance.now() + this.#deadlineMs
    const timer = setTimeout(() => {
      this.#waiting.delete(key)
      reject(busyError(described, this.#running))
    }, this.#deadlineMs)
    const question: Question = {
      client,
      described,
      answer: promise,
      run: async (onStart) => {
        clearTimeout(timer)
        try {
          const settings = await settingOptions(this.#command)
          const deadlineMs = Math.max(1, deadline - performance.now())
          const limits = { deadlineMs, maxOutputBytes: this.#maxOutputBytes }
          const command = startCommand([...this.#command, subcommand, ...settings, ...words], limits, described)
          onStart(command.pid)
          command.result.then(resolve, reject)
          await command.gone
        } catch (error) {
          reject(error)
        }
      }
    }
    this.#waiting.set(key, question)
    return question
  }

  /** The first question of a client that had no turn yet, or of the one whose turn is longest ago. */
  #nextInTurn(): [string, Question] | undefined {
    const waiting = [...this.#waiting]
    if (waiting.length === 0) this.#served.clear()
    const client =
      waiting.find(([, each]) => !this.#served.has(each.client))?.[1].client ??
      [...this.#served].find((served) => waiting.some(([, each]) => each.client === served))
    if (client === undefined) return undefined
    this.#served.delete(client)
    this.#served.add(client)
    return waiting.find(([, each]) => each.client === client)
  }

  #next(): void {
    if (this.#running) return
    const next = this.#nextInTurn()
    if (!next) return
    const [key, question] = next
    this.#waiting.delete(key)
    const { described } = question
    this.#running = { described, pid: undefined }
    const onStart = (pid: number | undefined) => {
      this.#running = { described, pid }
    }
    void question.run(onStart).then(() => {
      this.#running = undefined
      this.#next()
    })
  }
}

/**
 * Throws DM_ARGUMENT_INVALID for a text that cannot be a volume group's name (lvm(8), VALID NAMES), or would be taken
 * for an option.
 */
export function checkVolumeGroupName(name: string): void {
  if (!/^[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}$/.test(name) || name === '.' || name === '..') {
    throw invalid(
      `${JSON.stringify(name.slice(0, 200))} cannot be the name of a volume group`,
      'use 1 to 127 letters, digits and + _ . -, not beginning with -'
    )
  }
}

function exitError(described: string, exitCode: number, stderr: string): LvmRefused {
  return new LvmRefused(
    'DM_LVM_FAILED',
    `\`${described}\` ended with exit status ${exitCode}: ${oneLine(stderr) || 'without a word'}`,
    exitCode === 3 ? 'this LVM does not know an option; update it' : 'put right what LVM complains of, and ask again'
  )
}

function busyError(
  described: string,
  running: { described: string; pid: number | undefined } | undefined
): DeltamapperError {
  const before = running && `\`${running.described}\` (process group ${running.pid ?? 'unknown'})`
  return new DeltamapperError(
    'DM_LVM_FAILED',
    `\`${described}\` has not had its turn in time: ${before ?? 'another LVM command'} has not ended`,
    'find out which disk or lock that one waits for; ask again'
  )
}
