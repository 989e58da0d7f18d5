/**
 * Our own agent, on a pool that a real kernel wrote, and the router before it, keep every rule that can be
 * judged without writing.
 */
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { runConformance } from '../../src/conformance/conformance.ts'
import { readPoolDescription, unpackRecordedPool } from '../fixtures/recorded-pool.ts'
import { runAgent, runRouter } from '../support/in-process.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
let recorded: string
let own: Snapshot[]
let other: Snapshot[]

test.before(async () => {
  recorded = await unpackRecordedPool()
  const { snapshots, volumes } = await readPoolDescription(recorded)
  ;[own, other] = volumes.map(({ name }) => snapshots.filter((each) => each.volume === name))
})

type Snapshot = Awaited<ReturnType<typeof readPoolDescription>>['snapshots'][number]

async function judged(t: ExecutionContext, endpoint: string): Promise<void> {
  const id = (name: string) => `demo/${name}`
  const { report } = await runConformance({
    endpoint,
    snapshots: own.map(({ name }) => id(name)),
    otherSnapshots: other.map(({ name }) => id(name)),
    deviceBytes: Object.fromEntries([own[0], own.at(-1)!].map(({ name, size_bytes }) => [id(name), size_bytes])),
    patience: { slowReaderMs: 200 }
  })
  const bad = report.rules.filter(({ outcome }) => outcome === 'fail' || outcome === 'warn')
  t.deepEqual(
    bad.map(({ number, seen }) => `${number}: ${seen}`),
    []
  )
  t.true(report.summary.pass >= 30, JSON.stringify(report.summary))
}

test.serial('our agent', async (t) => {
  const endpoint = `unix://${join(folder, 'agent.sock')}`
  await runAgent(t, { listen: [endpoint], recorded: { demo: recorded } })
  await judged(t, endpoint)
})

test.serial('our router', async (t) => {
  const agent = `unix://${join(folder, 'node.sock')}`
  const endpoint = `unix://${join(folder, 'router.sock')}`
  await runAgent(t, { listen: [agent], recorded: { demo: recorded } })
  await runRouter(t, {
    listen: [endpoint],
    driverName: 'topolvm.io',
    static: { nodes: { node: agent }, handles: [{ pattern: '(?<vg>[^/]+)/(?<lv>.+)', node: 'node' }] }
  })
  await judged(t, endpoint)
})
