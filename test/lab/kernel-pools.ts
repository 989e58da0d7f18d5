/**
 * Random pools that a real kernel made, for tests on the host: one boot of the lab makes any number of them, and they are kept.
 */
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { KernelPoolHistory } from '../kernel/random-pool.ts'
import { LabFailure, projectFolder, runInLab } from './boot.ts'

export interface KernelPool {
  /** Path of the metadata image. */
  metadata: string
  /** What was done to the pool. */
  history: KernelPoolHistory
}

export interface KernelPoolsOptions {
  /** The pools are made from the seeds `seed`, `seed + 1`, … */
  seed: number
  count: number
  /** Where the pools are made and kept; by default a cache, which is as good as new once the script that makes them changes. */
  folder?: string
}

/** Makes the pools (about two seconds each, and a boot), or takes them from where they were kept. Throws LabUnavailable. */
export async function makeKernelPools({ seed, count, folder }: KernelPoolsOptions): Promise<KernelPool[]> {
  const script = join(projectFolder, 'test/kernel/random-pool.ts')
  const home = folder ?? join(projectFolder, '.cache/kernel-pools', `${seed}-${count}-${await hashOf(script)}`)
  if (!existsSync(home)) {
    await mkdir(join(home, '..'), { recursive: true })
    const work = await mkdtemp(`${home}-new-`)
    try {
      const words = ['--seed', String(seed), '--count', String(count), '--out', work]
      const { status, stderr, consoleLog } = await runInLab({
        command: [process.execPath, script, ...words],
        diskBytes: count * 32 * 2 ** 20,
        timeoutSeconds: 60 + 20 * count
      })
      if (status !== 0) throw new LabFailure(`making pools failed; kernel messages: ${consoleLog}\n${stderr}`)
      await rename(work, home).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error
      })
    } finally {
      await rm(work, { recursive: true, force: true })
    }
  }
  const seeds = Array.from({ length: count }, (_, index) => seed + index)
  return Promise.all(
    seeds.map(async (each) => {
      const pool = join(home, String(each))
      const history = JSON.parse(await readFile(join(pool, 'history.json'), 'utf8')) as KernelPoolHistory
      return { metadata: join(pool, 'metadata.img'), history }
    })
  )
}

async function hashOf(path: string): Promise<string> {
  return createHash('sha256')
    .update(await readFile(path))
    .digest('hex')
    .slice(0, 8)
}
