/** Names in a folder: a file that was made or renamed is there after a power cut only once its folder is on disk. */
import { open } from 'node:fs/promises'

/** @throws what opening and fsync throw */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
