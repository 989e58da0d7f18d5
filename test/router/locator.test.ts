import test, { type ExecutionContext } from 'ava'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import { fixedAgents } from '../../src/router/relay/agents.ts'
import type { Located } from '../../src/router/drivers/driver.ts'
import { Locator } from '../../src/router/locator.ts'
import { handlePattern, readHandle } from '../../src/router/drivers/handle-patterns.ts'

const nodes = new Map([
  ['a', 'tcp://a:1'],
  ['b', 'tcp://b:1'],
  ['c', 'tcp://c:1']
])
const patterns = [handlePattern('(?<node>[a-z]):(?<vg>\\w+)/(?<lv>\\w+)')]
const { signal } = new AbortController()

/** Which nodes have a snapshot, for each handle; those in `silent` do not say. */
function locator(having: Record<string, string>, silent = '', known: Record<string, Located> = {}) {
  const asked: string[] = []
  const made = new Locator({
    locate: async (snapshotId) => known[snapshotId] ?? readHandle(snapshotId, patterns),
    agents: fixedAgents(nodes),
    ask: async ({ node, handle }) => {
      asked.push(`${node} ${handle}`)
      return silent.includes(node) ? `${node} is out of disks` : (having[handle] ?? '').includes(node)
    }
  })
  return { made, asked }
}

async function fails(t: ExecutionContext, promise: Promise<unknown>, code: ErrorCode, words: RegExp) {
  const error = await t.throwsAsync(promise, { instanceOf: DeltamapperError, message: words })
  t.is(error.code, code)
}

test('what the handle says is not asked for', async (t) => {
  const { made, asked } = locator({})
  t.like(await made.target('b:vg/x', signal), { node: 'b', address: 'tcp://b:1', handle: 'vg/x' })
  const { target, baseHandle } = await made.pair('b:vg/w', 'b:vg/x', signal)
  t.deepEqual([target.node, target.handle, baseHandle], ['b', 'vg/x', 'vg/w'])
  await fails(t, made.target('z:vg/x', signal), 'DM_NODE_UNKNOWN', /"z"/)
  await fails(t, made.pair('a:vg/w', 'b:vg/x', signal), 'DM_NODES_DIFFER', /base is on node "a", the target on "b"/)
  t.deepEqual(asked, [])
})

test('else every agent is asked, and exactly one has to have it', async (t) => {
  const { made, asked } = locator({ 'vg/one': 'b', 'vg/two': 'ac' })
  t.like(await made.target('vg/one', signal), { node: 'b', address: 'tcp://b:1', handle: 'vg/one' })
  t.deepEqual(asked, ['a vg/one', 'b vg/one', 'c vg/one'])
  await fails(t, made.target('vg/two', signal), 'DM_NODE_AMBIGUOUS', /a, c all have/)
  await fails(t, made.target('vg/none', signal), 'DM_SNAPSHOT_NOT_FOUND', /"vg\/none"/)
})

test('an agent that does not answer might have it as well', async (t) => {
  const { made } = locator({ 'vg/one': 'b' }, 'c')
  for (const handle of ['vg/one', 'vg/none']) {
    await fails(t, made.target(handle, signal), 'DM_AGENT_UNREACHABLE', /not all agents do: c is out of disks/)
  }
})

test('a base that has to be asked for is looked for where the target is', async (t) => {
  const { made } = locator({ 'vg/base': 'ab', 'vg/far': 'a', 'vg/target': 'b' })
  t.is((await made.pair('vg/base', 'vg/target', signal)).target.node, 'b')
  t.is((await made.pair('vg/base', 'b:vg/target', signal)).baseHandle, 'vg/base')
  await fails(t, made.pair('vg/far', 'vg/target', signal), 'DM_NODES_DIFFER', /"a".*"b"/)
  await fails(t, made.pair('a:vg/base', 'vg/target', signal), 'DM_NODES_DIFFER', /"a".*"b"/)
  t.is((await made.pair('vg/gone', 'vg/target', signal)).target.node, 'b', 'its agent says what became of it')
})

