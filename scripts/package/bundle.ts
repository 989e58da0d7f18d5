/**
 * The program as one folder that needs no `npm install`: esbuild joins our sources and all packages in plain
 * JavaScript; packages with native or WebAssembly parts lie beside them, without what they have for other machines.
 *
 * What is loaded together is one file, and what only one command needs is a file of its own: an agent does not load
 * what speaks to Kubernetes. Programs that are started by their file (threads, helper processes) keep their places,
 * as in the npm package.
 */
import { cp, mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build, type Plugin } from 'esbuild'
import { type Architecture, ownArchitecture } from './architecture.ts'
import { copyLocked } from './locked-packages.ts'

const project = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')

/**
 * What is started by its file: the command itself, threads and helper processes. The rules of a conformance run are
 * found by their folder.
 */
export const programs = [
  'src/cli/main.ts',
  'src/agent/walker-thread.ts',
  'src/agent/catalog/catalog-worker.ts',
  'src/agent/era/boundary/watchdog-process.ts',
  'src/agent/era/history/history-record-worker.ts',
  'src/agent/inventory/node-worker.ts',
  'src/agent/leases/lease-keeper-process.ts',
  'native/device-mapper-worker.ts'
]

/** Packages that are not joined, and the files of each that running takes. */
const besides: Readonly<Record<string, RegExp>> = {
  koffi: /^(package\.json|LICENSE\.txt|index\.c?js|src\/koffi\/(index|src\/(static|trampolines))\.c?js)$/,
  '@node-rs/crc32': /^(package\.json|LICENSE|index\.js)$/,
  'roaring-wasm': /^(package\.json|LICENSE|index\.js|index\.wasm)$/
}

/** The packages with the native part of each, which is another one for each processor. */
const nativeParts: Readonly<Record<Architecture, readonly string[]>> = {
  amd64: ['@koromix/koffi-linux-x64', '@node-rs/crc32-linux-x64-gnu'],
  arm64: ['@koromix/koffi-linux-arm64', '@node-rs/crc32-linux-arm64-gnu']
}

/** Read at run time, so that no bundler knows of them. */
const readAtRunTime = ['grpc/protos', 'mock/scenarios', 'mock/mutants']

/**
 * Writes the program into `folder`: bin/, dist/, node_modules/ and package.json.
 *
 * @returns the folders of all packages that are part of it, relative to the checkout (`node_modules/NAME`)
 */
export async function bundle(folder: string, architecture: Architecture): Promise<string[]> {
  const rules = (await readdir(join(project, 'src/conformance/rules'))).map((name) => `src/conformance/rules/${name}`)
  const { outputFiles, metafile } = await build({
    absWorkingDir: project,
    entryPoints: [...programs, ...rules],
    outdir: join(folder, 'dist'),
    outbase: '.',
    chunkNames: 'chunks/[hash]',
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node24',
    minifySyntax: true,
    minifyWhitespace: true,
    legalComments: 'none',
    external: Object.keys(besides),
    // Joined packages that are CommonJS ask for Node's own modules by `require`.
    banner: {
      js: `import{createRequire as joinedRequire}from'node:module';const ${JOINED_FILE}=import.meta.url,require=joinedRequire(${JOINED_FILE});`
    },
    metafile: true,
    write: false,
    logLevel: 'warning',
    plugins: [ownPlaces]
  })
  for (const { path, text } of outputFiles) {
    await mkdir(dirname(path), { recursive: true })
    await writeFile(path, text.replaceAll(PACKAGE_ROOT, `${relative(dirname(path), join(folder, 'dist'))}/`))
  }
  for (const each of readAtRunTime) {
    await cp(join(project, 'src', each), join(folder, 'dist/src', each), { recursive: true })
  }
  await mkdir(join(folder, 'bin'))
  await cp(join(project, 'bin/deltamapper.js'), join(folder, 'bin/deltamapper.js'))
  const manifest = JSON.parse(await readFile(join(project, 'package.json'), 'utf8')) as Record<string, unknown>
  const { name, version, type, license } = manifest
  await writeFile(join(folder, 'package.json'), `${JSON.stringify({ name, version, type, license, private: true })}\n`)
  for (const [name, wanted] of Object.entries(besides)) await copyPackage(name, wanted, folder)
  for (const each of nativeParts[architecture]) await copyLocked(each, join(folder, 'node_modules', each), isNeeded)
  const joined = Object.keys(metafile.inputs).flatMap(
    (path) => /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0] ?? []
  )
  const packages = [...new Set(joined)]
  await copyProtos(packages, folder)
  const others = [...Object.keys(besides), ...nativeParts[architecture]].map((each) => `node_modules/${each}`)
  return [...packages, ...others].sort()
}

