/**
 * Commands of a driver's author that write, take snapshots and restore: one for each thing to do, run by `sh -c`,
 * with what it is about in the environment. A command that has something to say prints it as its last line.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { z } from 'zod'
import { fieldsOf } from '../config-issues.ts'
import { DeltamapperError } from '../errors.ts'
import { readOrdinaryFile } from '../ordinary-file.ts'
import { systemRemedy } from '../system-errors.ts'
import type { Storage } from './storage.ts'

const hooksSchema = z.strictObject({
  create: z.string(),
  snapshot: z.string(),
  restore: z.string(),
  delete_snapshot: z.string(),
  delete_volume: z.string(),
  discard: z.string().optional(),
  grow: z.string().optional()
})

export type Hooks = z.infer<typeof hooksSchema>

/** A command may take so long, in milliseconds. */
const PATIENCE_MS = 60_000

/** @throws DM_CONFIG_INVALID */
export async function readHooks(path: string): Promise<Hooks> {
  try {
    return fieldsOf((await readOrdinaryFile(path)).toString('utf8'), hooksSchema)
  } catch (cause) {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `${path} cannot be used: ${(cause as Error).message.replaceAll(/\s+/g, ' ')}`,
      systemRemedy(cause) ?? 'docs/conformance.md has an example of hooks',
      { cause }
    )
  }
}

export function hookStorage(hooks: Hooks): Storage {
  const { discard, grow } = hooks
  return {
    create: (volume, sizeBytes) => told(hooks.create, { VOLUME: volume, SIZE_BYTES: String(sizeBytes) }),
    snapshot: (volume, snapshot) => told(hooks.snapshot, { VOLUME: volume, SNAPSHOT: snapshot }),
    restore: (id, volume) => told(hooks.restore, { SNAPSHOT_ID: id, VOLUME: volume }),
    deleteSnapshot: async (id) => void (await run(hooks.delete_snapshot, { SNAPSHOT_ID: id })),
    deleteVolume: async (volume) => void (await run(hooks.delete_volume, { VOLUME: volume })),
    discard:
      discard &&
      (async (device, offset, length) =>
        void (await run(discard, { DEVICE: device, OFFSET_BYTES: String(offset), LENGTH_BYTES: String(length) }))),
    grow:
      grow && (async (volume, sizeBytes) => void (await run(grow, { VOLUME: volume, SIZE_BYTES: String(sizeBytes) })))
  } as Storage
}

/** The last line that a command prints. */
async function told(command: string, variables: Record<string, string>): Promise<string> {
  const line = (await run(command, variables)).trimEnd().split('\n').at(-1) ?? ''
  if (line === '') throw new Error(`${command} has printed nothing`)
  return line
}

async function run(command: string, variables: Record<string, string>): Promise<string> {
  try {
    const env = { ...process.env, ...variables }
    return (await promisify(execFile)('sh', ['-c', command], { env, timeout: PATIENCE_MS })).stdout
  } catch (error) {
    const { stderr, message } = error as Error & { stderr?: string }
    throw new Error(`${command}: ${stderr?.trim() || message}`, { cause: error })
  }
}
