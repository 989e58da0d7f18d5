/**
 * Runs what is made for another processor than this machine's: Debian's user-mode emulator translates it. It shows that
 * the right Node and the right native parts are in it, and that they answer.
 */
import { execFile } from 'node:child_process'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { completeFolder } from '../../test/lab/complete-folder.ts'
import { unpackRelease } from '../../test/lab/debian-release.ts'
import type { Architecture } from './architecture.ts'

/** What QEMU calls a processor. */
const emulated: Readonly<Record<Architecture, string>> = { amd64: 'x86_64', arm64: 'aarch64' }

/**
 * Runs `deltamapper` of an image.
 *
 * @param root the image's files, as a folder
 * @param cache where the emulator is kept
 * @returns stdout
 */
export async function runEmulated(
  root: string,
  architecture: Architecture,
  cache: string,
  words: readonly string[]
): Promise<string> {
  const folder = join(cache, 'emulator-1')
  await completeFolder(folder, async (place, work) => {
    await mkdir(join(place, 'root'))
    await unpackRelease('bookworm', ['qemu-user-static'], { work, root: join(place, 'root') })
  })
  const emulator = join(folder, 'root/usr/bin', `qemu-${emulated[architecture]}-static`)
  const program = ['usr/lib/deltamapper/node', 'usr/lib/deltamapper/bin/deltamapper.js'].map((each) => join(root, each))
  return (await promisify(execFile)(emulator, ['-L', root, ...program, ...words])).stdout.trim()
}
