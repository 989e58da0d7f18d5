/** A folder of its own for a test file's images, gone when its tests are over. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { TestFn } from 'ava'

export async function testFolder(test: TestFn): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-test-'))
  test.after.always(() => rm(folder, { recursive: true }))
  return folder
}
