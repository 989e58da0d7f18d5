import test, { type ExecutionContext } from 'ava'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import { Locator } from '../../src/router/locator.ts'
import { handlePattern, readHandle } from '../../src/router/handle-patterns.ts'

const nodes = new Map([
  ['a', 'tcp://a:1'],
  ['b', 'tcp://b:1'],
  ['c', 'tcp://c:1']
])
const patterns = [handlePattern('(?<node>[a-z]):(?<vg>\\w+)/(?<lv>\\w+)')]
const { signal } = new AbortController()

/** Which nodes have a snapshot, for each handle; those in `silent` do not say. */
function locator(having: Record<string, string>, silent = '') {
  const asked: string[] = []
  const made = new Locator({
    read: (snapshotId) => readHandle(snapshotId, patterns),
    nodes,
    ask: async ({ node, handle }) => {
      asked.push(`${node} ${handle}`)
      return silent.includes(node) ? undefined : (having[handle] ?? '').includes(node)
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
  t.deepEqual(await made.target('b:vg/x', signal), { node: 'b', address: 'tcp://b:1', handle: 'vg/x' })
  const { target, baseHandle } = await made.pair('b:vg/w', 'b:vg/x', signal)
  t.deepEqual([target.node, target.handle, baseHandle], ['b', 'vg/x', 'vg/w'])
  await fails(t, made.target('z:vg/x', signal), 'DM_NODE_UNKNOWN', /"z"/)
  await fails(t, made.pair('a:vg/w', 'b:vg/x', signal), 'DM_NODES_DIFFER', /base is on node "a", the target on "b"/)
  t.deepEqual(asked, [])
})

test('else every agent is asked, and exactly one has to have it', async (t) => {
  const { made, asked } = locator({ 'vg/one': 'b', 'vg/two': 'ac' })
  t.deepEqual(await made.target('vg/one', signal), { node: 'b', address: 'tcp://b:1', handle: 'vg/one' })
  t.deepEqual(asked, ['a vg/one', 'b vg/one', 'c vg/one'])
  await fails(t, made.target('vg/two', signal), 'DM_NODE_AMBIGUOUS', /a, c all have/)
  await fails(t, made.target('vg/none', signal), 'DM_SNAPSHOT_NOT_FOUND', /"vg\/none"/)
})

test('an agent that does not answer might have it as well', async (t) => {
  const { made } = locator({ 'vg/one': 'b' }, 'c')
  for (const handle of ['vg/one', 'vg/none']) {
    await fails(t, made.target(handle, signal), 'DM_AGENT_UNREACHABLE', /c did not answer/)
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
