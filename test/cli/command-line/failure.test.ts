import test from 'ava'
import { describeFailure, Interrupted, OutputClosed, UsageError } from '../../../src/cli/command-line/failure.ts'
import { DeltamapperError } from '../../../src/errors.ts'

test('each kind of failure has its exit status and its line', (t) => {
  t.deepEqual(describeFailure(new UsageError('no such thing', 'try another')), {
    line: 'deltamapper: no such thing; try another (DM_ARGUMENT_INVALID)',
    status: 2
  })
  t.deepEqual(describeFailure(new DeltamapperError('DM_READ_FAILED', 'gone', 'look')), {
    line: 'deltamapper: gone; look (DM_READ_FAILED)',
    status: 1
  })
  t.is(describeFailure(new Interrupted()).status, 130)
  t.deepEqual(describeFailure(new OutputClosed()), { line: undefined, status: 141 })
})

test('a defect is told without its stack trace', (t) => {
  const { line, status } = describeFailure(new TypeError('x is undefined'))
  t.is(status, 1)
  t.regex(line ?? '', /^deltamapper: x is undefined; .* \(DM_INTERNAL\)$/)
})

test('line breaks and terminal escapes in what others named do not get through', (t) => {
  const { line } = describeFailure(
    new DeltamapperError('DM_READ_FAILED', 'cannot open a\nb\u001b[2J\u009bc\u2028d', 'look')
  )
  t.is(line, 'deltamapper: cannot open a b [2J c d; look (DM_READ_FAILED)')
})
