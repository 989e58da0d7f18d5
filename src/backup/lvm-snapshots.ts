/**
 * LVM's snapshots, made and removed by its own commands, never by the agent: read-only, and with the chain as a tag.
 * Thin ones of thin volumes; classic ones of all others, with a store of their own.
 */
import { describeCommand, oneLine, startCommand } from '../agent/lvm/command.ts'
import type { LogicalVolume } from '../agent/lvm/parse.ts'
import { settingOptions } from '../agent/lvm/settings.ts'
import { DeltamapperError } from '../errors.ts'
import { parseHandle } from '../handle.ts'
import type { Chain } from './chain.ts'
import type { SnapshotMaker } from './live-snapshots.ts'
import { markOf } from './snapshot-names.ts'

/** How long LVM may take for one change, in milliseconds. */
const CHANGE_MS = 60_000

/** What LVM has in a group, hidden volumes included; undefined where there is no such group. @throws DM_LVM_FAILED */
export type GroupReport = (group: string) => Promise<readonly LogicalVolume[] | undefined>

export interface LvmSnapshotOptions {
  /** Of the store of a classic snapshot, in bytes; undefined for thin volumes. */
  readonly cowSizeBytes: number | undefined
  /** Of the group, since the chain was locked. */
  readonly report: readonly LogicalVolume[]
  /** Of a group as it is at the call. */
  readonly askAgain: GroupReport
}

/** A volume of a report. */
export function volumeIn(report: readonly LogicalVolume[], name: string): LogicalVolume | undefined {
  return report.find((each) => each.name === name && !each.hidden)
}

export function lvmSnapshots(volume: string, { cowSizeBytes, report, askAgain }: LvmSnapshotOptions): SnapshotMaker {
  const { source: group } = parseHandle(volume)
  const kind =
    cowSizeBytes === undefined ? ['--setactivationskip', 'n'] : ['--size', `${Math.ceil(cowSizeBytes / 512) * 512}b`]
  return {
    needsBase: true,
    device: `/dev/${volume}`,
    async take(chain, name) {
      const tag = ['--addtag', tagOf(chain)]
      await lvm(chain, 'lvcreate', [
        '--yes',
        '--snapshot',
        '--permission',
        'r',
        ...kind,
        ...tag,
        '--name',
        name,
        '--',
        volume
      ])
      return `${group}/${name}`
    },
    async marked(chain) {
      return report.filter((each) => isMarked(each, chain)).map(({ name }) => `${group}/${name}`)
    },
    async remove(chain, handle) {
      try {
        await lvm(chain, 'lvremove', ['--yes', '--', handle])
      } catch (error) {
        if (volumeIn((await askAgain(group)) ?? [], parseHandle(handle).name)) throw error
      }
    }
  }
}

function tagOf(chain: Chain): string {
  return `deltamapper.backup=${chain.mark}`
}

/** The tag alone does not do: a person may give it to a volume. Whoever renames a snapshot has made it theirs. */
function isMarked({ name, tags, hidden }: LogicalVolume, chain: Chain): boolean {
  const volume = parseHandle(chain.volume).name
  return !hidden && tags.includes(tagOf(chain)) && name.startsWith(markOf(chain, volume))
}

/**
 * LVM finishes what it has begun, also where this process is killed. Until then the chain stays locked, by a shell that
 * waits for it: the next run would not see a snapshot that is not there yet.
 */
async function lvm(chain: Chain, subcommand: string, words: readonly string[]): Promise<void> {
  const command = ['lvm', subcommand, ...(await settingOptions(['lvm'])), ...words]
  const described = describeCommand(['lvm', subcommand, ...words])
  const limits = { deadlineMs: CHANGE_MS, maxOutputBytes: 2 ** 20, inherits: chain.lockDescriptors }
  const { result } = startCommand(['sh', '-c', '"$@"; exit $?', 'sh', ...command], limits, described)
  const { exitCode, stderr } = await result
  if (exitCode === 0) return
  throw new DeltamapperError(
    'DM_LVM_FAILED',
    `\`${described}\` failed: ${oneLine(stderr)}`,
    'see what LVM says of the volume and its pool (lvs -a)'
  )
}