/**
 * Stands for the way from a file of the bundle to the folder that holds what `outbase` does, until it is known where
 * the file is.
 */
const PACKAGE_ROOT = '@@package-root@@/'
/** The URL of the file of the bundle that a source has been joined into, in what the bundle adds to each. */
const JOINED_FILE = 'joinedFile'

/**
 * A source that looks for something beside it finds it where the npm package has it, whichever file the source has
 * been joined into; packages find theirs in dist/packages/. Those that ask where they are for another reason want a
 * file that is there: any of ours.
 */
const ownPlaces: Plugin = {
  name: 'own-places',
  setup(build) {
    const placeOf = (place: string) => `new URL(${JSON.stringify(PACKAGE_ROOT + place)}, ${JOINED_FILE})`
    const folderOf = (source: string) =>
      `process.getBuiltinModule('node:url').fileURLToPath(${placeOf(dirname(source))})`
    build.onLoad({ filter: /\.ts$/ }, async ({ path }) => {
      const source = relative(project, path)
      const contents = (await readFile(path, 'utf8'))
        .replace(/(?<!(findPackageJSON|createRequire)\()import\.meta\.url/g, () => `${placeOf(source)}.href`)
        .replace(/import\.meta\.dirname/g, () => folderOf(source))
      return { contents, loader: 'ts' }
    })
    build.onLoad({ filter: /node_modules\/.*\.c?js$/ }, async ({ path }) => {
      const text = await readFile(path, 'utf8')
      if (!/\b__dirname\b/.test(text)) return undefined
      const source = relative(project, path).replace(/^node_modules\//, 'packages/')
      return { contents: text.replace(/\b__dirname\b/g, () => folderOf(source)), loader: 'js' }
    })
  }
}

/** The protos of packages that read them at run time. */
async function copyProtos(packages: readonly string[], folder: string): Promise<void> {
  for (const name of packages) {
    for (const file of await readdir(join(project, name), { recursive: true })) {
      if (!/(^|\/)proto\/.*\.proto$/.test(file) || /node_modules|sample/.test(file)) continue
      const to = join(folder, 'dist', name.replace(/^node_modules\//, 'packages/'), file)
      await mkdir(dirname(to), { recursive: true })
      await cp(join(project, name, file), to)
    }
  }
}

/** (koffi has a library for musl as well, which Debian has no use for.) */
const isNeeded = (path: string) => !/^(musl_|README)/.test(path)

async function copyPackage(name: string, wanted: RegExp, folder: string): Promise<void> {
  const from = join(project, 'node_modules', name)
  for (const file of await readdir(from, { recursive: true })) {
    if (!wanted.test(file)) continue
    await mkdir(dirname(join(folder, 'node_modules', name, file)), { recursive: true })
    await cp(join(from, file), join(folder, 'node_modules', name, file))
  }
}

// `node scripts/package/bundle.ts FOLDER`: for this machine's processor; how scripts/test.mjs makes what the kernel tests start.
if (import.meta.main) {
  const [folder] = process.argv.slice(2)
  if (folder === undefined) throw new Error('usage: bundle.ts FOLDER')
  await bundle(folder, ownArchitecture())
}
