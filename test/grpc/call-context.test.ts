import { Metadata } from '@grpc/grpc-js'
import test from 'ava'
import { callContext, onwardMetadata, ownHandlesMetadata } from '../../src/grpc/call-context.ts'

function call(requestId: string | undefined, peer = 'unix-1', deadline: Date | number = Infinity) {
  const metadata = new Metadata()
  if (requestId !== undefined) metadata.set('x-request-id', requestId)
  return { metadata, getPeer: () => peer, getDeadline: () => deadline }
}

test('an id that is short and plain is taken over', (t) => {
  for (const id of ['a', 'backup-7.2026:11_21', 'x'.repeat(64)]) t.is(callContext(call(id)).requestId, id)
})

test('anything else gets an id of ours, a new one each time', (t) => {
  const ids = [undefined, '', 'x'.repeat(65), 'a b', '{"a":1}', 'é', 'a\tb'].map((id) => {
    try {
      return callContext(call(id)).requestId
    } catch {
      // What grpc-js does not even let into metadata.
      return callContext(call(undefined)).requestId
    }
  })
  t.is(new Set(ids).size, ids.length)
  for (const id of ids) t.regex(id, /^[0-9a-f-]{36}$/)
})

test('of several, the first counts', (t) => {
  const { metadata, ...rest } = call('one')
  metadata.add('x-request-id', 'two')
  t.is(callContext({ metadata, ...rest }).requestId, 'one')
})

test('a client is its address, whatever its ports', (t) => {
  const client = (peer: string) => callContext(call(undefined, peer)).client
  t.is(client('10.0.0.7:51234'), '10.0.0.7')
  t.is(client('fd00::7:51234'), 'fd00::7')
  t.is(client('::ffff:10.0.0.7:51234'), '::ffff:10.0.0.7')
  t.is(client('unix-12'), 'unix-12')
  t.is(client('unknown'), 'unknown')
})

test('a deadline is in milliseconds, or none', (t) => {
  t.is(callContext(call(undefined, 'x', new Date(1234))).deadline, 1234)
  t.is(callContext(call(undefined)).deadline, Infinity)
})

test('a router says for whom it calls, and is believed over TCP alone', (t) => {
  const onward = onwardMetadata(callContext(call('one', 'pid-7')))
  const party = (peer: string, metadata = onward) => callContext({ ...call(undefined, peer), metadata }).party
  t.is(party('10.0.0.7:51234'), '10.0.0.7 for pid-7')
  t.is(party('fd00::7:51234'), 'fd00::7 for pid-7')
  t.is(party('pid-8'), 'pid-8', 'a process of this machine has one share, whatever it says')
  t.is(callContext({ ...call(undefined, '10.0.0.7:51234'), metadata: onward }).client, '10.0.0.7', 'limits are its own')
  const strange = new Metadata()
  strange.set('deltamapper-on-behalf-of', 'a b')
  t.is(party('10.0.0.7:51234', strange), '10.0.0.7')
  t.is(party('10.0.0.7:51234', new Metadata()), '10.0.0.7')
})

test('nothing but the id and the client goes on', (t) => {
  const { metadata, ...rest } = call('one')
  metadata.set('authorization', 'Bearer hunter2')
  t.deepEqual(onwardMetadata(callContext({ metadata, ...rest })).getMap(), {
    'x-request-id': 'one',
    'deltamapper-on-behalf-of': 'unix-1'
  })
})

test('that handles are ours is said by our own client alone, and goes no further', (t) => {
  t.false(callContext(call(undefined)).anyVolume)
  const context = callContext({ ...call(undefined), metadata: ownHandlesMetadata({ anyVolume: true }) })
  t.true(context.anyVolume)
  t.deepEqual(Object.keys(onwardMetadata(context).getMap()), ['x-request-id', 'deltamapper-on-behalf-of'])
})

test('what a client has the data of is said to the agent, as it is, and goes no further', (t) => {
  t.is(callContext(call(undefined)).device, undefined)
  for (const device of ['thin:253:2:7', '']) {
    const context = callContext({ ...call(undefined), metadata: ownHandlesMetadata({ device }) })
    t.is(context.device, device)
    t.false(context.anyVolume)
    t.deepEqual(Object.keys(onwardMetadata(context).getMap()), ['x-request-id', 'deltamapper-on-behalf-of'])
  }
})
