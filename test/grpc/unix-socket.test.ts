import { once } from 'node:events'
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  symlinkSync,
  unlinkSync,
  writeFileSync
} from 'node:fs'
import { connect, createServer, type Server } from 'node:net'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import test, { type ExecutionContext } from 'ava'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import { listenOnUnixSocket, type UnixSocketOptions } from '../../src/grpc/unix-socket.ts'
import { temporaryFolder } from './extent-backend.ts'

// The umask belongs to the whole process, and one test sets it.
const serial = test.serial

/** Greets whoever connects; some leave without a word. */
function greeter(): Server {
  return createServer((socket) => socket.on('error', () => undefined).end('hello'))
}

async function listen(t: ExecutionContext, path: string, options?: UnixSocketOptions) {
  const server = greeter()
  const listener = await listenOnUnixSocket(server, path, options)
  t.teardown(() => listener.close())
  return { server, listener }
}

async function answers(path: string): Promise<boolean> {
  const socket = connect(path)
  try {
    const [data] = (await once(socket, 'data')) as [Buffer]
    return data.toString() === 'hello'
  } catch {
    return false
  } finally {
    socket.destroy()
  }
}

/** Leaves the file of a socket that nobody listens on: its listener closes under another name. */
async function leaveDeadSocket(path: string): Promise<void> {
  const server: Server = createServer()
  server.listen(`${path}.x`)
  await once(server, 'listening')
  renameSync(`${path}.x`, path)
  server.close()
  await once(server, 'close')
}

async function refused(t: ExecutionContext, promise: Promise<unknown>, code: ErrorCode, reason: RegExp) {
  const error = await t.throwsAsync(promise, { instanceOf: DeltamapperError, message: reason })
  t.is(error.code, code)
  t.not(error.remedy, '')
}

const modeOf = (path: string) => lstatSync(path).mode & 0o777

serial('listens with mode 0600, and leaves nothing else in the folder', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'csi.sock')
  const { listener } = await listen(t, path)
  t.is(modeOf(path), 0o600)
  t.true(await answers(path))
  t.deepEqual(readdirSync(folder), ['csi.sock'])
  listener.close()
  t.deepEqual(readdirSync(folder), [])
})

serial('mode and group are as configured', async (t) => {
  const path = join(temporaryFolder(t), 'csi.sock')
  // Root may give a socket to any group; others only to one of their own.
  const group = process.getuid!() === 0 ? 54321 : process.getegid!()
  await listen(t, path, { mode: 0o660, group })
  t.is(modeOf(path), 0o660)
  t.is(lstatSync(path).gid, group)
  t.true(await answers(path))
})

serial('a group can be given by name', async (t) => {
  const own = process.getegid!()
  const line = readFileSync('/etc/group', 'utf8')
    .split('\n')
    .find((group) => group.split(':')[2] === String(own))
  const path = join(temporaryFolder(t), 'csi.sock')
  await listen(t, path, { mode: 0o660, group: line?.split(':')[0] ?? String(own) })
  t.is(lstatSync(path).gid, own)
})

serial('at no moment is the socket more open than configured', async (t) => {
  const folder = temporaryFolder(t)
  // Another thread looks at every file in the folder as fast as it can.
  const stop = new Int32Array(new SharedArrayBuffer(4))
  const watcher = new Worker(
    `
    const { lstatSync, readdirSync } = require('node:fs')
    const { parentPort, workerData: { folder, stop } } = require('node:worker_threads')
    const seen = new Set()
    let looks = 0
    parentPort.postMessage('ready')
    while (Atomics.load(stop, 0) === 0) {
      looks++
      for (const name of readdirSync(folder)) {
        const stats = lstatSync(folder + '/' + name, { throwIfNoEntry: false })
        if (stats) seen.add((stats.mode & 0o777).toString(8) + ' ' + stats.gid)
      }
    }
    parentPort.postMessage({ seen: [...seen], looks })
    `,
    { eval: true, workerData: { folder, stop } }
  )
  await once(watcher, 'message')
  const root = process.getuid!() === 0
  const group = root ? 54321 : process.getegid!()
  const previous = process.umask(0)
  try {
    for (let i = 0; i < 100; i++) {
      const { listener } = await listen(t, join(folder, `${i}.sock`), i % 2 === 0 ? {} : { mode: 0o660, group })
      listener.close()
    }
    t.is(process.umask(0), 0, 'the umask is put back')
  } finally {
    process.umask(previous)
  }
  Atomics.store(stop, 0, 1)
  const [{ seen }] = (await once(watcher, 'message')) as [{ seen: string[]; looks: number }]
  await watcher.terminate()
  t.true(seen.length > 0)
  for (const state of seen) t.true(state.startsWith('600 ') || state === `660 ${group}`, state)
})

serial('a dead socket is replaced', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'csi.sock')
  await leaveDeadSocket(path)
  chmodSync(path, 0o777)
  t.false(await answers(path))
  await listen(t, path)
  t.true(await answers(path))
  t.is(modeOf(path), 0o600)
  t.deepEqual(readdirSync(folder), ['csi.sock'])
})

