/**
 * What `deltamapper nbd` does once its command line is understood: open the snapshot, walk its maps once, serve, and
 * end.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { constants, tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { listenOnUnixSocket, type UnixSocketListener } from '../../grpc/unix-socket.ts'
import type { DeltamapperError } from '../../errors.ts'
import { dirtyBitmap } from '../../nbd/contexts.ts'
import { DIRTY } from '../../nbd/protocol.ts'
import { NbdServer } from '../../nbd/server.ts'
import { type NbdSource, type Offer, offers } from '../../nbd/source.ts'
import { nbdUri } from '../../nbd/uri.ts'
import { Validity } from '../../nbd/validity.ts'
import { childEnvironment } from '../../search-path.ts'
import { sayReady } from '../../process/service-manager.ts'
import { stopSignal } from '../../process/stop-signal.ts'
import { describeFailure, exitStatus, UsageError } from '../command-line/failure.ts'
import type { NbdOptions } from '../answers/nbd-options.ts'
import { openSource } from '../answers/nbd-sources.ts'
import { columns } from '../output/columns.ts'
import { written } from '../output/text-output.ts'
import { humanSize } from '../command-line/quantities.ts'

/** The descriptor on which systemd hands over a socket (sd_listen_fds(3)). */
const FIRST_LISTENING_FD = 3

/**
 * Serves until it is told to stop, or the command has ended.
 *
 * @throws UsageError, what opening the snapshot throws, DM_SOCKET_IN_USE
 */
export async function runNbd(target: string, options: NbdOptions): Promise<void> {
  const handedOver = isHandedOver()
  if (!options.list && options.run === undefined && options.socket === undefined && !handedOver) {
    throw new UsageError(
      'it was not said where to serve',
      'give --socket PATH or --run COMMAND; --list prints what would be served',
      'DM_ARGUMENT_MISSING'
    )
  }
  const stopped = stopSignal()
  // Walker threads keep no process alive on their own.
  const alive = setInterval(() => undefined, 2 ** 30)
  const remark = (text: string) => process.stderr.write(`deltamapper: ${text}\n`)
  let source: NbdSource | undefined
  try {
    source = await openSource(target, options, remark)
    const offered = offers(source)
    const sums = await survey(offered)
    if (options.list) await written(process.stdout, listed(offered, sums))
    else await serve(source, offered, options, stopped, handedOver)
  } finally {
    await source?.close()
    clearInterval(alive)
  }
}

/** Whether a service manager has opened the socket for this very process. */
function isHandedOver(): boolean {
  const { LISTEN_PID, LISTEN_FDS } = process.env
  return LISTEN_PID === String(process.pid) && Number(LISTEN_FDS) >= 1
}

/**
 * Bytes by state of each context, by export and context. Walks every map to its end: what is damaged shows now, and not
 * to a client.
 */
async function survey(offered: readonly Offer[]): Promise<Map<string, Map<number, number>>> {
  const sums = new Map<string, Map<number, number>>()
  const done = new Map<object, Map<number, number>>()
  for (const { export: each } of offered) {
    for (const [name, map] of each.contexts) {
      const sum = done.get(map) ?? (await map.survey())
      done.set(map, sum)
      sums.set(`${each.name} ${name}`, sum)
    }
  }
  return sums
}

function listed(offered: readonly Offer[], sums: Map<string, Map<number, number>>): string {
  const rows = offered.flatMap(({ export: { name, sizeBytes, contexts } }) =>
    [...contexts.keys()].map((context) => {
      const sum = sums.get(`${name} ${context}`)
      const isDirty = context.startsWith(dirtyBitmap(''))
      const bytes = sum?.get(isDirty ? DIRTY : 0) ?? 0
      return [name, String(sizeBytes), context, `${humanSize(bytes)} ${isDirty ? 'dirty' : 'data'}`]
    })
  )
  return columns([['EXPORT'], ['BYTES'], ['CONTEXT'], ['WHAT THERE IS']], rows)
}

async function serve(
  source: NbdSource,
  offered: readonly Offer[],
  options: NbdOptions,
  stopped: Promise<NodeJS.Signals>,
  handedOver: boolean
): Promise<void> {
  const failures: DeltamapperError[] = []
  const onFailure = (error: DeltamapperError) => {
    // A client may try again and again; what went wrong is said once.
    if (!failures.some(({ line }) => line === error.line)) {
      process.stderr.write(`${describeFailure(error).line}\n`)
      if (failures.length < 100) failures.push(error)
    }
  }
  const validity = new Validity(() => source.look())
  const server = new NbdServer({ exports: offered.map((each) => each.export), validity, onFailure })
  try {
    if (options.run !== undefined) await serveCommand(server, offered, options.run, stopped, failures)
    else if (handedOver) await serveHandedOver(server, stopped)
    else await serveSocket(server, resolve(options.socket ?? ''), options.socketMode, stopped)
  } finally {
    await server.close()
  }
  if (failures.length > 0 && !process.exitCode) process.exitCode = exitStatus.failed
}

async function serveSocket(
  server: NbdServer,
  path: string,
  mode: number | undefined,
  stopped: Promise<NodeJS.Signals>
): Promise<void> {
  const listener = await listenOnUnixSocket(server.listener, path, { mode: mode ?? 0o600 })
  try {
    await sayReady()
    await written(process.stdout, `listening on ${listener.path}\n`)
    await stopped
  } finally {
    listener.close()
  }
}

async function serveHandedOver(server: NbdServer, stopped: Promise<NodeJS.Signals>): Promise<void> {
  try {
    await listenToHandedOver(server)
    await sayReady()
    await stopped
  } finally {
    server.listener.close()
  }
}

/** @throws UsageError where it is not one unix socket that listens: nobody else may read the volume */
async function listenToHandedOver({ listener }: NbdServer): Promise<void> {
  const remedy = 'have a socket unit open one: ListenStream= with a path, and Accept=no'
  if (process.env['LISTEN_FDS'] !== '1') throw new UsageError('more than one socket was handed over', remedy)
  const listening = once(listener, 'listening').catch(() => {
    throw new UsageError('what was handed over as descriptor 3 is no socket that listens', remedy)
  })
  listener.listen({ fd: FIRST_LISTENING_FD })
  // Before anybody is let in.
  const address = listener.address()
  if (address !== null && typeof address !== 'string') {
    listening.catch(() => undefined)
    throw new UsageError('what was handed over as descriptor 3 is no unix socket: a network could read it', remedy)
  }
  await listening
}

/** Ends with the command's status: 128 and its number for a signal, as in a shell. */
async function serveCommand(
  server: NbdServer,
  offered: readonly Offer[],
  command: string,
  stopped: Promise<NodeJS.Signals>,
  failures: readonly DeltamapperError[]
): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-nbd-'))
  let listener: UnixSocketListener | undefined
  try {
    listener = await listenOnUnixSocket(server.listener, join(folder, 'socket'))
    const { path } = listener
    const [uri, increment] = offered.map((each) => nbdUri(each.export.name, path))
    const child = spawn('/bin/sh', ['-c', command], {
      stdio: 'inherit',
      env: childEnvironment({ uri, socket: path, ...(increment === undefined ? {} : { increment }) })
    })
    void stopped.then((signal) => child.kill(signal))
    const status = await ended(child)
    process.exitCode = status === 0 && failures.length > 0 ? exitStatus.failed : status
  } finally {
    listener?.close()
    await rm(folder, { recursive: true, force: true })
  }
}

async function ended(child: ChildProcess): Promise<number> {
  const [status, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null]
  return status ?? 128 + (signal === null ? 0 : constants.signals[signal])
}
