/**
 * A node on which nothing is amiss, and a pool of it, to change for a test.
 */
import type { Examination, PoolFacts, ThinFacts } from '../../src/agent/inventory/examination.ts'

export function thinOf(changes: Partial<ThinFacts> = {}): ThinFacts {
  return {
    handle: 'vg0/monday',
    kind: 'snapshot',
    thinId: 2,
    active: false,
    sizeBytes: 64 * 2 ** 20,
    mappedBytes: 2 ** 20,
    asBase: 'unchanged',
    because: 'it is unchanged since it was served',
    needed: 'record',
    ...changes
  }
}

export function poolOf(changes: Partial<PoolFacts> = {}): PoolFacts {
  return {
    name: 'vg0/pool',
    kind: 'lvm',
    deviceName: 'vg0-pool-tpool',
    state: 'read-write',
    needsCheck: false,
    metadataDevice: '/dev/mapper/vg0-pool_tmeta',
    usage: {
      blockBytes: 65536,
      dataUsedBytes: 10 * 2 ** 20,
      dataTotalBytes: 100 * 2 ** 20,
      metadataUsedBytes: 2 ** 20,
      metadataTotalBytes: 4 * 2 ** 20
    },
    whenFull: 'error',
    discards: 'passed-down',
    transactionId: '18446744073709551615',
    devices: 1,
    unnamedDevices: 0,
    thins: [thinOf()],
    ...changes
  }
}

export function examinationOf(changes: Partial<Examination> = {}): Examination {
  return {
    version: '0.1.0',
    seenBy: 'agent',
    takenAtMs: 1_700_000_000_000,
    tookMs: 123,
    live: true,
    node: {
      hostname: 'node-1',
      operatingSystem: 'Debian GNU/Linux 13',
      kernel: '6.12.1-amd64',
      architecture: 'x86_64',
      virtualization: '',
      memoryBytes: 2 ** 34,
      processors: 8
    },
    deviceMapper: {
      libraryVersion: '1.02.205',
      driverVersion: '4.48.0',
      targets: [
        { name: 'linear', version: '1.4.0' },
        { name: 'thin', version: '1.23.0' },
        { name: 'thin-pool', version: '1.23.0' }
      ],
      devices: 7,
      suspended: []
    },
    blockDevices: {
      devices: [
        { path: '/dev/sda', type: 'disk', sizeBytes: 2 ** 40, fileSystem: '', mountedAt: '', model: 'SOLID 1' },
        { path: '/dev/sda1', type: 'part', sizeBytes: 2 ** 40, fileSystem: 'LVM2_member', mountedAt: '', model: '' }
      ]
    },
    lvm: {
      command: 'lvm',
      inUse: true,
      groups: [{ name: 'vg0', sizeBytes: 2 ** 40, freeBytes: 2 ** 39, missingDisks: 0, untracked: [] }]
    },
    catalog: {
      path: '/var/lib/deltamapper/catalog.sqlite',
      consulted: true,
      sizeBytes: 65536,
      rows: [{ table: 'served', rows: 3 }],
      leases: [],
      disagreements: [],
      eraHistories: []
    },
    recordedPools: [],
    pools: [poolOf()],
    trackedVolumes: [],
    findings: [],
    ...changes
  }
}
