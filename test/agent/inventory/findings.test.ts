import test from 'ava'
import { type ExaminationFacts, findings } from '../../../src/agent/inventory/findings.ts'
import type { Finding, PoolFacts, Problem, Severity } from '../../../src/agent/inventory/examination.ts'
import { examinationOf, poolOf, thinOf } from '../../support/examination.ts'

const healthy = examinationOf()
const problem: Problem = { code: 'DM_CALL_STUCK', message: 'it has not answered for 8 s', remedy: 'see why' }

function facts(changes: Partial<ExaminationFacts>): ExaminationFacts {
  return { ...healthy, ...changes }
}

const withPool = (changes: Partial<PoolFacts>) => facts({ pools: [poolOf(changes)] })
const kernel = (release: string) => facts({ node: { ...healthy.node, kernel: release } })
const deviceMapper = (changes: object) => facts({ deviceMapper: { ...healthy.deviceMapper, ...changes } })
const lvm = (changes: object) => facts({ lvm: { ...healthy.lvm, ...changes } })
const catalog = (changes: object) => facts({ catalog: { ...healthy.catalog, ...changes } })
const group = (changes: object) => lvm({ groups: [{ ...healthy.lvm.groups[0], ...changes }] })
const usage = (changes: object) => withPool({ usage: { ...poolOf().usage!, ...changes } })
const held = (changes: object) =>
  withPool({
    metadataSnapshot: { block: 77, whose: 'foreign', ambiguous: false, because: 'why', users: [], ...changes }
  })
const history = (changes: object) => ({
  ...{
    volume: 'vol',
    snapshots: 5,
    removed: 0,
    supersets: 0,
    earlierHistories: 0,
    because: 'attached',
    bitmapBytes: 1
  },
  ...changes
})
const tracked = (changes: object) =>
  facts({
    trackedVolumes: [
      {
        ...{ name: 'srv', deviceName: 'srv', dataDevice: '/dev/vg/data', active: true, problem: '', underWay: '' },
        ...{ metadataUsedBytes: 79, metadataTotalBytes: 100, ...changes }
      }
    ]
  })
const disagreement = (kind: string) => catalog({ disagreements: [{ kind, pool: 'tank', what: 'so', remedy: 'do' }] })

test('where all is well, nothing is found', (t) => {
  t.deepEqual(findings(healthy), [])
})

