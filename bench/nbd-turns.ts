/**
 * Turns of what is compared: dd, nbdcopy from nbdkit, dd, nbdcopy from deltamapper nbd. Each copy is held against the dd just before it, so that
 * whatever else the machine does hits both.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { cpuSeconds, timeProcess } from './measure.ts'

/** Turn by turn. */
export interface CopyFigures {
  readonly milliseconds: number[]
  /** Of the dd before it. */
  readonly ddMilliseconds: number[]
  /** Processor seconds of the server. */
  readonly cpu: number[]
}

/** What reading all of the snapshot takes. */
export interface NbdFigures {
  readonly bytes: number
  readonly nbdkit: CopyFigures
  readonly own: CopyFigures
}

export interface Servers {
  /** Folder of a release's tools. */
  readonly tools: string
  /** Empty, for sockets. */
  readonly folder: string
  /** What `deltamapper nbd` serves, in words of its command line. */
  readonly words: readonly string[]
  /** A file or device with the same bytes, which dd and nbdkit read. */
  readonly path: string
  /** Its size in bytes. */
  readonly bytes: number
}

/** One turn more than `rounds` is made: what is done only once is not what is measured. */
export async function nbdTurns({ tools, folder, words, path, bytes }: Servers, rounds: number): Promise<NbdFigures> {
  const [ownSocket, kitSocket] = [join(folder, 'own'), join(folder, 'kit')]
  const command = join(import.meta.dirname, '../bin/deltamapper.js')
  const own = start(process.execPath, [command, 'nbd', ...words, '--socket', ownSocket])
  // Its file plugin is written in C and checks nothing: what reading over NBD costs at least.
  const plugin = join(tools, '../usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-file-plugin.so')
  const kit = start(join(tools, 'nbdkit'), ['-f', '-r', '-U', kitSocket, plugin, path, 'cache=none'])
  while (!existsSync(ownSocket) || !existsSync(kitSocket)) await sleep(50)
  const copies = [
    { server: kit, socket: kitSocket, figures: newFigures() },
    { server: own, socket: ownSocket, figures: newFigures() }
  ]
  for (let round = 0; round <= rounds; round++) {
    for (const { server, socket, figures } of copies) {
      const dd = await milliseconds('dd', [`if=${path}`, 'of=/dev/null', 'iflag=direct', 'bs=2M'])
      const before = cpuSeconds(server.pid ?? 0)
      const copied = await milliseconds(join(tools, 'nbdcopy'), [`nbd+unix:///?socket=${socket}`, 'null:'])
      if (round === 0) continue
      figures.cpu.push(cpuSeconds(server.pid ?? 0) - before)
      figures.ddMilliseconds.push(dd)
      figures.milliseconds.push(copied)
    }
  }
  for (const { server } of copies) {
    server.kill()
    await once(server, 'exit')
  }
  return { bytes, nbdkit: copies[0].figures, own: copies[1].figures }
}

function newFigures(): CopyFigures {
  return { milliseconds: [], ddMilliseconds: [], cpu: [] }
}

function start(program: string, words: readonly string[]): ChildProcess {
  return spawn(program, words, { stdio: ['ignore', 'ignore', 'inherit'] })
}

async function milliseconds(program: string, words: readonly string[]): Promise<number> {
  return (await timeProcess(program, words, process.env, 'ignore')).milliseconds
}
