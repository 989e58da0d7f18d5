/** The bundle has every program that sources start by its file: what is missing is only noticed where it is started. */
import { glob, readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { programs } from '../../scripts/package/bundle.ts'

const project = fileURLToPath(new URL('../..', import.meta.url))
/** A file named beside `import.meta.url`, without its ending: the sources' is .ts, the package's .js. */
const started = /['`](\.\.?\/[\w./-]+)(?:\$\{extname\(import\.meta\.filename\)\}`|'), import\.meta\.url/g

test('each thread and helper process that a source starts is a program of the bundle, and the other way round', async (t) => {
  const found = new Set(['src/cli/main.ts'])
  for await (const file of glob('{src,native}/**/*.ts', { cwd: project })) {
    const source = await readFile(join(project, file), 'utf8')
    for (const [, name] of source.matchAll(started)) found.add(`${join(dirname(file), name)}.ts`)
    // (What only such a file does, so that another way of starting it is noticed.)
    if (/\bparentPort\b/.test(source)) found.add(file)
  }
  t.deepEqual([...found].sort(), [...programs].sort())
})
