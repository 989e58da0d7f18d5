/**
 * nbdkit, whose file plugin is written in C and checks nothing: what reading over NBD costs at least.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { join } from 'node:path'

/** @param tools folder of a release's tools @param served a file or device, which is read around the page cache */
export function startNbdkit(tools: string, socket: string, served: string): ChildProcess {
  const plugin = join(tools, '../usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-file-plugin.so')
  const words = ['-f', '-r', '-U', socket, plugin, served, 'cache=none']
  return spawn(join(tools, 'nbdkit'), words, { stdio: ['ignore', 'ignore', 'inherit'] })
}
