import test from 'ava'
import fc from 'fast-check'
import type { KubernetesObject } from '../../../src/kubernetes/object.ts'
import { agentAddresses } from '../../../src/router/kubernetes/agent-endpoints.ts'

interface Endpoint {
  nodeName?: string
  addresses: string[]
  conditions?: { ready?: boolean; serving?: boolean; terminating?: boolean }
}

/** As the EndpointSlice controller makes them (discovery.k8s.io/v1). */
function slice(endpoints: Endpoint[], ports: object[] = [{ name: 'grpc', port: 50051, protocol: 'TCP' }]) {
  return {
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: { name: 'deltamapper-agent-abcde', namespace: 'deltamapper' },
    addressType: 'IPv4',
    endpoints,
    ports
  } as KubernetesObject
}

const at = (nodeName: string, address: string, ready: boolean | undefined = true, serving = ready) => ({
  nodeName,
  addresses: [address],
  conditions: { ...(ready === undefined ? {} : { ready }), ...(serving === undefined ? {} : { serving }) }
})
const addresses = (...slices: KubernetesObject[]) => Object.fromEntries(agentAddresses(slices, 'grpc'))

test('each endpoint is the agent of its node', (t) => {
  t.deepEqual(addresses(slice([at('a', '10.0.0.1'), at('b', '10.0.0.2', undefined)]), slice([at('c', '10.0.0.3')])), {
    a: 'tcp://10.0.0.1:50051',
    b: 'tcp://10.0.0.2:50051',
    c: 'tcp://10.0.0.3:50051'
  })
})

test('one that is not ready cannot be asked; one that is going can, while there is no other', (t) => {
  const leaving = { ...at('a', '10.0.0.1', false, true), terminating: true }
  t.deepEqual(addresses(slice([at('a', '10.0.0.1', false)])), { a: undefined })
  t.deepEqual(addresses(slice([leaving])), { a: 'tcp://10.0.0.1:50051' })
  t.deepEqual(addresses(slice([leaving, at('a', '10.0.0.9')])), { a: 'tcp://10.0.0.9:50051' })
  t.deepEqual(addresses(slice([leaving, at('a', '10.0.0.9', false)])), { a: 'tcp://10.0.0.1:50051' })
})

test('IPv6, and IPv4 before it where a node has both', (t) => {
  const sixth = { ...slice([at('a', 'fd00::1'), at('b', 'fd00::2')]), addressType: 'IPv6' }
  t.deepEqual(addresses(sixth), { a: 'tcp://[fd00::1]:50051', b: 'tcp://[fd00::2]:50051' })
  t.deepEqual(addresses(sixth, slice([at('a', '10.0.0.1')])), {
    a: 'tcp://10.0.0.1:50051',
    b: 'tcp://[fd00::2]:50051'
  })
})

test('the port is told by its name, or is the only one and has none', (t) => {
  const metrics = { name: 'metrics', port: 8080 }
  const one = at('a', '10.0.0.1')
  t.deepEqual(addresses(slice([one], [metrics, { name: 'grpc', port: 7 }])), { a: 'tcp://10.0.0.1:7' })
  t.deepEqual(addresses(slice([one], [{ port: 8 }])), { a: 'tcp://10.0.0.1:8' })
  t.deepEqual(addresses(slice([one], [metrics])), { a: undefined })
  t.deepEqual(addresses(slice([one], [])), { a: undefined })
})

test('endpoints that are on no node, and slices without any, say nothing', (t) => {
  t.deepEqual(addresses(slice([{ addresses: ['10.0.0.1'] }, { nodeName: 'a', addresses: [] }])), {})
  t.deepEqual(addresses({ metadata: { name: 'empty' }, endpoints: null, ports: null } as KubernetesObject), {})
})

test('the choice does not depend on the order of slices and endpoints', (t) => {
  const endpoint = fc.record({
    nodeName: fc.constantFrom('a', 'b'),
    addresses: fc.tuple(fc.constantFrom('10.0.0.1', '10.0.0.2', 'fd00::1', '10.0.0.3')),
    conditions: fc.record({ ready: fc.boolean(), serving: fc.boolean() }, { requiredKeys: [] })
  })
  fc.assert(
    fc.property(fc.array(endpoint, { maxLength: 6 }), fc.nat(), (endpoints, seed) => {
      const shuffled = endpoints.map((each, i) => [(seed * (i + 7)) % 13, each] as const).sort(([x], [y]) => x - y)
      t.deepEqual(
        addresses(...endpoints.map((each) => slice([each]))),
        addresses(slice(shuffled.map(([, each]) => each)))
      )
    })
  )
})
