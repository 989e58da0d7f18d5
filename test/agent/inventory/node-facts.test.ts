import { hostname, release } from 'node:os'
import test from 'ava'
import { NodeInventory } from '../../../src/agent/inventory/node-facts.ts'

test('this very machine', async (t) => {
  const inventory = new NodeInventory()
  t.teardown(() => inventory.close())
  const node = await inventory.node(60_000)
  t.like(node, { hostname: hostname(), kernel: release() })
  t.is(node.problem, undefined)
  t.true(node.memoryBytes > 0 && node.processors > 0)
  t.not(node.operatingSystem, '')
  const { devices, problem } = await inventory.blockDevices(60_000, [])
  t.is(problem, undefined)
  for (const { path, sizeBytes } of devices) {
    t.regex(path, /^\/dev\//)
    t.true(Number.isSafeInteger(sizeBytes) && sizeBytes > 0)
  }
})

test('what is late is said, and what is known without asking is there', async (t) => {
  const inventory = new NodeInventory()
  t.teardown(() => inventory.close())
  const node = await inventory.node(1)
  t.is(node.kernel, release())
  t.like(node.problem, { code: 'DM_CALL_STUCK' })
  t.deepEqual((await inventory.blockDevices(1, [])).devices, [])
})

test('with a suspended device nobody is sent to look at all of them', async (t) => {
  const inventory = new NodeInventory()
  const { devices, problem } = await inventory.blockDevices(1000, ['vg0-data'])
  t.deepEqual(devices, [])
  t.like(problem, { code: 'DM_DEVICE_BUSY' })
  t.regex(problem?.message ?? '', /vg0-data is suspended/)
})

test('closed, it asks nothing more', async (t) => {
  const inventory = new NodeInventory()
  await inventory.close()
  t.like((await inventory.node(1000)).problem, { code: 'DM_SHUTTING_DOWN' })
})
