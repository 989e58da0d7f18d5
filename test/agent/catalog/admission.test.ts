/** Where the rules of admission.ts meet: in what order they refuse, and that nothing is on record of what was refused. */
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import type { Admission } from '../../../src/agent/catalog/admission.ts'
import { type Catalog, openCatalog } from '../../../src/agent/catalog/catalog.ts'
import type { ServedTarget } from '../../../src/agent/catalog/fingerprint.ts'
import type { ErrorCode } from '../../../src/errors.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
// A catalog's thread does not keep a process alive on its own.
const alive = setInterval(() => undefined, 1000)
test.after.always(() => clearInterval(alive))

let catalogs = 0
async function newCatalog(t: ExecutionContext): Promise<Catalog> {
  const catalog = await openCatalog(join(folder, `catalog-${++catalogs}`, 'catalog.db'))
  t.teardown(() => catalog.close())
  return catalog
}

function snapshot(name: string, creationTime: number, volume = 'data'): ServedTarget {
  return {
    ...{ handle: `vg/${name}`, identity: `uuid of ${name}`, pool: 'pool', volume, thinId: creationTime },
    ...{ creationTime, mappedBlocks: 100, transactionId: 1n, sizeBytes: 2 ** 30 }
  }
}

const [monday, tuesday] = [snapshot('monday', 1), snapshot('tuesday', 2)]

function asked(target: ServedTarget, more: Partial<Admission> = {}): Admission {
  return { base: undefined, target, resumed: false, strictBases: false, wentBack: undefined, ...more }
}

const rows = async (catalog: Catalog) => (await catalog.statistics()).rows['served']

test('base and target are on record when it resolves, in their roles', async (t) => {
  const catalog = await newCatalog(t)
  t.is(await catalog.served.admit(asked(monday), 1000), 'unchanged')
  t.is(await catalog.served.admit(asked(tuesday, { base: monday }), 2000), 'unchanged')
  const roles = async (name: ServedTarget) => (await catalog.served.find(name)).map(({ role }) => role).sort()
  t.deepEqual(await roles(monday), ['base', 'target'])
  t.deepEqual(await roles(tuesday), ['target'])
  t.is(await catalog.served.admit(asked(tuesday, { base: tuesday }), 3000), 'unchanged')
})

test('a base that was never served is said to be so, however often it was a base', async (t) => {
  const catalog = await newCatalog(t)
  for (let times = 0; times < 2; times++) {
    t.is(await catalog.served.admit(asked(tuesday, { base: monday })), 'unrecorded')
  }
})

test('a name that goes from a classic snapshot to a thin one, or back, is of another snapshot', async (t) => {
  const catalog = await newCatalog(t)
  const classic = { ...{ handle: monday.handle, identity: 'lv-1', link: 'link-1', origin: 'lv-0' } }
  const facts = { ...classic, sizeBytes: 1 << 20, chunkBytes: 4096, readOnly: true }
  await catalog.classicSnapshots.remember(facts, { entries: 0, digest: '' }, 'target')
  const was = { code: 'DM_BASE_CHANGED' }
  await t.throwsAsync(catalog.served.admit(asked(tuesday, { base: monday })), { ...was, message: /a classic snapshot/ })
  await catalog.classicSnapshots.refuseServedAsThin(tuesday.handle)
  await catalog.served.admit(asked(tuesday))
  const back = catalog.classicSnapshots.refuseServedAsThin(tuesday.handle)
  await t.throwsAsync(back, { ...was, message: /a thin snapshot/ })
})

test('snapshots of different volumes are admitted where that is meant, in their order', async (t) => {
  const catalog = await newCatalog(t)
  const other = snapshot('other', 2, 'other')
  for (const each of [monday, other]) await catalog.served.admit(asked(each))
  t.is(await catalog.served.admit(asked(other, { base: monday, anyVolume: true })), 'unchanged')
  await t.throwsAsync(catalog.served.admit(asked(other, { base: monday })), { code: 'DM_VOLUMES_DIFFER' })
})

const restored = { at: 5000, how: 'its clock went from 9 to 4' }
const refusals: [name: string, before: Admission[], asked: Admission, code: ErrorCode][] = [
  ['not on record, and it has to be', [], asked(tuesday, { base: monday, strictBases: true }), 'DM_BASE_UNRECORDED'],
  [
    'trimmed since it was served',
    [asked(monday)],
    asked(tuesday, { base: { ...monday, mappedBlocks: 99 } }),
    'DM_BASE_CHANGED'
  ],
  [
    'of a pool that went back since',
    [asked(monday)],
    asked(tuesday, { base: monday, wentBack: { ...restored, at: Date.now() + 60_000 } }),
    'DM_POOL_WENT_BACK'
  ],
  [
    'of another volume',
    [asked(monday), asked(snapshot('tuesday', 2, 'other'))],
    asked(snapshot('tuesday', 2, 'other'), { base: monday }),
    'DM_VOLUMES_DIFFER'
  ],
  ['taken later', [asked(monday), asked(tuesday)], asked(monday, { base: tuesday }), 'DM_ORDER_REVERSED'],
  ['resumed without a beginning', [], asked(tuesday, { resumed: true }), 'DM_RESUME_REFUSED'],
  ['resumed with another base', [asked(tuesday)], asked(tuesday, { base: monday, resumed: true }), 'DM_RESUME_REFUSED']
]

for (const [name, before, refused, code] of refusals) {
  test(`refused, and nothing more is on record: ${name}`, async (t) => {
    const catalog = await newCatalog(t)
    for (const each of before) await catalog.served.admit(each)
    const known = await rows(catalog)
    await t.throwsAsync(catalog.served.admit(refused), { code })
    t.is(await rows(catalog), known)
  })
}

test('what is served after a pool went back counts as served since, whatever the clock on the wall says', async (t) => {
  const catalog = await newCatalog(t)
  const wentBack = { ...restored, at: Date.now() + 3_600_000 }
  await catalog.served.admit(asked(monday, { wentBack }))
  t.is(await catalog.served.admit(asked(tuesday, { base: monday, wentBack })), 'unchanged')
})
