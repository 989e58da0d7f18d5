import { spawn } from 'node:child_process'
import { once } from 'node:events'
import test, { type ExecutionContext } from 'ava'

const module = new URL('../../src/process/stop-signal.ts', import.meta.url).href

async function ends(t: ExecutionContext, start: string, withinMs: number) {
  const script = `
    import { startedBefore, stopSignal } from '${module}'
    const asked = stopSignal()
    const alive = setInterval(() => undefined, 60_000)
    process.stdout.write('ready')
    await startedBefore(asked, ${start}, ${withinMs})
    await asked
    clearInterval(alive)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => child.kill('SIGKILL'))
  await once(child.stdout, 'data')
  child.kill('SIGTERM')
  return (await once(child, 'exit')) as [number | null, string | null]
}

test('a start that hangs ends by the signal that asked for it', async (t) => {
  t.deepEqual(await ends(t, 'new Promise(() => setInterval(() => undefined, 1000))', 50), [null, 'SIGTERM'])
})

test('one that comes to an end is waited for', async (t) => {
  t.deepEqual(await ends(t, 'new Promise((resolve) => setTimeout(resolve, 20))', 600_000), [0, null])
})
