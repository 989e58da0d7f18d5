import { join } from 'node:path'
import test from 'ava'
import { volumeUuid } from '../../../src/agent/answers/volume-group.ts'
import { findClassic, rememberClassic } from '../../../src/agent/catalog/classic-served.ts'
import { openDatabase } from '../../../src/agent/catalog/database.ts'
import { storeFindings } from '../../../src/agent/inventory/store-findings.ts'
import { byName } from '../../../src/agent/lvm/volume.ts'
import type { StoreFullness } from '../../../src/agent/node/store-fullness.ts'
import { recordedVolumes } from '../../support/recorded-lvm.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const group = byName(recordedVolumes('volumes'))
const lv = group.get('thick-cow')!
const name = `${lv.vgName}/thick-cow`
const HOUR_MS = 3_600_000
/** It is tied to its origin since then. Seconds since 1970. */
const TAKEN = 1_700_000_000
let databases = 0
const links = {
  ...{ vgUuid: lv.vgUuid, sequenceNumber: 1n, segments: () => [], disks: new Map<string, string>() },
  lastSeen: new Map<string, string>(),
  links: [
    {
      ...{ id: 'link-1', linkedAt: TAKEN, createdAt: TAKEN, origin: lv.origin!, snapshot: 'thick-cow' },
      ...{ sizeBytes: 1 << 20, merging: false, place: 3 }
    }
  ]
}

/** What is said of a snapshot that is ten hours old. */
async function about(
  store: Partial<StoreFullness>,
  { servedAs, linksFail = false, merging = false }: { servedAs?: string; linksFail?: boolean; merging?: boolean } = {}
) {
  const database = openDatabase(join(folder, `${databases++}.sqlite`))
  try {
    const facts = { handle: name, identity: lv.uuid, origin: 'o', sizeBytes: 1 << 20, chunkBytes: 4096, readOnly: true }
    if (servedAs !== undefined) {
      rememberClassic(database, { ...facts, link: servedAs }, { entries: 0, digest: '' }, 'target', 1)
    }
    const linksNow = { ...links, links: links.links.map((each) => ({ ...each, merging })) }
    const full = { name: 'vg-thick--cow', uuid: volumeUuid(lv), isLost: false, usage: undefined, ...store }
    const found = await storeFindings({
      ...{ stores: [full], volumes: [group], now: TAKEN * 1000 + 10 * HOUR_MS },
      lvm: { snapshotLinks: async () => (linksFail ? Promise.reject(new Error('LVM is gone')) : linksNow) },
      catalog: { classicSnapshots: { find: async (snapshot) => findClassic(database, snapshot) } }
    })
    const [, inactive] = found
    if (found.length !== 2 || !/^classic snapshot .* is not active/.test(inactive.what)) throw new Error(inactive.what)
    return found[0]
  } finally {
    database.close()
  }
}

/** (There is another classic snapshot in the report, and no device of it.) */
const used = (usedBytes: number) => ({ usage: { bytes: 1000, usedBytes } })

test('a store that has room: how full it is, how long it lasts, and whether it can be a base', async (t) => {
  const { severity, kind, what, about: whom } = await about(used(200), { servedAs: 'link-1' })
  t.deepEqual([severity, kind, whom], ['note', 'classic-snapshot', name])
  t.regex(what, /is 20 % full, and lasts about 40\.0 hours at the rate so far; it was served, and can be a base$/)
  t.regex((await about(used(10))).what, /lasts about 41 days at the rate so far; it was never served/)
  t.regex((await about(used(0))).what, /is 0 % full; it was never served/)
})

test('joined again since it was served, it can be none', async (t) => {
  t.regex(
    (await about(used(200), { servedAs: 'link-0' })).what,
    /is not what it was when it was served, and can be no base$/
  )
})

test('while its origin is put back to a snapshot, none is a base', async (t) => {
  t.regex((await about(used(200), { servedAs: 'link-1', merging: true })).what, /is being put back to a snapshot, and/)
})

test('a store that is nearly full is a warning, with what to do about it', async (t) => {
  const found = await about(used(900), { servedAs: 'link-1' })
  t.like(found, { severity: 'warning', kind: 'store-nearly-full', command: `lvextend -L +1G ${name}` })
  t.regex(found.what, /lasts about 1\.1 hours/)
  t.regex(found.remedy, /snapshot_autoextend_threshold = 70/)
})

test('a lost one is a problem', async (t) => {
  const found = await about({ isLost: true }, { servedAs: 'link-1' })
  t.like(found, { severity: 'problem', kind: 'store-lost', command: `lvremove ${name}` })
  t.regex(found.remedy, /full backup of a new snapshot.*snapshot_autoextend_threshold/)
})

test('what LVM does not say is left out', async (t) => {
  const { what } = await about(used(200), { servedAs: 'link-1', linksFail: true })
  t.regex(what, /is 20 % full; it was served/)
})
