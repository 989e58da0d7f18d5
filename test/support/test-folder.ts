/** A folder of its own for a test file's images, gone when its tests are over. */
import { mkdtempSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { TestFn } from 'ava'

/** To be called after everything that the file waits for: ava takes no test or hook a moment after the first one. */
export function testFolder(test: TestFn): string {
  const folder = mkdtempSync(join(tmpdir(), 'deltamapper-test-'))
  test.after.always(() => rm(folder, { recursive: true }))
  return folder
}
