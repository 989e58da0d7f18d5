/** Loading the library, and refusing to let it meet what it cannot handle; the calls themselves are tested in the kernel lab. */
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { CallFailed } from '../../native/call.ts'
import { Libdevmapper } from '../../native/libdevmapper.ts'

const folder = mkdtempSync(join(tmpdir(), 'deltamapper-libdevmapper-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

function failureOf(action: () => unknown): CallFailed['failure'] {
  try {
    action()
  } catch (error) {
    if (error instanceof CallFailed) return error.failure
    throw error
  }
  throw new Error('it succeeded')
}

test('a library that is not there is named', (t) => {
  const failure = failureOf(
    () => new Libdevmapper({ devDirectory: '/dev', libraryPath: 'libnowhere.so.9', udevTimeoutMs: 1 })
  )
  t.is(failure.reason, 'library')
  t.regex(failure.said[0] ?? '', /libnowhere\.so\.9/)
})

test('a library that lacks a function is too old, and the function is named', (t) => {
  // The C++ library is loaded in every Node, and knows nothing of devices.
  const failure = failureOf(
    () => new Libdevmapper({ devDirectory: '/dev', libraryPath: 'libstdc++.so.6', udevTimeoutMs: 1 })
  )
  t.is(failure.reason, 'library')
  t.regex(failure.said[0] ?? '', /^dm_\w+ is missing/)
})

test('a control node that is missing or no device is left alone', (t) => {
  const cases: [string, (mapper: string) => void][] = [
    ['a file', (mapper) => writeFileSync(join(mapper, 'control'), 'precious')],
    ['a dangling link', (mapper) => symlinkSync('/nowhere', join(mapper, 'control'))],
    ['another device', (mapper) => symlinkSync('/dev/full', join(mapper, 'control'))]
  ]
  for (const [index, [what, make]] of cases.entries()) {
    const mapper = join(folder, `${index}`, 'mapper')
    mkdirSync(mapper, { recursive: true })
    make(mapper)
    const library = new Libdevmapper({ devDirectory: join(folder, `${index}`), udevTimeoutMs: 1 })
    const failure = failureOf(() => library.perform({ call: 'list' }))
    t.is(failure.reason, 'control', what)
    t.deepEqual(readdirSync(mapper), ['control'], what)
    const control = join(mapper, 'control')
    if (what === 'a file') t.is(readFileSync(control, 'utf8'), 'precious')
    else t.true(lstatSync(control).isSymbolicLink(), what)
  }
})
