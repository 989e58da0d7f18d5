/**
 * Where to look for the programs that we start, mostly as root. An empty or relative element of PATH is the current
 * directory, where anyone with write access could place a program. So such elements are dropped, and the folders of
 * system tools are always included.
 */
import { isAbsolute } from 'node:path'

/** The system's tools. (Many a PATH lacks /usr/sbin and /sbin; without any PATH all are missing.) */
const SYSTEM_FOLDERS = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin']

/** The absolute folders of a PATH, in their order, then those of the system that it lacks. */
export function searchPath(path = ''): string {
  const folders = absoluteFolders(path)
  return [...folders, ...SYSTEM_FOLDERS.filter((each) => !folders.includes(each))].join(':')
}

/** The environment of programs that we start: this process's, with nothing that leads to the current directory. */
export function childEnvironment(more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  const { PATH, LD_LIBRARY_PATH, ...others } = process.env
  // (ld.so(8): an empty element is the current directory there, too.)
  const libraries = absoluteFolders(LD_LIBRARY_PATH)
  return {
    ...others,
    PATH: searchPath(PATH),
    ...(libraries.length === 0 ? {} : { LD_LIBRARY_PATH: libraries.join(':') }),
    ...more
  }
}

/**
 * What is wrong with the words of a command in a configuration; undefined if nothing is. The program must be a name, to
 * be looked for, or an absolute path; so must all of a PATH that `env` sets.
 */
export function faultOfCommand([program = '', ...words]: readonly string[]): string | undefined {
  if (program.includes('/') && !isAbsolute(program)) {
    return `${JSON.stringify(program)} depends on the current directory: give its absolute path, or only its name`
  }
  const relative = words.find((word) => /^(PATH|LD_LIBRARY_PATH)=/.test(word) && !allAbsolute(word))
  return relative && `${JSON.stringify(relative)} names the current directory: give absolute folders only`
}

function allAbsolute(assignment: string): boolean {
  const folders = assignment.slice(assignment.indexOf('=') + 1).split(':')
  return folders.every((each) => isAbsolute(each))
}

function absoluteFolders(path = ''): string[] {
  return path.split(':').filter((each) => isAbsolute(each))
}
