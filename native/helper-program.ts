/**
 * Starts one of our own programs as a process: with little memory, and without the parent's own options (an inspector's
 * port, a test runner's hooks), which are not for it.
 */
import { type ChildProcess, fork, type ForkOptions } from 'node:child_process'
import { getCompileCacheDir } from 'node:module'
import { extname } from 'node:path'
import { fileURLToPath } from 'node:url'

/**
 * Starts it.
 *
 * @param program `./name`, without extension: the sources run as .ts, the published package as .js
 * @param from the `import.meta.url` of the caller, beside which it lies
 * @param options those in which programs differ
 */
export function startHelper(
  program: string,
  from: string,
  args: readonly string[],
  options: Pick<ForkOptions, 'detached' | 'serialization' | 'stdio'>
): ChildProcess {
  const file = fileURLToPath(new URL(program + extname(import.meta.filename), from))
  return fork(file, args, { execArgv: ['--max-old-space-size=64'], env: helperEnvironment(), ...options })
}

/**
 * libdevmapper's messages are recognised by their English words; its debugging switches would abort the process or
 * reword them. With Node's compile cache, a program starts several times as fast.
 */
export function helperEnvironment(): NodeJS.ProcessEnv {
  const { DM_ABORT_ON_INTERNAL_ERRORS, DM_DEBUG_WITH_LINE_NUMBERS, NODE_OPTIONS, ...environment } = process.env
  void [DM_ABORT_ON_INTERNAL_ERRORS, DM_DEBUG_WITH_LINE_NUMBERS, NODE_OPTIONS]
  const compiled = getCompileCacheDir()
  return { ...environment, LC_ALL: 'C', ...(compiled === undefined ? {} : { NODE_COMPILE_CACHE: compiled }) }
}
