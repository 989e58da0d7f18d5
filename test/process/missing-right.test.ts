/** Files that may not be read or made: what is wrong is the right, and which user has to be given it. */
import { chmod, mkdir, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import test from 'ava'
import { loadRecordedPool } from '../../src/agent/answers/recorded-pool.ts'
import { openDatabase } from '../../src/agent/catalog/database.ts'
import { loadConfig } from '../../src/agent/config.ts'
import { openXmlInput } from '../../src/cli/answers/xml-input.ts'
import { readHooks } from '../../src/conformance/hooks.ts'
import { BaseRecordReader } from '../../src/devicemapper/thin/base-record/reader.ts'
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { readTlsMaterial } from '../../src/grpc/tls.ts'
import { listenOnUnixSocket } from '../../src/grpc/unix-socket.ts'
import { KubernetesApi } from '../../src/kubernetes/api.ts'
import { loadScenario } from '../../src/mock/driver/scenario.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
const NOBODY = 65_534

/** What is tried with a file, or in a folder, that this user has no right to. */
const tries: Record<string, (file: string, folder: string) => unknown> = {
  'the configuration': (file) => loadConfig({ configFile: file }),
  'a recorded pool': (_, pool) => loadRecordedPool('p', pool),
  'a kubeconfig': async (file) => new KubernetesApi({ kubeconfig: file }),
  metadata: (file) => openPoolMetadata(file),
  XML: (file) => openXmlInput(file, new AbortController().signal),
  'a base record': (file) => BaseRecordReader.open(file),
  'a TLS key': (file) => readTlsMaterial({ certificate: file, key: file, ca: file }),
  hooks: (file) => readHooks(file),
  'a scenario': async (file) => loadScenario(`${file}`, 1),
  'a catalog': (_, at) => openDatabase(join(at, 'catalog.db')),
  'a socket': (_, at) => listenOnUnixSocket(createServer(), join(at, 'a.sock'))
}

test.serial('whoever lacks a right is told which, and for which user', async (t) => {
  await chmod(folder, 0o755)
  const [file, shut] = [join(folder, 'file.yaml'), join(folder, 'shut')]
  await mkdir(shut)
  await Promise.all([writeFile(file, '{}'), writeFile(join(shut, 'pool.json'), '{}')])
  await Promise.all([chmod(file, 0), chmod(join(shut, 'pool.json'), 0), chmod(shut, 0o555)])
  const isRoot = process.geteuid?.() === 0
  if (isRoot) process.seteuid?.(NOBODY)
  try {
    for (const [what, attempt] of Object.entries(tries)) {
      const error = await t.throwsAsync(async () => attempt(file, shut), { instanceOf: DeltamapperError }, what)
      t.not(error?.code, 'DM_INTERNAL', what)
      t.regex(error?.message ?? '', /EACCES/, what)
      t.regex(
        error?.remedy ?? '',
        new RegExp(
          `^run as root, or give user ${process.geteuid?.()} (read access to it|the right to write into its folder),`
        ),
        what
      )
    }
  } finally {
    if (isRoot) process.seteuid?.(0)
  }
})
