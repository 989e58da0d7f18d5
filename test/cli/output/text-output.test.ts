import { Writable } from 'node:stream'
import test from 'ava'
import fc from 'fast-check'
import { OutputClosed } from '../../../src/cli/command-line/failure.ts'
import { Phrase, TextOutput } from '../../../src/cli/output/text-output.ts'

const never = new AbortController().signal

/** A stream that keeps what it gets. */
function collector(): { stream: Writable; text: () => string } {
  const chunks: Buffer[] = []
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      // A copy: what is written is used again for the next chunk.
      chunks.push(Buffer.from(chunk))
      setImmediate(done)
    }
  })
  return { stream, text: () => Buffer.concat(chunks).toString() }
}

test('integers come out in decimal, aligned where asked', async (t) => {
  const exact = fc.oneof(
    fc.nat(),
    fc.maxSafeNat(),
    fc.constantFrom(...Array.from({ length: 16 }, (_, i) => [10 ** i - 1, 10 ** i, 10 ** i + 1]).flat()),
    fc.constantFrom(2 ** 31 - 1, 2 ** 31, 2 ** 32, Number.MAX_SAFE_INTEGER)
  )
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(exact, fc.nat(20))), async (integers) => {
      const { stream, text } = collector()
      const output = new TextOutput(stream, never)
      const values = Float64Array.from(integers, ([value]) => value)
      for (const [i, [, width]] of integers.entries()) {
        output.integer(values, i, width)
        output.text('|')
      }
      await output.flush()
      t.is(text(), integers.map(([value, width]) => `${String(value).padStart(width)}|`).join(''))
    })
  )
})

test('phrases and integers come out whole and in order, whatever their lengths', async (t) => {
  const parts = fc.array(fc.oneof(fc.string({ unit: 'grapheme' }), fc.maxSafeNat()), { maxLength: 50 })
  await fc.assert(
    fc.asyncProperty(parts, async (parts) => {
      const { stream, text } = collector()
      const output = new TextOutput(stream, never)
      for (const part of parts) {
        if (typeof part === 'string') output.phrase(new Phrase(part))
        else output.integer(Float64Array.of(part), 0)
      }
      await output.flush()
      t.is(text(), parts.join(''))
    })
  )
})

test('what is more than a chunk comes out whole and in order', async (t) => {
  const { stream, text } = collector()
  const output = new TextOutput(stream, never)
  const word = new Phrase('░, ')
  const numbers = Float64Array.from({ length: 200_000 }, (_, i) => i)
  let expected = ''
  for (let i = 0; i < numbers.length; i++) {
    output.integer(numbers, i)
    output.phrase(word)
    expected += `${i}░, `
    if (output.isFull) await output.flush()
  }
  await output.flush()
  t.is(text(), expected)
})

test('a flush waits for a slow reader, and ends with the signal', async (t) => {
  const controller = new AbortController()
  const output = new TextOutput(new Writable({ write: () => undefined }), controller.signal)
  output.text('never taken')
  const flushed = output.flush()
  const reason = new Error('enough')
  setTimeout(() => controller.abort(reason), 20)
  t.is(await t.throwsAsync(flushed), reason)
  output.text('no longer wanted')
  t.is(await t.throwsAsync(output.flush()), reason)
})

test('a reader that has gone is told from a disk that is full', async (t) => {
  const failing = (code: string) =>
    new Writable({
      write(_chunk, _encoding, done) {
        done(Object.assign(new Error(`write ${code}`), { code }))
      }
    }).on('error', () => undefined)
  const closed = new TextOutput(failing('EPIPE'), never)
  closed.text('x')
  await t.throwsAsync(closed.flush(), { instanceOf: OutputClosed })
  const full = new TextOutput(failing('ENOSPC'), never)
  full.text('x')
  await t.throwsAsync(full.flush(), { message: /cannot be written: write ENOSPC/ })
})
