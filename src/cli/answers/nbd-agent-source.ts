/** Replaced below. */
import type { NbdSource } from '../../nbd/source.ts'
import { UsageError } from '../command-line/failure.ts'

export async function openAgentSource(..._: unknown[]): Promise<NbdSource> {
  throw new UsageError('no copies were named', 'name them with --metadata and --data, or with --recorded')
}
