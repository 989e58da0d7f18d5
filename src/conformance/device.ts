/**
 * Sizes of devices and files, in bytes.
 */
import { readFile, realpath, stat } from 'node:fs/promises'
import { SECTOR_BYTES } from '../units.ts'

/** Of a file its length; of a block device what sysfs says, in sectors of 512 bytes. */
export async function deviceBytes(path: string): Promise<number> {
  const stats = await stat(path)
  if (!stats.isBlockDevice()) return stats.size
  const [major, minor] = [stats.rdev >> 8, stats.rdev & 0xff]
  const sectors = await readFile(`${await realpath(`/sys/dev/block/${major}:${minor}`)}/size`, 'utf8')
  return Number(sectors) * SECTOR_BYTES
}
