/**
 * Each driver's handles, told from recorded objects.
 */
import test from 'ava'
import { DeltamapperError, type ErrorCode } from '../../../src/errors.ts'
import type { KubernetesObject } from '../../../src/kubernetes/object.ts'
import type { Located } from '../../../src/router/drivers/driver.ts'
import { kindsByName, makeDriver } from '../../../src/router/drivers/kinds.ts'
import { handlePattern } from '../../../src/router/drivers/handle-patterns.ts'
import { findAmong, recordedObjects } from '../../support/cluster-objects.ts'

const patterns = [handlePattern('(?<node>[^:]+):(?<vg>[^:]+):(?<lv>.+)'), handlePattern('(?<vg>[^:]+):(?<lv>.+)')]

function locate(driverName: string, handle: string, without: readonly string[] = [], namespace?: string): Located {
  const kind = kindsByName[driverName] ?? 'generic'
  const driver = makeDriver(kind, { driverName, namespace, patterns })
  const objects = recordedObjects(kind).filter(({ metadata }) => !without.includes(metadata.name))
  return driver.locate(handle, findAmong(objects, driver))
}

const lvm = (number: number) => `6b2d1e90-3c55-4f62-a4d5-8a61c9d3b00${number}`
const openebs = (number: number) =>
  `pvc-19b8d1a8-4f5c-4c39-a1a8-0e6d6f0a0a01@snapshot-b3b2c7b1-0b0c-4d8c-9d63-2f0d6a1c000${number}`
const llvs = (number: number) => `llvs-3c4b7c11-1111-4d8c-9d63-2f0d6a1c000${number}`
const harvested = (number: number) => `snapshot-0f5f2a11-7d3d-4d21-8f5a-00000000000${number}`
const monday = Date.parse('2026-05-04T21:00:00Z')

const found: [driver: string, what: string, handle: string, located: Located][] = [
  [
    'topolvm.io',
    'a snapshot',
    lvm(1),
    {
      node: 'worker-1',
      handle: `*/${lvm(1)}`,
      origin: 'pvc-2f7c1c2e-6d0a-4d0e-9f52-0f6f2b1f8a11',
      createdAt: monday
    }
  ],
  [
    'topolvm.cybozu.com',
    'a snapshot of an old installation',
    lvm(7),
    {
      node: 'worker-3',
      handle: `*/${lvm(7)}`,
      origin: 'pvc-5ad1c1aa-13a0-4f11-9d4d-2f3cf7bb1c44',
      createdAt: monday
    }
  ],
  [
    'local.csi.openebs.io',
    'a snapshot, which LVM knows without its prefix',
    openebs(1),
    {
      node: 'worker-1',
      handle: 'lvmvg/b3b2c7b1-0b0c-4d8c-9d63-2f0d6a1c0001',
      origin: 'pvc-19b8d1a8-4f5c-4c39-a1a8-0e6d6f0a0a01',
      createdAt: monday
    }
  ],
  [
    'local.csi.openebs.io',
    'a snapshot with another prefix',
    'pvc-19b8d1a8-4f5c-4c39-a1a8-0e6d6f0a0a01@nightly-b3b2c7b1-0b0c-4d8c-9d63-2f0d6a1c0005',
    {
      node: 'worker-1',
      handle: 'lvmvg/nightly-b3b2c7b1-0b0c-4d8c-9d63-2f0d6a1c0005',
      origin: 'pvc-19b8d1a8-4f5c-4c39-a1a8-0e6d6f0a0a01',
      createdAt: monday + 2 * 24 * 3600_000
    }
  ],
  [
    'local.csi.openebs.io',
    'a snapshot with a size of its own, which is a classic one',
    'pvc-8a0f8d2e-7c39-4a6b-8c53-7c9d3f3b0a02@snapshot-b3b2c7b1-0b0c-4d8c-9d63-2f0d6a1c0003',
    {
      node: 'worker-2',
      handle: 'lvmvg/b3b2c7b1-0b0c-4d8c-9d63-2f0d6a1c0003',
      origin: 'pvc-8a0f8d2e-7c39-4a6b-8c53-7c9d3f3b0a02',
      createdAt: monday + 24 * 3600_000
    }
  ],
  [
    'local.csi.storage.deckhouse.io',
    'a snapshot',
    llvs(1),
    {
      node: 'worker-1',
      handle: `vg-ssd/${llvs(1)}`,
      origin: 'pvc-0a5c1f3e-8d1b-4d3e-9a0d-6f6a3a1e0001',
      createdAt: monday
    }
  ],
  [
    'local.csi.storage.deckhouse.io',
    'a snapshot with a name of its own on the node',
    llvs(2),
    {
      node: 'worker-1',
      handle: 'vg-ssd/monday',
      origin: 'pvc-0a5c1f3e-8d1b-4d3e-9a0d-6f6a3a1e0001',
      createdAt: monday + 24 * 3600_000
    }
  ],
  [
    'local.csi.storage.deckhouse.io',
    'a snapshot without one',
    llvs(3),
    {
      node: 'worker-1',
      handle: `vg-ssd/${llvs(3)}`,
      origin: 'pvc-0a5c1f3e-8d1b-4d3e-9a0d-6f6a3a1e0001',
      createdAt: monday + 2 * 24 * 3600_000
    }
  ],
  [
    'lvm.driver.harvesterhci.io',
    'a snapshot, whose time is the one of its own content, not of its import',
    harvested(1),
    {
      node: 'worker-1',
      handle: `vg01/lvm-${harvested(1)}`,
      origin: 'pvc-6c1e0a4b-92f4-4a4e-8a35-9c7c52a50001',
      createdAt: monday
    }
  ],
  [
    'lvm.driver.harvesterhci.io',
    'a snapshot of a striped volume, which is a classic one',
    harvested(2),
    {
      node: 'worker-2',
      handle: `vg02/lvm-${harvested(2)}`,
      origin: 'pvc-6c1e0a4b-92f4-4a4e-8a35-9c7c52a50002',
      createdAt: monday
    }
  ],
  [
    'lvm.driver.harvesterhci.io',
    'a snapshot whose volume is gone',
    harvested(3),
    {
      node: undefined,
      handle: `*/lvm-${harvested(3)}`,
      origin: 'pvc-6c1e0a4b-92f4-4a4e-8a35-9c7c52a50003',
      createdAt: monday
    }
  ],
  [
    'lvm.driver.harvesterhci.io',
    'a snapshot of which there is no object but one of another driver',
    harvested(4),
    { node: undefined, handle: `*/lvm-${harvested(4)}`, origin: undefined, createdAt: undefined }
  ],
  [
    'local.csi.example.org',
    'a snapshot, by the affinity of its volume',
    'vg0:monday',
    { node: 'worker-1', handle: 'vg0/monday', origin: 'vg0:data', createdAt: monday + 500 }
  ],
  [
    'local.csi.example.org',
    'an imported snapshot, by the label of its content',
    'vg0:imported',
    { node: 'worker-2', handle: 'vg0/imported', origin: undefined, createdAt: undefined }
  ],
  [
    'local.csi.example.org',
    'a snapshot of a volume that two nodes may use',
    'vg0:anywhere',
    { node: undefined, handle: 'vg0/anywhere', origin: 'vg0:shared', createdAt: undefined }
  ],
  [
    'local.csi.example.org',
    'a snapshot that no object knows',
    'vg9:lost',
    { node: undefined, handle: 'vg9/lost', origin: undefined, createdAt: undefined }
  ],
  [
    'local.csi.example.org',
    'a snapshot whose handle names the node',
    'worker-3:vg0:monday',
    { node: 'worker-3', handle: 'vg0/monday', origin: undefined, createdAt: undefined }
  ]
]
for (const [driver, what, handle, located] of found) {
  test(`${driver}: ${what}`, (t) => {
    t.deepEqual(locate(driver, handle), located)
  })
}

