import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { socketAwaited } from '../../../src/cli/command-line/awaited-socket.ts'
import { writeSamplePool } from '../../agent/sample-pool.ts'
import { testFolder } from '../../support/test-folder.ts'
import { command, nodeFlags, runCommand } from '../run-command.ts'

const folder = testFolder(test)

test('a socket that is being made is waited for, and one that cannot be is not', async (t) => {
  const path = join(folder, 'late.sock')
  const waited = socketAwaited(`unix://${path}`, 600_000)
  await sleep(300)
  const server = createServer((socket) => socket.destroy()).listen(path)
  await waited
  server.close()
  // No folder, no unix socket, somebody's file: what is asked then has the better words.
  writeFileSync(join(folder, 'file'), '')
  await socketAwaited(`unix://${folder}/none/agent.sock`, 600_000)
  await socketAwaited('tcp://127.0.0.1:1', 600_000)
  await socketAwaited(`unix://${folder}/file/agent.sock`, 600_000)
  const begun = performance.now()
  await socketAwaited(`unix://${folder}/never.sock`, 500)
  t.true(performance.now() - begun >= 400)
})

test('an agent is there once its socket has been waited for', async (t) => {
  const sample = await writeSamplePool(join(folder, 'sample'))
  const endpoint = `unix://${folder}/agent.sock`
  const words = ['agent', '--listen', endpoint, '--recorded', `sample=${sample.folder}`]
  const agent = spawn(process.execPath, [...nodeFlags, command, ...words], { stdio: 'ignore' })
  t.teardown(() => agent.kill())
  await socketAwaited(endpoint, 600_000)
  const { status, stderr } = await runCommand(['allocated', 'sample/nothing', '--endpoint', endpoint])
  t.is(status, 1)
  t.regex(stderr, /DM_SNAPSHOT_NOT_FOUND/)
})

test('an agent that npx has started ends with the shell that npx starts it in', async (t) => {
  const sample = await writeSamplePool(join(folder, 'npx'))
  const words = ['agent', '--listen', `unix://${folder}/npx.sock`, '--recorded', `sample=${sample.folder}`]
  const line = [process.execPath, ...nodeFlags, command, ...words].map((word) => `'${word}'`).join(' ')
  // (What follows keeps the shell from becoming the agent.)
  const shell = spawn('sh', ['-c', `${line}; true`], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, npm_command: 'exec' }
  })
  let log = ''
  shell.stdout.setEncoding('utf8').on('data', (text: string) => (log += text))
  const closed = once(shell.stdout, 'close')
  while (!log.includes('"listening"')) await once(shell.stdout, 'data')
  shell.kill('SIGTERM')
  // Its log is closed by nobody but the agent.
  await closed
  t.regex(log, /"asked to stop"/)
  t.regex(log, /"stopped"/)
})
