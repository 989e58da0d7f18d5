import test from 'ava'
import fc from 'fast-check'

import { isHandleName, parseHandle } from '../src/handle.ts'
import { DeltamapperError } from '../src/errors.ts'

const named = (length: number) => 'n'.repeat(length)

test('a handle is two names around a slash', (t) => {
  for (const [handle, source, name] of [
    ['vg0/snap-1', 'vg0', 'snap-1'],
    ['demo/2024.06.01_a+b', 'demo', '2024.06.01_a+b'],
    ['-/-', '-', '-'],
    ['.../.hidden', '...', '.hidden'],
    ['+/_', '+', '_'],
    ['__proto__/constructor', '__proto__', 'constructor'],
    ['*/snap-1', '*', 'snap-1'],
    [`${named(64)}/${named(63)}`, named(64), named(63)]
  ]) {
    t.deepEqual(parseHandle(handle), { source, name })
  }
})

const hostile: [name: string, handle: string][] = [
  ['empty', ''],
  ['no slash', 'snap'],
  ['only a slash', '/'],
  ['an empty source', '/snap'],
  ['an empty name', 'vg/'],
  ['three parts', 'a/b/c'],
  ['a slash at the end', 'a/b/'],
  ['two slashes', 'a//b'],
  ['the folder itself', './x'],
  ['the folder above', '../x'],
  ['the folder above as a name', 'vg/..'],
  ['out of the folder', '../..'],
  ['out of many folders', '../../../etc/passwd'],
  ['a shell’s separator', 'vg/lv;rm'],
  ['a shell’s substitution', 'vg/$(id)'],
  ['a shell’s quotes', 'vg/`id`'],
  ['a space', 'vg/a b'],
  ['a space at the end', 'vg/a '],
  ['an option', '--help'],
  ['a NUL', 'vg/a\0'],
  ['a NUL first', '\0vg/a'],
  ['a newline', 'vg/a\nb'],
  ['a newline at the end', 'vg/a\n'],
  ['a carriage return', 'vg/a\r'],
  ['an escape sequence', 'vg/\u001b[2J'],
  ['an escape sequence of one character', 'vg/\u009b2J'],
  ['a change of direction', 'vg/a\u202egnp.exe'],
  ['a line separator', 'vg/a\u2028b'],
  ['a backslash', 'vg\\lv'],
  ['percent encoding', 'vg%2Flv'],
  ['a full-width solidus', 'vg\uff0flv'],
  ['letters of other scripts', 'vg/снимок'],
  ['an accent', 'vg/e\u0301'],
  ['an emoji', 'vg/\u{1f600}'],
  ['half an emoji', 'vg/\ud83d'],
  ['a byte order mark', '\ufeffvg/a'],
  ['another separator', 'vg:a'],
  ['a glob', 'vg/*'],
  ['a glob among others', 'v*/a'],
  ['globs', '**/a']
]

for (const [name, handle] of hostile) {
  test(`no handle: ${name}`, (t) => {
    const error = t.throws<DeltamapperError>(() => parseHandle(handle), { instanceOf: DeltamapperError })
    t.is(error?.code, 'DM_HANDLE_INVALID')
    t.is(error?.status, 'INVALID_ARGUMENT')
    // It is repeated so that a terminal or a log shows what was sent, and does nothing else.
    t.regex(error?.message ?? '', /^"[ -~]*" is no snapshot handle$/)
    t.is(JSON.parse((error?.message ?? '').replace(/ is no snapshot handle$/, '')), handle)
  })
}

test('128 bytes are the limit, however few characters they are', (t) => {
  t.notThrows(() => parseHandle(`${named(100)}/${named(27)}`))
  for (const handle of [
    `${named(100)}/${named(28)}`,
    `vg/${'é'.repeat(63)}`,
    `vg/${'\u{1f600}'.repeat(32)}`,
    'x'.repeat(10_000_000)
  ]) {
    const error = t.throws<DeltamapperError>(() => parseHandle(handle), { instanceOf: DeltamapperError })
    t.is(error?.code, 'DM_HANDLE_INVALID')
    t.is(error?.message, `a snapshot handle of ${Buffer.byteLength(handle)} bytes is longer than 128`)
  }
  // At the limit it is the characters that count, not the length.
  const error = t.throws<DeltamapperError>(() => parseHandle(`vg/a${'é'.repeat(62)}`), { instanceOf: DeltamapperError })
  t.regex(error?.message ?? '', /is no snapshot handle$/)
})

test('whatever the text, it is taken apart exactly or refused', (t) => {
  const character = fc.constantFrom(...'aZ09+_.-/ \0\n;é'.split(''))
  const text = fc.oneof(fc.string({ unit: character }), fc.string({ unit: 'binary' }))
  fc.assert(
    fc.property(text, (handle) => {
      let parsed
      try {
        parsed = parseHandle(handle)
      } catch (error) {
        t.true(error instanceof DeltamapperError && error.code === 'DM_HANDLE_INVALID')
        return
      }
      t.is(`${parsed.source}/${parsed.name}`, handle)
      for (const part of parsed.source === '*' ? [parsed.name] : [parsed.source, parsed.name]) {
        t.true(isHandleName(part))
        t.regex(part, /^[A-Za-z0-9+_.-]+$/)
        t.false(part === '.' || part === '..')
      }
    }),
    { numRuns: 2000 }
  )
})
