/**
 * Debian's thin-provisioning-tools for tests on the host: the second, independent opinion on every metadata image.
 */
import { execFile } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { ensureLab, labEnvironment, labFolder, programFolders } from './packages.ts'

export type ThinToolName =
  | 'thin_check'
  | 'thin_delta'
  | 'thin_dump'
  | 'thin_ls'
  | 'thin_metadata_size'
  | 'thin_repair'
  | 'thin_restore'
  | 'thin_rmap'
  | 'era_check'
  | 'era_dump'
  | 'era_invalidate'
  | 'era_restore'

export interface ThinTool {
  /** Absolute path of the program. */
  path: string
  /** The environment it needs: it finds its libraries in the lab as well. */
  env: NodeJS.ProcessEnv
}

/** Where a tool is in the lab's cache. The lab must be there (`ensureLab()`); throws LabUnavailable or ENOENT otherwise. */
export function thinTool(name: ThinToolName): ThinTool {
  const folder = labFolder()
  const candidates = programFolders.map((each) => join(folder, each, name))
  const path = candidates.find(isExecutable)
  if (path === undefined) throw new Error(`${name} is not in ${folder}: run node scripts/setup.mjs --lab`)
  return { path, env: { ...process.env, LC_ALL: 'C', ...labEnvironment(folder) } }
}

/** Runs a tool and returns what it wrote to stdout. Rejects when its exit status is not 0; the error holds stderr. */
export async function runThinTool(name: ThinToolName, args: readonly string[]): Promise<string> {
  await ensureLab()
  const { path, env } = thinTool(name)
  const { stdout } = await promisify(execFile)(path, args, { env, maxBuffer: 2 ** 30 })
  return stdout
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
