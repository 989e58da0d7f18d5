/** Files that may not be read: what is wrong is the right, not the file. */
import { chmod, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { loadRecordedPool } from '../../src/agent/answers/recorded-pool.ts'
import { loadConfig } from '../../src/agent/config.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { KubernetesApi } from '../../src/kubernetes/api.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
const NOBODY = 65_534

test.serial('a file that may not be read is no file with a wrong content', async (t) => {
  await chmod(folder, 0o755)
  const config = join(folder, 'agent.yaml')
  const pool = join(folder, 'pool')
  await mkdir(pool)
  await Promise.all([writeFile(config, '{}'), writeFile(join(pool, 'pool.json'), '{}')])
  await Promise.all([chmod(config, 0), chmod(join(pool, 'pool.json'), 0)])
  const tries: Record<string, () => Promise<unknown>> = {
    'the configuration': () => loadConfig({ configFile: config }),
    'a recorded pool': () => loadRecordedPool('p', pool),
    'a kubeconfig': async () => new KubernetesApi({ kubeconfig: config })
  }
  const isRoot = process.geteuid?.() === 0
  if (isRoot) process.seteuid?.(NOBODY)
  try {
    for (const [what, attempt] of Object.entries(tries)) {
      const error = await t.throwsAsync(attempt(), { instanceOf: DeltamapperError }, what)
      t.not(error?.code, 'DM_INTERNAL', what)
      t.regex(error?.message ?? '', /EACCES/, what)
      t.is(error?.remedy, 'run as root, or give this user read access to it', what)
    }
  } finally {
    if (isRoot) process.seteuid?.(0)
  }
})
