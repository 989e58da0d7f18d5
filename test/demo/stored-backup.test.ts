/**
 * The demo's backups: what is laid on top of each other is what was copied, and a comparison finds every difference.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { compare, restore, takeBackup } from '../../demo/stored-backup.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
const file = (name: string) => join(folder, name)
const blockBytes = 4096

/** A file with a block of each letter; `.` is a block of zeros. */
function blocks(name: string, letters: string): string {
  writeFileSync(
    file(name),
    Buffer.concat([...letters].map((each) => Buffer.alloc(blockBytes, each === '.' ? 0 : each)))
  )
  return file(name)
}

test('a full backup and an incremental one', async (t) => {
  const image = blocks('image', 'what was there before')
  const monday = blocks('monday', 'aaa..bb...')
  const extents = (...blocks: [number, number][]) =>
    blocks.map(([first, count]) => ({ offset: first * blockBytes, size: count * blockBytes }))
  const full = await takeBackup(
    { capacityBytes: 10 * blockBytes, extents: extents([0, 3], [5, 2]) },
    monday,
    file('full')
  )
  t.is(readFileSync(full.path, 'latin1').replaceAll(/(.)\1{4095}/g, '$1'), 'aaabb')
  await restore(full, true, image)
  t.is((await compare(monday, image)).differsAt, undefined)

  // Written to, trimmed, and grown.
  const tuesday = blocks('tuesday', 'axa...b....c')
  const changes = await takeBackup(
    { capacityBytes: 12 * blockBytes, extents: extents([1, 1], [5, 1], [11, 1]) },
    tuesday,
    file('changes')
  )
  await restore(changes, false, image)
  t.is((await compare(tuesday, image)).differsAt, undefined)
  t.is((await compare(monday, image)).differsAt, blockBytes)
})

test('a comparison finds the first byte that differs, and a missing end', async (t) => {
  const one = blocks('one', 'abcdefgh')
  const other = readFileSync(one)
  other[5 * blockBytes + 77] ^= 1
  other[6 * blockBytes] ^= 1
  writeFileSync(file('other'), other)
  t.is((await compare(one, file('other'))).differsAt, 5 * blockBytes + 77)
  t.is((await compare(one, blocks('shorter', 'abcdefg'))).differsAt, 7 * blockBytes)
  t.is((await compare(blocks('empty', ''), one)).differsAt, 0)
})
