/**
 * Makes dist/, which is what the published package runs: Node strips no types below node_modules, so there the sources would not do.
 * Everything else in a checkout runs the sources.
 */
import { execFile } from 'node:child_process'
import { cp, rm } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const project = fileURLToPath(new URL('..', import.meta.url))
process.chdir(project)

await rm('dist', { recursive: true, force: true })
try {
  await promisify(execFile)(process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json'])
} catch (error) {
  const { stdout, message } = error as Error & { stdout?: string }
  console.error(`build: ${stdout || message}`)
  process.exit(1)
}
// Read at run time, so that the compiler does not know of them.
for (const folder of ['grpc/protos', 'mock/scenarios', 'mock/mutants']) {
  await cp(`src/${folder}`, `dist/src/${folder}`, { recursive: true })
}