serial('a live socket is left alone', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'csi.sock')
  await listen(t, path)
  await refused(t, listen(t, path), 'DM_SOCKET_IN_USE', /another process is listening/)
  t.true(await answers(path))
  t.deepEqual(readdirSync(folder), ['csi.sock'])
})

serial('of two that start at once, one listens and the other says so', async (t) => {
  for (const dead of [false, true]) {
    const folder = temporaryFolder(t)
    const path = join(folder, 'csi.sock')
    if (dead) await leaveDeadSocket(path)
    const results = await Promise.allSettled([listen(t, path), listen(t, path)])
    t.deepEqual(results.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
    const loser = results.find((result) => result.status === 'rejected')
    t.is((loser?.reason as DeltamapperError).code, 'DM_SOCKET_IN_USE')
    t.true(await answers(path))
    t.deepEqual(readdirSync(folder), ['csi.sock'])
  }
})

serial('what a process left behind that was killed before the rename is cleaned up', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'csi.sock')
  // Its name follows from the socket's: found by watching one being bound.
  const bound: string[] = []
  const server = createServer()
  const realListen = server.listen.bind(server)
  server.listen = ((name: string) => (bound.push(name), realListen(name))) as Server['listen']
  ;(await listenOnUnixSocket(server, path)).close()
  await leaveDeadSocket(bound[0])
  t.true(existsSync(bound[0]))
  await listen(t, path)
  t.true(await answers(path))
  t.deepEqual(readdirSync(folder), ['csi.sock'])
})

serial('anything that is not a socket is refused and left alone', async (t) => {
  const folder = temporaryFolder(t)
  const file = join(folder, 'file')
  const directory = join(folder, 'directory')
  const link = join(folder, 'link')
  writeFileSync(file, 'precious')
  mkdirSync(directory)
  await leaveDeadSocket(join(folder, 'dead'))
  symlinkSync(join(folder, 'dead'), link)
  for (const path of [file, directory, link]) {
    await refused(t, listen(t, path), 'DM_CONFIG_INVALID', /no stream socket/)
  }
  t.is(readFileSync(file, 'utf8'), 'precious')
  t.true(lstatSync(link).isSymbolicLink())
  t.deepEqual(readdirSync(folder), ['dead', 'directory', 'file', 'link'])
})

serial('a path that the kernel cannot take is refused with its length', async (t) => {
  const folder = temporaryFolder(t)
  const longest = join(folder, `${'x'.repeat(107 - folder.length - 6)}.sock`)
  t.is(longest.length, 107)
  await listen(t, longest)
  t.true(await answers(longest))
  await refused(t, listen(t, `${longest}x`), 'DM_CONFIG_INVALID', /108 bytes long.*107/)
  // Bytes count, not characters.
  await refused(t, listen(t, join(folder, 'é'.repeat(50))), 'DM_CONFIG_INVALID', /bytes long/)
})

serial('a folder that is missing or none is named', async (t) => {
  const folder = temporaryFolder(t)
  await refused(t, listen(t, join(folder, 'no', 'csi.sock')), 'DM_CONFIG_INVALID', /folder .*no .*does not exist/)
  writeFileSync(join(folder, 'file'), '')
  await refused(t, listen(t, join(folder, 'file', 'csi.sock')), 'DM_CONFIG_INVALID', /folder/)
})

serial('a mode or group that cannot be is refused before anything is made', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'csi.sock')
  for (const mode of [-1, 0o1777, 0.5, NaN]) await refused(t, listen(t, path, { mode }), 'DM_CONFIG_INVALID', /mode/)
  for (const group of ['no-such-group', '', -1, 2 ** 32 - 1, '1.5']) {
    await refused(t, listen(t, path, { group }), 'DM_CONFIG_INVALID', /group/)
  }
  t.deepEqual(readdirSync(folder), [])
})

serial('closing removes the file only while it is ours', async (t) => {
  const folder = temporaryFolder(t)
  const path = join(folder, 'csi.sock')
  const { listener } = await listen(t, path)
  unlinkSync(path)
  const other = greeter()
  other.listen(path)
  await once(other, 'listening')
  t.teardown(() => other.close())
  listener.close()
  t.true(await answers(path))

  const gone = await listen(t, join(folder, 'gone.sock'))
  unlinkSync(join(folder, 'gone.sock'))
  t.notThrows(() => gone.listener.close())
})

serial('a successor may take over while connections of ours still go on', async (t) => {
  const path = join(temporaryFolder(t), 'csi.sock')
  const server = createServer()
  const first = await listenOnUnixSocket(server, path)
  const client = connect(path)
  const [accepted] = (await once(server, 'connection')) as [NodeJS.WritableStream & { destroy(): void }]
  first.close()
  await listen(t, path)
  t.true(await answers(path))
  accepted.write('still here')
  t.is(String((await once(client, 'data'))[0]), 'still here')
  accepted.destroy()
  client.destroy()
})
