import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import type { LeaseRecord } from '../../../src/agent/catalog/lease.ts'
import { notePath, removeNote, withNote, writeNote } from '../../../src/agent/leases/release-note.ts'

function catalogPath(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'note-'))
  t.teardown(() => {
    rmSync(folder, { recursive: true })
  })
  return join(folder, 'catalog')
}

const record = (changes: Partial<LeaseRecord> = {}): LeaseRecord => ({
  device: 'dm-name:pool/with\nanything',
  state: 'held',
  purpose: 'thin_delta',
  factsBefore: 'before',
  heldRoot: 7,
  factsHeld: 'held',
  takenAt: 1234,
  ...changes
})

test('a note makes a record say that it was being released, and only the record it is about', async (t) => {
  const catalog = catalogPath(t)
  const path = notePath(catalog, record().device)
  t.is((await withNote(record(), catalog)).state, 'held')
  await writeNote(path, 1234)
  t.is((await withNote(record(), catalog)).state, 'releasing')
  t.is((await withNote(record({ takenAt: 12345 }), catalog)).state, 'held')
  t.is((await withNote(record({ takenAt: 123 }), catalog)).state, 'held')
  t.is((await withNote(record({ device: 'dm-name:other' }), catalog)).state, 'held')
  t.is((await withNote(record({ state: 'reserving' }), catalog)).state, 'reserving')
  await writeNote(path, 99)
  t.is((await withNote(record(), catalog)).state, 'held')
  await removeNote(path)
  await removeNote(path)
  t.is((await withNote(record({ takenAt: 99 }), catalog)).state, 'held')
})

test('it lies beside the catalog, for nobody else to read, and torn it is none', async (t) => {
  const catalog = catalogPath(t)
  const path = notePath(catalog, record().device)
  await writeNote(path, 1234)
  t.deepEqual(readdirSync(join(catalog, '..')), [path.slice(path.lastIndexOf('/') + 1)])
  t.is(statSync(path).mode & 0o777, 0o600)
  for (const torn of ['', '12', 'garbage']) {
    writeFileSync(path, torn)
    t.is((await withNote(record(), catalog)).state, 'held', torn)
  }
})

test('where it cannot be written, that is said; what cannot be read is not taken for nothing', async (t) => {
  await t.throwsAsync(writeNote('/nowhere/note', 1), { code: 'ENOENT' })
  const catalog = catalogPath(t)
  await t.throwsAsync(withNote(record(), join(catalog, '..', '\0')), { code: 'ERR_INVALID_ARG_VALUE' })
})
