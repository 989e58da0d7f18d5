import type { Snapshots } from '../../backup/backup.ts'
import type { BackupOptions } from '../commands/run-backup.ts'
import type { Remark } from './question.ts'

export async function liveSnapshots(_v: readonly string[], _o: BackupOptions, _r: Remark): Promise<Snapshots> {
  throw new Error('to be written')
}
