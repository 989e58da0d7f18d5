import { readFileSync } from 'node:fs'
import test from 'ava'
import { asDeltamapperError, DeltamapperError, errorRegistry } from '../src/errors.ts'

const page = readFileSync(new URL('../docs/errors.md', import.meta.url), 'utf8')

/** Code and status of each row of the table in docs/errors.md: | `CODE` | STATUS | meaning | cause | what to do | */
const documented = new Map(
  [...page.matchAll(/^\| `(DM_[A-Z_]+)` \| ([A-Z_]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$/gm)].map((row) => [
    row[1],
    { status: row[2], meaning: row[3].trim() }
  ])
)

test('docs/errors.md explains every code, with its gRPC status and meaning, and none besides', (t) => {
  const registered = new Map(
    Object.entries(errorRegistry).map(([code, { status, summary }]) => [code, { status, meaning: summary }])
  )
  t.deepEqual(documented, registered as typeof documented)
})

test('an error says what is wrong and what to do in one line', (t) => {
  const error = new DeltamapperError('DM_SNAPSHOT_NOT_FOUND', 'demo has no snapshot x', 'check the handle')
  t.is(error.status, 'NOT_FOUND')
  t.is(error.line, 'DM_SNAPSHOT_NOT_FOUND: demo has no snapshot x; check the handle')
})

test('whatever else is thrown is a defect, and keeps its cause', (t) => {
  const thrown = new TypeError('x is undefined')
  const error = asDeltamapperError(thrown)
  t.is(error.code, 'DM_INTERNAL')
  t.is(error.cause, thrown)
  t.is(asDeltamapperError('text').message, 'text')
  t.is(asDeltamapperError(error), error)
})