/** What is the case, and what is to be found, in order. */
const table: [name: string, facts: ExaminationFacts, found: [Severity, kind: string, about: string, says: RegExp][]][] =
  [
    [
      'an old kernel',
      kernel('3.18.140'),
      [['problem', 'kernel-old', 'kernel', /Linux 3\.18\.140 is older than 3\.19/]]
    ],
    ['a very old kernel', kernel('2.6.32-754.el6'), [['problem', 'kernel-old', 'kernel', /./]]],
    ['the oldest kernel that will do', kernel('3.19.0'), []],
    ['a kernel of the next decade', kernel('10.0-rc1'), []],
    ['a kernel with a strange name', kernel('next'), []],
    [
      'no device-mapper',
      deviceMapper({ problem, targets: [] }),
      [['problem', 'device-mapper-unusable', 'device-mapper', /has not answered/]]
    ],
    [
      'no thin-pool target',
      deviceMapper({ targets: [] }),
      [['note', 'thin-target-not-loaded', 'kernel', /modprobe dm-thin-pool/]]
    ],
    [
      'suspended devices',
      deviceMapper({ suspended: ['a', 'b'] }),
      [
        ['warning', 'device-suspended', 'a', /dmsetup resume a$/],
        ['warning', 'device-suspended', 'b', /dmsetup resume b$/]
      ]
    ],
    ['a tracked volume', tracked({}), []],
    [
      'a tracked volume that is not active',
      tracked({ active: false, metadataUsedBytes: undefined, metadataTotalBytes: undefined }),
      [['problem', 'tracked-inactive', 'srv', /not active.*deltamapper era activate srv$/]]
    ],
    [
      'a tracked volume whose metadata is nearly full',
      tracked({ metadataUsedBytes: 80, problem: 'its metadata is 80 % full' }),
      [['warning', 'tracked-metadata-nearly-full', 'srv', /80 %.*larger metadata device/]]
    ],
    [
      'a tracked volume whose discard limit is open, with something under way',
      tracked({ problem: 'discards get through', underWay: 'grow' }),
      [
        ['problem', 'tracked-problem', 'srv', /discards get through/],
        ['note', 'tracked-under-way', 'srv', /not finished: grow/]
      ]
    ],
    [
      'a metadata snapshot of a tracked volume that is not ours',
      tracked({ heldMetadataSnapshot: 77, heldByUs: false }),
      [['warning', 'tracked-metadata-snapshot-foreign', 'srv', /block 77.*dmsetup message srv 0 drop_metadata_snap$/]]
    ],
    ['one that is ours', tracked({ heldMetadataSnapshot: 77, heldByUs: true }), []],
    [
      'LVM in use, without an answer',
      lvm({ problem, groups: [] }),
      [['problem', 'lvm-silent', 'LVM', /has not answered/]]
    ],
    [
      'LVM not in use, without an answer',
      lvm({ problem, groups: [], inUse: false }),
      [['note', 'lvm-silent', 'LVM', /lvmCommand/]]
    ],
    ['a group that cannot be read', group({ problem }), [['problem', 'group-unreadable', 'vg0', /has not answered/]]],
    [
      'a missing disk',
      group({ missingDisks: 1 }),
      [['warning', 'group-partial', 'vg0', /1 of the disks .* is missing/]]
    ],
    [
      'thick volumes',
      group({ untracked: ['vg0/root'] }),
      [['note', 'volumes-untracked', 'vg0', /vg0\/root is in no thin pool/]]
    ],
    [
      'many thick volumes',
      group({ untracked: ['a', 'b', 'c', 'd', 'e', 'f', 'g'] }),
      [['note', 'volumes-untracked', 'vg0', /a, b, c, d and 3 more are in no thin pool/]]
    ],
    [
      'a catalog that cannot be used',
      catalog({ problem, consulted: false }),
      [['problem', 'catalog-unusable', '/var/lib/deltamapper/catalog.sqlite', /has not answered/]]
    ],
    [
      'a catalog that was not looked into',
      catalog({ consulted: false }),
      [['note', 'catalog-not-consulted', '/var/lib/deltamapper/catalog.sqlite', /ask the agent/]]
    ],
    ['a tracked volume as it should be', catalog({ eraHistories: [history({})] }), []],
    [
      'a tracked volume whose history was broken off',
      catalog({ eraHistories: [history({ earlierHistories: 1, because: 'a discard came through' })] }),
      [['warning', 'history-broken', 'vol', /broken off \(a discard came through\)/]]
    ],
    [
      'a tracked volume with more on record than was written',
      catalog({ eraHistories: [history({ supersets: 2 })] }),
      [['note', 'history-superset', 'vol', /for 2 of the snapshots of vol/]]
    ],
    [
      'a thin that the catalog misses',
      disagreement('thin-missing'),
      [['problem', 'catalog-thin-missing', 'tank', /so/]]
    ],
    [
      'a thin that the catalog lacks',
      disagreement('thin-unknown'),
      [['warning', 'catalog-thin-unknown', 'tank', /so/]]
    ],
    [
      'an inactive pool of LVM',
      withPool({ state: 'inactive' }),
      [['problem', 'pool-inactive', 'vg0/pool', /lvchange -ay -K vg0\/pool$/]]
    ],
    [
      'an inactive pool of our own',
      withPool({ name: 'tank', kind: 'own', state: 'inactive' }),
      [['problem', 'pool-inactive', 'tank', /deltamapper pool activate tank$/]]
    ],
    ['a failed pool', withPool({ state: 'failed', problem }), [['problem', 'pool-failed', 'vg0/pool', /thin_repair/]]],
    ['a read-only pool', withPool({ state: 'read-only' }), [['problem', 'pool-read-only', 'vg0/pool', /lvextend/]]],
    [
      'a pool that needs a check',
      withPool({ state: 'read-only', needsCheck: true }),
      [['problem', 'pool-needs-check', 'vg0/pool', /thin_check/]]
    ],
    [
      'a pool that will need a check',
      withPool({ needsCheck: true }),
      [['problem', 'pool-needs-check', 'vg0/pool', /thin_check/]]
    ],
    [
      'a pool without data space',
      withPool({ state: 'out-of-data-space', usage: { ...poolOf().usage!, dataUsedBytes: 100 * 2 ** 20 } }),
      [['problem', 'pool-full', 'vg0/pool', /out of data space/]]
    ],
    [
      'a pool that does not answer',
      withPool({ state: 'unknown', problem }),
      [
        ['problem', 'pool-unreadable', 'vg0/pool', /vg0\/pool: it has not answered/],
        ['warning', 'pool-state-unknown', 'vg0/pool', /./]
      ]
    ],
    ['data used to 79 %', usage({ dataUsedBytes: 79.9 * 2 ** 20 }), []],
    [
      'data used to 80 %',
      usage({ dataUsedBytes: 80 * 2 ** 20 }),
      [['warning', 'data-nearly-full', 'vg0/pool', /^80 % of the data/]]
    ],
    [
      'metadata nearly used up',
      usage({ metadataUsedBytes: 4 * 2 ** 20 - 1 }),
      [['warning', 'metadata-nearly-full', 'vg0/pool', /^99 % of the metadata/]]
    ],
    ['an empty pool', usage({ dataTotalBytes: 0, dataUsedBytes: 0 }), []],
    [
      'a metadata snapshot in use',
      held({ whose: 'ours', users: ['thin_delta a b'] }),
      [['note', 'metadata-snapshot-ours', 'vg0/pool', /it is ours, for thin_delta a b/]]
    ],
    [
      'a metadata snapshot left behind',
      held({ whose: 'ours' }),
      [['warning', 'metadata-snapshot-left-behind', 'vg0/pool', /nobody uses it/]]
    ],
    [
      "somebody else's metadata snapshot",
      held({ snapshotsSince: 3 }),
      [
        [
          'warning',
          'metadata-snapshot-foreign',
          'vg0/pool',
          /block 77, 3 of the pool's snapshots old.*dmsetup message vg0-pool-tpool 0 release_metadata_snap$/
        ]
      ]
    ],
    [
      'a metadata snapshot that may be ours',
      held({ ambiguous: true }),
      [['warning', 'metadata-snapshot-ambiguous', 'vg0/pool', /nothing proves that it is ours, but it may be/]]
    ],
    [
      'a metadata snapshot of nobody knows whom',
      held({ whose: 'unknown' }),
      [['warning', 'metadata-snapshot-unknown', 'vg0/pool', /release_metadata_snap$/]]
    ],
    [
      'snapshots that changed',
      withPool({ thins: [thinOf({ asBase: 'changed' }), thinOf({ handle: 'vg0/tue', asBase: 'changed' }), thinOf()] }),
      [['warning', 'base-changed', 'vg0/pool', /^vg0\/monday, vg0\/tue can no longer be a base/]]
    ],
    ['snapshots that were never served', withPool({ thins: [thinOf({ asBase: 'never-served' })] }), []],
    [
      'snapshots that were bases without having been served',
      withPool({ thins: [thinOf({ asBase: 'unrecorded' }), thinOf({ asBase: 'unchanged' })] }),
      [['warning', 'base-unrecorded', 'vg0/pool', /^vg0\/monday served as base without ever having been served/]]
    ],
    [
      'a snapshot that cannot be tracked',
      withPool({ thins: [thinOf({ asBase: 'not-trackable', because: 'it is being merged' })] }),
      [['note', 'thin-not-trackable', 'vg0/monday', /vg0\/monday: it is being merged/]]
    ],
    [
      'thin devices without a name, of a plain pool',
      withPool({ kind: 'plain', unnamedDevices: 1 }),
      [['note', 'thins-unnamed', 'vg0/pool', /1 thin device of pool vg0\/pool is not active/]]
    ],
    [
      "thin devices without a name, of LVM's",
      withPool({ unnamedDevices: 2 }),
      [['note', 'thins-unnamed', 'vg0/pool', /2 thin devices of pool vg0\/pool have no name/]]
    ],
    ['no pools', facts({ pools: [] }), [['note', 'no-pools', 'pools', /no thin pool/]]],
    [
      'recorded pools only',
      facts({ live: false, pools: [], recordedPools: [{ name: 'demo', folder: '/srv', snapshots: [] }] }),
      [['note', 'recorded-only', 'agent', /demo.*live: true/]]
    ],
    [
      'a node that keeps its secrets',
      facts({ node: { ...healthy.node, problem }, blockDevices: { devices: [], problem } }),
      [
        ['note', 'node-unknown', 'node', /has not answered/],
        ['note', 'block-devices-unknown', 'block devices', /has not answered/]
      ]
    ]
  ]

