/**
 * The version of deltamapper, from package.json, which both a checkout and the published package have above this folder.
 */
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

export const version = readVersion(import.meta.dirname)

function readVersion(folder: string): string {
  for (;;) {
    try {
      const { name, version } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as Record<string, string>
      if (name === 'deltamapper') return version
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
    if (folder === dirname(folder)) throw new Error('package.json of deltamapper is missing: install it again')
    folder = dirname(folder)
  }
}
