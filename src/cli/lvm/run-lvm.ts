/** One command of LVM's, of which a command of ours needs what it prints. */
import { oneLine, startCommand } from '../../agent/lvm/command.ts'
import { settingOptions } from '../../agent/lvm/settings.ts'
import { DeltamapperError } from '../../errors.ts'

/** How long LVM may take to activate a volume, in milliseconds. */
const LVM_MS = 60_000

/** @returns what it prints @throws DM_LVM_FAILED */
export async function runLvm([subcommand, ...words]: readonly string[]): Promise<string> {
  const described = ['lvm', subcommand, ...words].join(' ')
  // LVM must not look at what hangs while it is suspended.
  const settings = await settingOptions(['lvm'], { holders: true })
  const limits = { deadlineMs: LVM_MS, maxOutputBytes: 2 ** 20 }
  const { exitCode, stdout, stderr } = await startCommand(['lvm', subcommand, ...settings, ...words], limits).result
  if (exitCode === 0) return stdout
  throw new DeltamapperError(
    'DM_LVM_FAILED',
    `\`${described}\` failed: ${oneLine(stderr)}`,
    'see what LVM says of the volume (lvs -a)'
  )
}
