/**
 * What systemd would receive.
 */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
const say = `import { sayReady } from '${new URL('../../src/process/service-manager.ts', import.meta.url).href}'
  await sayReady(); await sayReady(); console.log(process.env.NOTIFY_SOCKET)`

/** Receives one datagram (Node cannot), says when it can, and prints it. */
const receiver = `import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(sys.argv[1].replace('@', '\\0', 1) if sys.argv[1][0] == '@' else sys.argv[1])
print('bound', flush=True); print(s.recv(100).decode(), flush=True); s.setblocking(False)
try: print('again', s.recv(100))
except BlockingIOError: print('once')`

for (const place of [join(folder, 'notify'), `@deltamapper-test-${process.pid}`]) {
  test(`ready is said once, to ${place.startsWith('@') ? 'an abstract socket' : 'a socket in a folder'}`, async (t) => {
    const hasPython = await promisify(execFile)('python3', ['--version']).then(Boolean, () => false)
    if (!hasPython) {
      t.pass('there is no python3 to receive it with')
      return
    }
    const child = spawn('python3', ['-c', receiver, place], { stdio: ['ignore', 'pipe', 'inherit'] })
    t.teardown(() => child.kill())
    const closed = once(child, 'close')
    let said = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => (said += text))
    while (!said.includes('bound')) await once(child.stdout, 'data')
    const env = { ...process.env, NOTIFY_SOCKET: place }
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', say], { env })
    t.is(stdout, 'undefined\n')
    await closed
    t.is(said, 'bound\nREADY=1\nonce\n')
  })
}

test('nobody who asked is told nothing, and who cannot be told is said', async (t) => {
  const run = (env: NodeJS.ProcessEnv) =>
    promisify(execFile)(process.execPath, ['--input-type=module', '-e', say], { env: { ...process.env, ...env } })
  await t.notThrowsAsync(run({}))
  await t.throwsAsync(run({ NOTIFY_SOCKET: join(folder, 'nobody') }), { message: /cannot be told/ })
})
