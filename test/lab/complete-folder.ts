/**
 * A folder of the lab's cache that is complete if it exists: it is made elsewhere, and renamed into place at its end. So two processes may
 * make one at the same time: the second throws its own work away.
 */
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'

/**
 * Makes a folder unless it is there.
 *
 * @param fill puts into `root` what the folder is to hold; `work` has room for what is needed on the way, and goes
 * @throws what `fill` throws
 */
export async function completeFolder(
  folder: string,
  fill: (root: string, work: string) => Promise<unknown>
): Promise<void> {
  if (existsSync(folder)) return
  await mkdir(dirname(folder), { recursive: true })
  const work = await mkdtemp(join(dirname(folder), 'new-'))
  try {
    const root = join(work, 'root')
    await mkdir(root)
    await fill(root, work)
    await rename(root, folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error
    })
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}
