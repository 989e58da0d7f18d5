import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import {
  checkClassicBase,
  checkClassicList,
  type ClassicFacts,
  findClassic,
  longestList,
  forgetClassic,
  giveUpClassic,
  rememberClassic,
  sawWritableClassic
} from '../../../src/agent/catalog/classic-served.ts'
import { openDatabase } from '../../../src/agent/catalog/database.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const monday: ClassicFacts = {
  ...{ handle: 'vg/monday', identity: 'lv-1', link: 'link-1', origin: 'lv-0' },
  ...{ sizeBytes: 1 << 20, chunkBytes: 4096, readOnly: true }
}
const list = { entries: 3, digest: 'abc' }
const HOUR = 3_600_000

test('the first record stays, and a base has to match it', (t) => {
  const database = openDatabase(join(folder, 'match.sqlite'))
  t.teardown(() => database.close())
  t.is(checkClassicBase(findClassic(database, monday), monday), undefined)
  rememberClassic(database, monday, list, 'target', HOUR)
  rememberClassic(database, monday, { entries: 9, digest: 'def' }, 'target', HOUR + 1)
  rememberClassic(database, monday, { entries: 2, digest: 'ghi' }, 'base', 2 * HOUR)
  const record = checkClassicBase(findClassic(database, monday), monday)
  t.like(record, { entries: 3, digest: 'abc', readOnly: 1, lastServedAt: HOUR })
  t.like(longestList(findClassic(database, monday), monday), { entries: 3, role: 'target' })
  if (!record) return
  checkClassicList(record, { entries: 5, prefixDigest: 'abc' })
  for (const found of [
    { entries: 5, prefixDigest: 'xyz' },
    { entries: 2, prefixDigest: undefined }
  ]) {
    t.throws(() => checkClassicList(record, found), { code: 'DM_BASE_CHANGED' })
  }
  for (const [now, code] of [
    [{ link: 'link-2' }, 'DM_COW_REJOINED'],
    [{ identity: 'lv-2' }, 'DM_BASE_CHANGED'],
    [{ origin: 'lv-9' }, 'DM_BASE_CHANGED'],
    [{ sizeBytes: 4096 }, 'DM_BASE_CHANGED'],
    [{ chunkBytes: 8192 }, 'DM_BASE_CHANGED'],
    [{ handle: 'vg/renamed', link: 'link-2' }, 'DM_COW_REJOINED']
  ] as const) {
    const other = { ...monday, ...now }
    t.throws(() => checkClassicBase(findClassic(database, other), other), { code }, JSON.stringify(now))
  }
})

test('once it was seen to be writable, it counts as such, by whichever name and in whichever part', (t) => {
  const database = openDatabase(join(folder, 'seen.sqlite'))
  t.teardown(() => database.close())
  sawWritableClassic(database, monday)
  t.deepEqual(findClassic(database, monday), [])
  rememberClassic(database, monday, list, 'target', HOUR)
  rememberClassic(database, { ...monday, handle: 'vg/renamed' }, list, 'base', HOUR)
  const other = { ...monday, handle: 'vg/other', identity: 'lv-2' }
  rememberClassic(database, other, list, 'target', HOUR)
  sawWritableClassic(database, monday)
  rememberClassic(database, monday, list, 'target', 3 * HOUR)
  t.is(checkClassicBase(findClassic(database, monday), monday)?.readOnly, 0)
  t.is(checkClassicBase(findClassic(database, other), other)?.readOnly, 1)
})

test('once it could be written to, it counts as such', (t) => {
  const database = openDatabase(join(folder, 'writable.sqlite'))
  t.teardown(() => database.close())
  rememberClassic(database, monday, list, 'target', HOUR)
  rememberClassic(database, { ...monday, readOnly: false }, list, 'target', HOUR + 1)
  rememberClassic(database, monday, list, 'target', HOUR + 2)
  t.is(checkClassicBase(findClassic(database, monday), monday)?.readOnly, 0)
})

test('nor is it told by its target record alone: it was writable when it was a base', (t) => {
  const database = openDatabase(join(folder, 'base-writable.sqlite'))
  t.teardown(() => database.close())
  rememberClassic(database, monday, list, 'target', HOUR)
  rememberClassic(database, { ...monday, readOnly: false }, list, 'base', HOUR + 1)
  rememberClassic(database, monday, list, 'base', HOUR + 2)
  t.is(checkClassicBase(findClassic(database, monday), monday)?.readOnly, 0)
})

test('what the kernel had given up is neither base nor target any more, whether it was served before or not', (t) => {
  const database = openDatabase(join(folder, 'given-up.sqlite'))
  t.teardown(() => database.close())
  const never: ClassicFacts = { ...monday, handle: 'vg/never', identity: 'lv-2', link: 'link-2' }
  rememberClassic(database, monday, list, 'target', HOUR)
  for (const each of [monday, never]) {
    giveUpClassic(database, each, 2 * HOUR)
    t.throws(() => longestList(findClassic(database, each), each), { code: 'DM_COW_INVALID' })
  }
  // Joined again, it has another link, and is refused for that.
  const joined = { ...monday, link: 'link-9' }
  t.throws(() => checkClassicBase(findClassic(database, joined), joined), { code: 'DM_COW_REJOINED' })
})

test('an earlier copy of the catalog is put back: what it has still holds, and what it lacks is as if never served', (t) => {
  const path = join(folder, 'copied.sqlite')
  const earlier = openDatabase(path)
  rememberClassic(earlier, monday, list, 'target', HOUR)
  earlier.close()
  const copy = join(folder, 'copy.sqlite')
  copyFileSync(path, copy)
  const later = openDatabase(path)
  // The name goes to another, which is served; the first gets another name.
  const next = { ...monday, identity: 'lv-2', link: 'link-2' }
  const renamed = { ...monday, handle: 'vg/renamed' }
  rememberClassic(later, next, list, 'target', 2 * HOUR)
  rememberClassic(later, renamed, { entries: 5, digest: 'def' }, 'target', 2 * HOUR)
  later.close()
  const database = openDatabase(copy)
  t.teardown(() => database.close())
  t.throws(() => checkClassicBase(findClassic(database, next), next), { code: 'DM_BASE_CHANGED' })
  t.like(checkClassicBase(findClassic(database, renamed), renamed), { entries: 3 })
  t.like(longestList(findClassic(database, renamed), renamed), { entries: 3 })
  const rejoined = { ...renamed, link: 'link-3' }
  t.throws(() => checkClassicBase(findClassic(database, rejoined), rejoined), { code: 'DM_COW_REJOINED' })
  // Answers through it go on record again.
  rememberClassic(database, renamed, { entries: 6, digest: 'ghi' }, 'target', 3 * HOUR)
  t.like(checkClassicBase(findClassic(database, renamed), renamed), { entries: 6 })
})

test('the oldest are forgotten', (t) => {
  const database = openDatabase(join(folder, 'forget.sqlite'))
  t.teardown(() => database.close())
  for (let i = 0; i < 5; i++) {
    rememberClassic(database, { ...monday, handle: `vg/${i}`, identity: `lv-${i}` }, list, 'target', i * HOUR)
  }
  t.is(forgetClassic(database, 2), 3)
  t.is(forgetClassic(database, 2), 0)
  t.is(findClassic(database, { handle: 'vg/4', identity: '' }).length, 1)
  t.is(findClassic(database, { handle: 'vg/1', identity: '' }).length, 0)
})