const refused: [driver: string, what: string, handle: string, code: ErrorCode, words: RegExp][] = [
  ['topolvm.io', 'no such snapshot', lvm(9), 'DM_SNAPSHOT_NOT_FOUND', /no LogicalVolume/],
  ['topolvm.io', 'one that is being made', lvm(4), 'DM_SNAPSHOT_NOT_FOUND', /no LogicalVolume/],
  ['topolvm.io', 'the other installation’s', lvm(7), 'DM_SNAPSHOT_NOT_FOUND', /no LogicalVolume/],
  [
    'topolvm.io',
    'a volume',
    '0c9a3b52-7d0c-4f7b-8b1c-54f1f3f1a001',
    'DM_SNAPSHOT_NOT_FOUND',
    /is the volume pvc-2f7c1c2e/
  ],
  ['topolvm.io', 'a restored volume', '0c9a3b52-7d0c-4f7b-8b1c-54f1f3f1a003', 'DM_SNAPSHOT_NOT_FOUND', /is the volume/],
  [
    'topolvm.io',
    'one that is on two nodes',
    lvm(5),
    'DM_NODE_AMBIGUOUS',
    /snapshot-twice-on-worker-1 and LogicalVolume snapshot-twice-on-worker-2/
  ],
  ['local.csi.openebs.io', 'no handle of its', 'snapshot-1', 'DM_HANDLE_INVALID', /VOLUME@SNAPSHOT/],
  ['local.csi.openebs.io', 'two volumes', 'a@b@c', 'DM_HANDLE_INVALID', /VOLUME@SNAPSHOT/],
  ['local.csi.openebs.io', 'no volume', '@b', 'DM_HANDLE_INVALID', /VOLUME@SNAPSHOT/],
  ['local.csi.openebs.io', 'no such snapshot', openebs(9), 'DM_SNAPSHOT_NOT_FOUND', /no LVMSnapshot/],
  ['local.csi.openebs.io', 'one that is not ready', openebs(4), 'DM_SNAPSHOT_NOT_READY', /state Pending/],
  [
    'local.csi.openebs.io',
    'another volume’s snapshot',
    'pvc-other@snapshot-b3b2c7b1-0b0c-4d8c-9d63-2f0d6a1c0001',
    'DM_SNAPSHOT_NOT_FOUND',
    /of volume pvc-19b8d1a8.*not of "pvc-other"/
  ],
  ['local.csi.openebs.io', 'one that is in two namespaces', openebs(6), 'DM_NODE_AMBIGUOUS', /claimed more than once/],
  [
    'local.csi.storage.deckhouse.io',
    'no such snapshot',
    llvs(9),
    'DM_SNAPSHOT_NOT_FOUND',
    /no LVMLogicalVolumeSnapshot/
  ],
  ['local.csi.storage.deckhouse.io', 'one that failed', llvs(4), 'DM_SNAPSHOT_NOT_READY', /Failed \(not enough space/],
  ['local.csi.storage.deckhouse.io', 'one without a status', llvs(5), 'DM_SNAPSHOT_NOT_READY', /phase is unknown/],
  ['lvm.driver.harvesterhci.io', 'what LVM could not have', 'a/../b', 'DM_HANDLE_INVALID', /cannot be called/],
  [
    'local.csi.example.org',
    'one that two nodes claim',
    'vg0:contradiction',
    'DM_NODE_AMBIGUOUS',
    /worker-2 \(snapcontent-contradiction\).*worker-1 \(pvc-affinity\)/
  ]
]
for (const [driver, what, handle, code, words] of refused) {
  test(`${driver} refuses ${what}`, (t) => {
    const error = t.throws(() => locate(driver, handle), { instanceOf: DeltamapperError, message: words })
    t.is(error.code, code)
  })
}

test('a name that CSI has no room for is said to be too long, and whose it is', (t) => {
  const driverName = 'local.csi.storage.deckhouse.io'
  const driver = makeDriver('deckhouse', { driverName, namespace: undefined, patterns: [] })
  const name = `snapshot-${'s'.repeat(36)}`
  const located = (group: string) => {
    const status = { phase: 'Created', nodeName: 'worker-1', actualVGNameOnTheNode: group }
    return driver.locate(name, () => [{ metadata: { name }, status } as KubernetesObject]).handle
  }
  const longest = 'g'.repeat(82)
  t.is(located(longest), `${longest}/${name}`, 'which is 128 bytes long')
  const words = /is called g+\/snapshot-s+ on its node, .*more than 128 bytes \(these are 139\)/
  const error = t.throws(() => located('g'.repeat(93)), { instanceOf: DeltamapperError, message: words })
  t.is(error?.code, 'DM_NOT_TRACKED')
})

test('of two installations of OpenEBS, the configured namespace is looked at', (t) => {
  t.is(locate('local.csi.openebs.io', openebs(6), [], 'openebs-old').node, 'worker-2')
  t.is(locate('local.csi.openebs.io', openebs(6), [], 'openebs').node, 'worker-1')
})

test('without its volume, a snapshot of Harvester is looked for on all nodes', (t) => {
  const { node, handle } = locate('lvm.driver.harvesterhci.io', harvested(1), [
    'pvc-6c1e0a4b-92f4-4a4e-8a35-9c7c52a50001'
  ])
  t.deepEqual([node, handle], [undefined, `*/lvm-${harvested(1)}`])
})

for (const [driverName, base, target, agents] of [
  ['topolvm.io', lvm(1), lvm(2), `*/${lvm(1)}`],
  ['local.csi.openebs.io', openebs(1), openebs(2), 'lvmvg/b3b2c7b1-0b0c-4d8c-9d63-2f0d6a1c0001'],
  ['lvm.driver.harvesterhci.io', harvested(1), harvested(1), `vg01/lvm-${harvested(1)}`],
  ['local.csi.storage.deckhouse.io', llvs(1), llvs(2), undefined],
  ['any.csi.example.com', 'worker-1:vg0:monday', 'worker-1:vg0:tuesday', 'vg0/monday']
] as const) {
  test(`${driverName}: a base whose objects are gone is known to the target's agent by the same name`, (t) => {
    const kind = kindsByName[driverName] ?? 'generic'
    const driver = makeDriver(kind, { driverName, namespace: undefined, patterns })
    const found = kind === 'generic' ? undefined : locate(driverName, target)
    const there = kind === 'generic' ? undefined : locate(driverName, base).handle
    const objects = kind === 'generic' ? [] : recordedObjects(kind)
    const gone = driver.whenGone(base, found ?? { handle: 'vg0/tuesday' }, () => [])
    t.is(gone, agents ?? there)
    if (there !== undefined) t.is(gone, there, 'as it was known while it had objects')
    if (kind === 'harvester' || kind === 'generic') return
    t.is(driver.whenGone(base, found!, findAmong(objects, driver)), undefined, 'it has objects')
  })
}

test('OpenEBS: a base of another volume than the target is not asked for', (t) => {
  const driver = makeDriver('openebs-lvm', { driverName: 'local.csi.openebs.io', namespace: undefined, patterns })
  const target = locate('local.csi.openebs.io', openebs(2))
  t.is(
    driver.whenGone('pvc-other@snapshot-1', target, () => []),
    undefined
  )
  t.throws(() => driver.whenGone('nonsense', target, () => []), { code: 'DM_HANDLE_INVALID' })
})