for (const [name, given, expected] of table) {
  test(`${name}: ${expected.map(([severity, kind]) => `${severity} ${kind}`).join(', ') || 'nothing'}`, (t) => {
    const found = findings(given)
    t.deepEqual(
      found.map(({ severity, kind, about }) => [severity, kind, about]),
      expected.map(([severity, kind, about]) => [severity, kind, about])
    )
    for (const [i, [, , , says]] of expected.entries()) {
      const { what, remedy, command } = found[i]
      t.regex(`${what}; ${remedy}; ${command}`.replace(/; $/, ''), says)
    }
    for (const each of found) checkWords(each)
  })
}

/** Whatever is found says what is the case and what to do. */
function checkWords({ what, remedy, about }: Finding): void {
  for (const words of [what, remedy, about]) if (words.trim() === '') throw new Error(JSON.stringify({ what, remedy }))
}

test('the worst comes first, and no probe that failed hides what the others found', (t) => {
  const found = findings({
    ...healthy,
    deviceMapper: { ...healthy.deviceMapper, problem },
    lvm: { ...healthy.lvm, problem, groups: [] },
    catalog: { ...healthy.catalog, problem, consulted: false },
    node: { ...healthy.node, kernel: '3.2.0', problem },
    blockDevices: { devices: [], problem },
    pools: [
      poolOf({ unnamedDevices: 1, metadataSnapshot: { ...heldSnapshot, users: [] } }),
      poolOf({ name: 'b', state: 'failed' })
    ]
  })
  const severities = found.map(({ severity }) => severity)
  t.deepEqual(severities, [
    ...(['problem', 'problem', 'problem', 'problem', 'problem'] as const),
    ...(['warning', 'note', 'note', 'note'] as const)
  ])
  t.is(new Set(found.map(({ kind }) => kind)).size, found.length)
})

const heldSnapshot = { block: 1, whose: 'foreign', ambiguous: false, because: 'no record', users: [] } as const

test('pools whose names leave no room for a handle are said to be out of reach, as those of Stratis', (t) => {
  const about = (changes: Partial<PoolFacts>) =>
    findings(withPool(changes)).filter(({ kind }) => kind === 'names-too-long')
  const stratis = (what: string) => `stratis-1-${'0'.repeat(32)}-thin-${what}-${'1'.repeat(32)}`
  const pool = stratis('pool')
  const thins = [thinOf({ handle: `${pool}/${stratis('fs')}` }), thinOf({ handle: `${pool}/x` })]
  const [found, ...more] = about({ name: pool, kind: 'plain', thins })
  t.deepEqual(more, [])
  t.is(found.severity, 'warning')
  t.regex(found.what, /1 of its 2 volumes and snapshots cannot be asked for/)
  const [none] = about({ name: 'p'.repeat(127), kind: 'plain', thins: [] })
  t.regex(none.what, /nothing in it can be asked for/)
  t.deepEqual(about({ name: 'p'.repeat(126), kind: 'plain', thins: [] }), [])
})