test('a base that the cluster knows nothing of any more is asked for of the target’s agent, by the name it had', async (t) => {
  const gone = new DeltamapperError('DM_SNAPSHOT_NOT_FOUND', 'there is no LogicalVolume', 'check the handle')
  const asked: string[] = []
  const parts = (whenGone: ConstructorParameters<typeof Locator>[0]['whenGone']) =>
    new Locator({
      locate: async (id) => {
        if (id === 'base') throw gone
        return id === 'bare' ? { handle: '*/bare' } : { node: 'b', handle: 'vg/target', origin: 'data' }
      },
      whenGone,
      agents: fixedAgents(nodes),
      ask: async ({ node, handle }) => {
        asked.push(`${node} ${handle}`)
        return false
      }
    })
  const made = parts((id, { handle }) => `${handle.split('/')[0]}/${id}`)
  const { target, baseHandle } = await made.pair('base', 'target', signal)
  t.deepEqual([target.node, target.handle, baseHandle], ['b', 'vg/target', 'vg/base'])
  t.deepEqual(asked, [], 'no other agent can tell more')
  t.is((await made.pair('bare', 'target', signal)).baseHandle, 'vg/bare', 'no agent has it by the name without a group')
  t.is(await t.throwsAsync(parts(() => undefined).pair('base', 'target', signal)), gone)
  t.is(await t.throwsAsync(made.target('base', signal)), gone)
})

const [early, late] = [Date.parse('2026-05-04T21:00:00Z'), Date.parse('2026-05-05T21:00:00Z')]
const known: Record<string, Located> = {
  monday: { node: 'a', handle: 'vg/mon', origin: 'data', createdAt: early },
  tuesday: { node: 'a', handle: 'vg/tue', origin: 'data', createdAt: late },
  'same-time': { node: 'a', handle: 'vg/same', origin: 'data', createdAt: early },
  timeless: { node: 'a', handle: 'vg/timeless', origin: 'data' },
  foreign: { node: 'a', handle: 'vg/foreign', origin: 'mail', createdAt: late },
  'foreign-elsewhere': { node: 'b', handle: 'vg/foreign', origin: 'mail', createdAt: early },
  unknown: { node: 'a', handle: 'vg/unknown' }
}

test('what is known to be of different volumes is refused, wherever it is', async (t) => {
  const { made, asked } = locator({}, '', known)
  for (const base of ['foreign', 'foreign-elsewhere']) {
    await fails(t, made.pair(base, 'tuesday', signal), 'DM_VOLUMES_DIFFER', /"foreign.*of "mail", "tuesday" of "data"/)
  }
  t.deepEqual(asked, [], 'nobody had to be asked')
})

test('what is known to be reversed in time is refused', async (t) => {
  const { made } = locator({}, '', known)
  const words = /"tuesday" was taken at 2026-05-05T21:00:00.000Z, after the target, 2026-05-04T21:00:00.000Z/
  await fails(t, made.pair('tuesday', 'monday', signal), 'DM_ORDER_REVERSED', words)
  t.is((await made.pair('monday', 'tuesday', signal)).baseHandle, 'vg/mon')
})

test('what is not known for certain is answered', async (t) => {
  const { made } = locator({}, '', known)
  for (const [base, target] of [
    ['same-time', 'monday'],
    ['monday', 'same-time'],
    ['tuesday', 'timeless'],
    ['timeless', 'monday'],
    ['unknown', 'monday'],
    ['foreign', 'unknown'],
    ['tuesday', 'tuesday']
  ]) {
    t.is((await made.pair(base, target, signal)).target.handle, known[target].handle, `${base} ${target}`)
  }
})

test('an agent that moves is asked where it is now', async (t) => {
  const addresses = new Map([['a', 'tcp://10.0.0.1:1']])
  const made = new Locator({
    locate: async () => ({ node: 'a', handle: 'vg/x', ageSeconds: 7 }),
    agents: fixedAgents(addresses),
    ask: async () => 'nobody asks'
  })
  const place = await made.target('x', signal)
  t.deepEqual([place.address, place.ageSeconds], ['tcp://10.0.0.1:1', 7])
  addresses.set('a', 'tcp://10.0.0.2:1')
  t.is(place.address, 'tcp://10.0.0.2:1')
  addresses.delete('a')
  t.is(place.address, 'tcp://10.0.0.2:1', 'where it was last')
})

test('a node whose agent is being replaced has not said that it has nothing', async (t) => {
  const made = new Locator({
    locate: async (handle) => ({ handle, ...(handle === 'on-a' && { node: 'a' }) }),
    agents: { ...fixedAgents(new Map([['b', 'tcp://b:1']])), nodes: () => ['a', 'b'] },
    ask: async () => false
  })
  await fails(t, made.target('vg/x', signal), 'DM_AGENT_UNREACHABLE', /the agent of node a is not there at the moment/)
  await fails(t, made.target('on-a', signal), 'DM_AGENT_UNREACHABLE', /"a" is not there at the moment/)
})
