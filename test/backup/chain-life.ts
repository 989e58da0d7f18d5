/** Backups of a volume whose every snapshot is known, and what has to be true of its chain. */
import { readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Chain } from '../../src/backup/chain.ts'
import { makePoint, type MadePoint } from '../../src/backup/make-point.ts'
import { restore } from '../../src/backup/restore.ts'
import { numberOf, type VolumeHistory } from '../support/volume-history.ts'

export const VOLUME = 'm/volume'

/** Stores the snapshot of a number. */
export function store(
  chain: Chain,
  history: VolumeHistory,
  at: number,
  more: Partial<Parameters<typeof makePoint>[0]> = {}
): Promise<MadePoint> {
  return makePoint({
    ...{ chain, handle: `m/${at}`, created: new Date(Date.UTC(2026, 0, 1) + at * 1000) },
    open: async (handle, bases) => history.source(handle, bases),
    tools: { deltamapper: 'test', qemu_img: 'test' },
    ...more
  })
}

/** Restores every point, and returns those that are not what their snapshots hold. */
export async function wrongPoints(root: string, folder: string, history: VolumeHistory): Promise<string[]> {
  const wrong: string[] = []
  const chain = await Chain.open(root, VOLUME, 'shared')
  try {
    for (const { point, snapshot } of chain.points) {
      const to = join(folder, `restored-${process.pid}`)
      await restore(chain, point, to)
      if (!(await readFile(to)).equals(history.content(numberOf(snapshot.handle)))) wrong.push(point)
      await rm(to)
    }
  } finally {
    await chain.close()
  }
  return wrong
}

/** Files of the chain's folder that no manifest names. */
export async function unnamedFiles(chain: Chain): Promise<string[]> {
  const named = new Set(['lock', 'chain.json', ...chain.points.map(({ file }) => file)])
  return (await readdir(chain.folder)).filter((name) => !named.has(name))
}
