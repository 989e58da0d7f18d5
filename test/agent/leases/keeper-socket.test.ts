/** One at a time listens beside a catalog, and who was killed there is in nobody’s way. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { isAnswered, keeperSocket, listenAt } from '../../../src/agent/leases/keeper-socket.ts'

const folder = mkdtempSync(join(tmpdir(), 'keeper-socket-'))
test.after.always(() => rmSync(folder, { recursive: true }))

test('one at a time, however long the path is', async (t) => {
  const deep = join(folder, 'x'.repeat(200))
  mkdirSync(deep)
  const path = keeperSocket(join(deep, `${'c'.repeat(100)}.sqlite`), 'dm-uuid:one')
  t.not(path, keeperSocket(join(deep, `${'c'.repeat(100)}.sqlite`), 'dm-uuid:two'))
  t.not(path, keeperSocket(join(deep, 'other.sqlite'), 'dm-uuid:one'))
  t.false(await isAnswered(path))
  const server = await listenAt(path)
  t.truthy(server)
  t.true(await isAnswered(path))
  t.is(await listenAt(path), undefined)
  server!.close()
  await once(server!, 'close')
  t.false(await isAnswered(path))
})

test('the file that a killed one leaves is in nobody’s way', async (t) => {
  const path = keeperSocket(join(folder, 'catalog'), 'dm-uuid:killed')
  const program = `require('net').createServer().listen(process.argv[1], () => console.log('listening'))`
  const child = spawn(process.execPath, ['-e', program, path], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(child.stdout, 'data')
  t.true(await isAnswered(path))
  t.is(await listenAt(path), undefined)
  child.kill('SIGKILL')
  await once(child, 'exit')
  t.true(existsSync(path))
  t.false(await isAnswered(path))
  const server = await listenAt(path)
  t.truthy(server)
  server!.close()
})

test('where no file can be made, that is said', async (t) => {
  const path = keeperSocket('/proc/nowhere/catalog', 'dm-uuid:one')
  await t.throwsAsync(listenAt(path), { code: 'ENOENT' })
})
