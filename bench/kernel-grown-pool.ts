/**
 * The large recorded pool that deltas are measured on, grown by a real kernel in the lab (grow-pool.ts) and kept in the cache.
 *
 *   node bench/kernel-grown-pool.ts [MAPPINGS]     makes it and prints its folder
 *
 * Snapshots of the one volume, `grown`, in order: base, identical, clustered (1 % changed in few places), scattered (1 % changed all
 * over), rewritten (everything changed), scattered-10 (10 % changed all over).
 */
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { LabFailure, projectFolder, startLab } from '../test/lab/boot.ts'

/** Mappings of the volume, if nothing else is asked for. */
export const defaultMappings = 4_200_000

/** The folder with metadata.img and pool.json; making it takes two to five minutes. Throws LabUnavailable where there can be no lab. */
export async function kernelGrownPool(
  mappings = defaultMappings,
  onProgress: (line: string) => void = (line) => process.stderr.write(line)
): Promise<string> {
  const script = join(projectFolder, 'bench/grow-pool.ts')
  // A changed script makes another pool.
  const hash = createHash('sha256')
    .update(await readFile(script))
    .digest('hex')
    .slice(0, 8)
  const folder = join(projectFolder, '.cache/bench', `kernel-grown-${mappings}-${hash}`)
  if (existsSync(folder)) return folder
  const unfinished = `${folder}.unfinished-${process.pid}`
  await mkdir(unfinished, { recursive: true })
  try {
    const lab = await startLab({
      command: [process.execPath, script, '--mappings', String(mappings), '--out', unfinished],
      diskBytes: 2 ** 31 + mappings * 256,
      memoryMiB: 3072,
      timeoutSeconds: 3600,
      onOutput: (_, chunk) => onProgress(chunk.toString())
    })
    const { status, consoleLog } = await lab.result
    if (status !== 0) throw new LabFailure(`growing the pool failed; kernel messages: ${consoleLog}`)
    await rename(unfinished, folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error
    })
  } finally {
    await rm(unfinished, { recursive: true, force: true })
  }
  return folder
}

if (import.meta.main) {
  const mappings = process.argv[2] === undefined ? defaultMappings : Number(process.argv[2])
  if (!Number.isSafeInteger(mappings) || mappings < 10_000) {
    console.error('usage: node bench/kernel-grown-pool.ts [MAPPINGS]   (at least 10000)')
    process.exit(2)
  }
  console.log(await kernelGrownPool(mappings))
}
