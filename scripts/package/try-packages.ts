/**
 * The packages and images as they are published, made twice: the same bytes, and nothing that lintian calls an error. Takes some minutes.
 */
import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { runQuietly } from '../../test/lab/debian-release.ts'
import { LabUnavailable } from '../../test/lab/packages.ts'
import { architectures } from './architecture.ts'
import { makeDeb } from './deb.ts'
import { makeImage, tryImage } from './image.ts'

/**
 * Makes and tries them.
 *
 * @param say told of each as it is made
 * @returns what was seen
 * @throws Error where two builds differ, lintian finds an error, or the image does not work
 */
export async function tryPackages(say: (line: string) => void): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-packages-'))
  const seen: string[] = []
  try {
    for (const architecture of architectures) {
      const digests: string[] = []
      for (const output of ['one', 'two'].map((each) => join(folder, each))) {
        const deb = await makeDeb({ architecture, output })
        if (output.endsWith('one')) seen.push(await lintian(deb, folder))
        const image = await makeImage({ architecture, output })
        const bytes = createHash('sha256').update(await readFile(deb))
        digests.push(`${bytes.digest('hex')} ${image.digest}`)
        say(`${architecture}: ${digests.at(-1)}`)
        if (output.endsWith('two')) seen.push(...(await tryImage(image)))
      }
      if (digests[0] !== digests[1]) throw new Error(`${architecture}: two builds differ: ${digests.join(', then ')}`)
    }
    return seen.join('; ')
  } finally {
    await rm(folder, { recursive: true })
  }
}

async function lintian(deb: string, folder: string): Promise<string> {
  try {
    // (Exit status 2 where a tag of this kind is found.)
    await runQuietly('lintian', ['--allow-root', '--fail-on', 'error', deb], folder)
    return 'lintian finds no error'
  } catch (error) {
    if (error instanceof LabUnavailable) return 'no lintian on this machine'
    throw error
  }
}
