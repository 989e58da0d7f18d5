import test from 'ava'
import fc from 'fast-check'
import { checkPoolName, checkThinName, poolUuid, thinDeviceName, thinUuid } from '../../../src/agent/node/naming.ts'
import { parseHandle } from '../../../src/handle.ts'
import { checkUuid, nodeName } from '../../../native/device.ts'

const name = (most: number) =>
  fc
    .stringMatching(/^[A-Za-z0-9+_.-]{1,64}$/)
    .filter((each) => each.length <= most && each !== '.' && each !== '..' && !each.startsWith('-'))

test('names for people: dashes inside are doubled', (t) => {
  t.is(thinDeviceName('tank', 'documents'), 'tank-documents')
  t.is(thinDeviceName('my-tank', 'my-documents'), 'my--tank-my--documents')
})

test('two different volumes never have the same device name', (t) => {
  const names = fc.array(fc.stringMatching(/^a[a-]{0,3}$/), { minLength: 4, maxLength: 4 })
  fc.assert(
    fc.property(names, ([a, b, c, d]) => {
      if (a !== c || b !== d) t.not(thinDeviceName(a, b), thinDeviceName(c, d))
      else t.is(thinDeviceName(a, b), thinDeviceName(c, d))
    })
  )
})

test('what is accepted fits everywhere it has to', (t) => {
  fc.assert(
    fc.property(name(63), name(64), (pool, thin) => {
      fc.pre(pool !== 'control')
      checkPoolName(pool)
      checkThinName(thin)
      t.deepEqual(parseHandle(`${pool}/${thin}`), { source: pool, name: thin })
      checkUuid(poolUuid({ name: pool }))
      const device = `${pool}-${thin}`.replaceAll('-', '--')
      if (device.length <= 127) t.is(nodeName(thinDeviceName(pool, thin)), thinDeviceName(pool, thin))
    })
  )
})

test('what is not, is refused', (t) => {
  for (const each of ['', 'a/b', '.', '..', 'a b', 'ü', 'x'.repeat(64), 'control', 'a\n', 'a\0', '-a']) {
    t.throws(() => checkPoolName(each), { name: 'DeltamapperError' }, each)
  }
  for (const each of ['', 'a/b', '.', '..', 'a b', '-a', 'x'.repeat(65)]) {
    t.throws(() => checkThinName(each), { name: 'DeltamapperError' }, each)
  }
  t.throws(() => thinDeviceName(`a${'-'.repeat(62)}`, 'xxx'), { code: 'DM_ARGUMENT_INVALID' })
})

test('UUIDs tell our devices from others, and from each other', (t) => {
  t.is(poolUuid({ name: 'tank' }), 'DELTAMAPPER-pool-tank')
  t.is(thinUuid({ id: 'thin:0b0c' }), 'DELTAMAPPER-thin-0b0c')
  // Whatever a pool is called, it cannot be taken for a volume.
  t.not(poolUuid({ name: 'thin-0b0c' }), thinUuid({ id: 'thin:0b0c' }))
})
