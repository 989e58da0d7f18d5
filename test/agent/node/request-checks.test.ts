import test from 'ava'
import { checkCount, checkSize } from '../../../src/agent/node/request-checks.ts'

test('sizes are whole sectors, above 0 and below 2^53', (t) => {
  for (const bytes of [512, 2 ** 40, 2 ** 53 - 512]) t.notThrows(() => checkSize(bytes), String(bytes))
  for (const bytes of [0, -512, 511, 1000, 2 ** 53, 1.5, NaN, Infinity]) {
    t.throws(() => checkSize(bytes), { code: 'DM_ARGUMENT_INVALID' }, String(bytes))
  }
})

test('a refusal names the field, and says what it takes', (t) => {
  t.throws(() => checkCount('low_water_bytes', -1), {
    message: 'low_water_bytes is -1',
    code: 'DM_ARGUMENT_INVALID'
  })
})
