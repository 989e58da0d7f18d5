/** What C code prints to standard error is ours for the length of a call, and nobody's afterwards. */
import { fstatSync, readdirSync, writeSync } from 'node:fs'
import koffi from 'koffi'
import test from 'ava'
import { StandardErrorCapture } from '../../native/standard-error.ts'

const perror = koffi.load(null).func('void perror(const char *prefix)') as (prefix: string) => void
const capture = new StandardErrorCapture()

test.serial('lines of C code and of system calls arrive, in order, trimmed', (t) => {
  const { result, lines } = capture.during(() => {
    koffi.errno(koffi.os.errno.EBUSY)
    perror('  message   ioctl on pool  failed')
    writeSync(2, 'second\n\nthird without an end')
    return 7
  })
  t.is(result, 7)
  t.deepEqual(lines, ['message ioctl on pool failed: Device or resource busy', 'second', 'third without an end'])
})

test.serial('each call has its own lines', (t) => {
  t.deepEqual(capture.during(() => writeSync(2, 'one\n')).lines, ['one'])
  t.deepEqual(capture.during(() => undefined).lines, [])
  t.deepEqual(capture.during(() => writeSync(2, 'two\n')).lines, ['two'])
})

test.serial('standard error is back afterwards, whatever happened', (t) => {
  const { dev, ino } = fstatSync(2)
  t.throws(
    () =>
      capture.during(() => {
        throw new Error('in between')
      }),
    { message: 'in between' }
  )
  t.like(fstatSync(2), { dev, ino })
  capture.during(() => t.notDeepEqual({ dev: fstatSync(2).dev, ino: fstatSync(2).ino }, { dev, ino }))
  t.like(fstatSync(2), { dev, ino })
})

test.serial('a flood is cut, and does not pile up', (t) => {
  for (let round = 0; round < 3; round++) {
    const { lines } = capture.during(() => writeSync(2, 'x'.repeat(99).concat('\n').repeat(5000)))
    t.is(lines.length, 656)
  }
  t.deepEqual(capture.during(() => writeSync(2, 'after\n')).lines, ['after'])
})

test.serial('a thousand calls leave no file open', (t) => {
  const open = readdirSync('/proc/self/fd').length
  for (let round = 0; round < 1000; round++) capture.during(() => writeSync(2, 'line\n'))
  t.is(readdirSync('/proc/self/fd').length, open)
})
