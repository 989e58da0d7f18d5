import test from 'ava'
import fc from 'fast-check'
import { parseAttributes } from '../../../src/agent/lvm/attributes.ts'

test('every position has its meaning', (t) => {
  t.deepEqual(parseAttributes('Vwi-aotz-k'), {
    volumeType: 'thin volume',
    permissions: 'writeable',
    allocation: 'inherited',
    allocationLocked: false,
    fixedMinor: false,
    state: 'active',
    open: true,
    targetType: 'thin',
    zeroNewBlocks: true,
    health: 'good',
    skipActivation: true
  })
  t.like(parseAttributes('twC---t-M-'), {
    volumeType: 'thin pool',
    allocation: 'contiguous',
    allocationLocked: true,
    state: 'inactive',
    open: false,
    zeroNewBlocks: false,
    health: 'metadata read only',
    skipActivation: false
  })
  t.like(parseAttributes('-ri-s-----'), { volumeType: 'ordinary', permissions: 'read-only', state: 'suspended' })
})

test('what a report cannot say is unknown, and so are letters of the future', (t) => {
  t.like(parseAttributes('Vwi-XXtzX-'), { state: 'unknown', open: undefined, health: 'unknown' })
  t.like(parseAttributes('Qwi-a-----'), { volumeType: 'unknown', state: 'active' })
  // Inherited properties of objects are no letters.
  t.is(parseAttributes('constructor'.slice(0, 10))?.volumeType, 'under conversion')
})

test('short strings of old versions, and what is no lv_attr at all', (t) => {
  t.like(parseAttributes('owi-ao'), { volumeType: 'origin', open: true, health: 'good', skipActivation: false })
  for (const text of ['', 'Vwi', 'Vwi-a tz--', 'Vwi-aotz--Vwi-aotz--']) t.is(parseAttributes(text), undefined, text)
  fc.assert(
    fc.property(fc.string(), (text) => {
      const attributes = parseAttributes(text)
      t.true(attributes === undefined || typeof attributes.volumeType === 'string')
    })
  )
})
