/**
 * What the agent's threads load as they start. A thread that is ended while it loads koffi aborts the process (its
 * `napi_throw` fails then), and an agent can be stopped as soon as it listens.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import test from 'ava'

for (const program of [
  'walker-thread',
  'inventory/node-worker',
  'catalog/catalog-worker',
  'era/history/history-record-worker'
]) {
  test(`${program} loads no koffi`, async (t) => {
    const file = new URL(`../../src/agent/${program}.ts`, import.meta.url).href
    // (What it does itself comes after what it imports, and needs a thread.)
    const script = `
      const failure = await import(${JSON.stringify(file)}).then(() => '', (error) => String(error.code))
      const loaded = process.report.getReport().sharedObjects.filter((each) => each.endsWith('/koffi.node'))
      console.log(JSON.stringify({ failure, loaded }))
      process.exit()`
    const words = ['--input-type=module', '--eval', script]
    const { stdout } = await promisify(execFile)(process.execPath, words)
    const { failure, loaded } = JSON.parse(stdout) as { failure: string; loaded: string[] }
    t.not(failure, 'ERR_MODULE_NOT_FOUND')
    t.deepEqual(loaded, [])
  })
}

test('walkers may be closed at any moment of their start', async (t) => {
  const file = new URL('../../src/agent/walks/walkers.ts', import.meta.url).href
  const script = `
    const { Walkers } = await import(${JSON.stringify(file)})
    const { setTimeout: sleep } = await import('node:timers/promises')
    for (let i = 0; i < 40; i++) {
      const walkers = new Walkers(2, { reads: 'auto' })
      await sleep(i * 4)
      await walkers.close()
    }
    console.log('closed')`
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', script])
  t.is(stdout, 'closed\n')
})
