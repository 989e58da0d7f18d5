import test from 'ava'
import fc from 'fast-check'
import { understoodTimeout } from '../../src/grpc/grpc-timeout.ts'

const unitsMs = { H: 3_600_000, M: 60_000, S: 1000, m: 1, u: 1e-3, n: 1e-6 }

test('every timeout of the protocol is taken as it is, or is none for a server where no timer is that long', (t) => {
  fc.assert(
    fc.property(
      fc.stringMatching(/^\d{1,8}$/),
      fc.constantFrom(...(Object.keys(unitsMs) as (keyof typeof unitsMs)[])),
      (digits, unit) => {
        const ms = Number(digits) * unitsMs[unit]
        t.is(understoodTimeout(digits + unit), ms < 2 ** 31 ? digits + unit : undefined)
      }
    ),
    {
      examples: [
        ['1000', 'H'],
        ['99999999', 'H'],
        ['2147483', 'S'],
        ['2147484', 'S'],
        ['35791', 'M'],
        ['596', 'H']
      ]
    }
  )
})

test('what is no timeout is not taken for one of part of it', (t) => {
  for (const text of ['123456789S', '1S, 2S', 'in 5S', '-1S', '1.5S', '5', 'S', '', '1 S', '1s', '1h', '5S\n', '٣S']) {
    t.notRegex(understoodTimeout(text) ?? '1', /\d/, text)
  }
})
