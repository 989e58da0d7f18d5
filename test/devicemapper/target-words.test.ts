/** Reading a line word by word: what each kind of word accepts, and that an error names line and word. */
import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { TargetWords } from '../../src/devicemapper/target-words.ts'

const unknown = { instanceOf: DeltamapperError, code: 'DM_STATUS_UNKNOWN' }

test('a line is read from the left, whatever the spaces', (t) => {
  const words = new TargetWords('  rw 7 18446744073709551615  3/4 - 5 254:3 rest ', 'a line')
  t.is(words.choice({ ro: 1, rw: 2 }), 2)
  t.is(words.number(), 7)
  t.is(words.bigint(), 2n ** 64n - 1n)
  t.deepEqual(words.fraction(), { used: 3, total: 4 })
  t.is(words.optionalNumber(), undefined)
  t.is(words.optionalNumber(), 5)
  t.deepEqual(words.device(), { major: 254, minor: 3 })
  t.false(words.done)
  t.throws(() => words.end(), unknown)
  t.true(words.done)
  t.notThrows(() => words.end())
  t.throws(() => words.word(), unknown)
})

test('a number that is not exact is refused', (t) => {
  t.is(new TargetWords('9007199254740991', 'a line').number(), Number.MAX_SAFE_INTEGER)
  for (const word of ['9007199254740992', '1e3', '+1', '0x1', '١', '1.0', '-']) {
    t.throws(() => new TargetWords(word, 'a line').number(), unknown, word)
  }
})

test('an error says which line, which word, and what to do', (t) => {
  const words = new TargetWords('1 two 3', 'the status of X')
  words.number()
  const error = t.throws(() => words.number(), unknown)
  t.is(error.message, 'the status of X is not understood at "two": "1 two 3"')
  const endless = t.throws(() => new TargetWords('x'.repeat(100_000), 'a line').number(), unknown)
  t.true(endless.message.length < 400)
})
