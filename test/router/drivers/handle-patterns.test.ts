import test from 'ava'
import { handlePattern, readHandle } from '../../../src/router/drivers/handle-patterns.ts'

const patterns = [
  handlePattern('(?<node>node-\\d):(?<vg>[^/]+)/(?<lv>.+)'),
  handlePattern('(?<vg>archive)/(?<lv>.+)', 'node-9'),
  handlePattern('(?<node>[a-z]+)!.*'),
  handlePattern('plain-.*', 'node-2'),
  handlePattern('of-(?<node>[^:]+):(?<lv>.+)')
]

const read: [handle: string, node: string | undefined, agentHandle: string][] = [
  ['node-1:vg0/snap', 'node-1', 'vg0/snap'],
  ['archive/old', 'node-9', 'archive/old'],
  ['there!vg0/x', 'there', 'there!vg0/x'],
  ['plain-7', 'node-2', 'plain-7'],
  // Nothing says the volume group.
  ['of-node-3:snap', 'node-3', '*/snap'],
  ['of-node-3:a/b', undefined, 'of-node-3:a/b'],
  // Nothing says the node.
  ['vg0/snap', undefined, 'vg0/snap'],
  // The whole handle has to match, line breaks included.
  ['xnode-1:vg0/snap', undefined, 'xnode-1:vg0/snap'],
  ['plain-7\nx', 'node-2', 'plain-7\nx'],
  // What would become another handle.
  ['node-1:vg0/a/b', undefined, 'node-1:vg0/a/b'],
  ['node-1:vg0/..', undefined, 'node-1:vg0/..'],
  ['node-1:v g/a', undefined, 'node-1:v g/a']
]
for (const [handle, node, agentHandle] of read) {
  test(`${JSON.stringify(handle)} is on ${node} as ${JSON.stringify(agentHandle)}`, (t) => {
    t.deepEqual(readHandle(handle, patterns), { node, handle: agentHandle })
  })
}

const refused: [string, string | undefined, RegExp][] = [
  ['(', undefined, /regular expression/i],
  ['a)|(?:b', 'node-1', /regular expression/i],
  ['(?<volume>.*)', undefined, /group volume/],
  ['(?<vg>.*)', undefined, /not lv/],
  ['(?<node>.*)', 'node-1', /fixed node/]
]
for (const [source, node, reason] of refused) {
  test(`the pattern ${source} is refused`, (t) => {
    t.throws(() => handlePattern(source, node), { instanceOf: SyntaxError, message: reason })
  })
}
