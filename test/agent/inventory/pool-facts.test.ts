/**
 * Pools as LVM, the catalog and device-mapper name them, told from what a kernel really had. Their metadata is not on this machine: that
 * it cannot be read is one problem of one pool, and everything else is told all the same. (With real metadata: test/kernel/doctor.test.ts.)
 */
import test from 'ava'
import type { DeviceInfo, TableRow } from '../../../native/device-mapper.ts'
import {
  type AgentKnowledge,
  lookAtPools,
  type PoolsLook,
  type PoolsPort
} from '../../../src/agent/inventory/pool-facts.ts'
import { byName } from '../../../src/agent/lvm/volume.ts'
import type { SurveyedDevice } from '../../../src/agent/node/survey.ts'
import { poolUuid } from '../../../src/agent/node/naming.ts'
import type { PoolFacts } from '../../../src/agent/inventory/examination.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { recordedDevices, recordedVolumes } from '../../support/recorded-lvm.ts'
import { newPool } from '../catalog/examples.ts'

const recorded = recordedDevices()
const group = byName(recordedVolumes('volumes'))
const survey = await surveyOf([
  'my--vg-po--ol-tpool',
  'my--vg-po--ol_tmeta',
  'my--vg-data',
  'my--vg-monday',
  'my--vg-clone'
])

async function surveyOf(names: readonly string[]): Promise<SurveyedDevice[]> {
  return Promise.all(
    names.map(async (name) => {
      const info = await recorded.info(name)
      if (!info) throw new Error(`${name} was not recorded`)
      const rows = await recorded.table(name)
      return { info, row: rows.length === 1 ? rows[0] : undefined }
    })
  )
}

function device(name: string, uuid: string, minor: number, targetType: string, params: string): SurveyedDevice {
  const info = { ...survey[0].info, name, uuid, minor } satisfies DeviceInfo
  return { info, row: { startSector: 0, lengthSectors: 2048, targetType, params } }
}

const line = '5 100/1024 20/200 - rw discard_passdown error_if_no_space - 256'

function port(devices: readonly SurveyedDevice[], status: (minor: number) => Promise<readonly TableRow[]>): PoolsPort {
  const find = (reference: unknown) =>
    devices.find(({ info }) => info.minor === (reference as { minor?: number }).minor || info.name === reference)
  return {
    info: async (reference) => find(reference)?.info ?? recorded.info(reference),
    table: async (reference) => {
      const row = find(reference)?.row
      return row ? [row] : recorded.table(reference)
    },
    status: async (reference) => status((reference as { minor: number }).minor)
  }
}

const row = (params: string): TableRow => ({ startSector: 0, lengthSectors: 1, targetType: 'thin-pool', params })

async function look(changes: Partial<PoolsLook> = {}): Promise<PoolFacts[]> {
  const devices = 'survey' in changes ? changes.survey : survey
  const deviceMapper = port(devices ?? [], async () => [row(line)])
  return lookAtPools({ deviceMapper, survey: devices, volumes: [], knowledge: undefined, deadlineMs: 2000, ...changes })
}

const handles = (pool: PoolFacts | undefined) => pool?.thins.map(({ handle }) => handle).sort()

test("LVM's pools: those that are active and those that are not, with all that is in them", async (t) => {
  const pools = await look({ volumes: [group] })
  t.deepEqual(
    pools.map(({ name, kind, state }) => [name, kind, state]),
    [
      ['my-vg/empty', 'lvm', 'inactive'],
      ['my-vg/po-ol', 'lvm', 'read-write'],
      ['my-vg/second', 'lvm', 'inactive']
    ]
  )
  const [, pool, second] = pools
  t.like(pool, {
    deviceName: 'my--vg-po--ol-tpool',
    metadataDevice: '/dev/mapper/my--vg-po--ol_tmeta',
    transactionId: '5',
    whenFull: 'error',
    discards: 'passed-down',
    needsCheck: false,
    problem: { code: 'DM_READ_FAILED' }
  })
  t.deepEqual(pool.usage, {
    blockBytes: 65536,
    dataUsedBytes: 20 * 65536,
    dataTotalBytes: 200 * 65536,
    metadataUsedBytes: 100 * 4096,
    metadataTotalBytes: 1024 * 4096
  })
  t.true(handles(pool)?.includes('my-vg/monday'))
  t.deepEqual(
    pool.thins
      .filter(({ active }) => active)
      .map(({ handle }) => handle)
      .sort(),
    ['my-vg/clone', 'my-vg/data', 'my-vg/monday']
  )
  t.is(pool.thins.find(({ handle }) => handle === 'my-vg/monday')?.kind, 'snapshot')
  t.true(pool.thins.every(({ asBase, because }) => asBase === 'unknown' && /could not be read/.test(because)))
  t.true(second.thins.every(({ because }) => /not active/.test(because)))
})

test("without LVM's word, its pools go by device-mapper's, and show what is active", async (t) => {
  const [pool, ...others] = await look()
  t.deepEqual(others, [])
  t.like(pool, { name: 'my-vg/po-ol', kind: 'lvm', state: 'read-write' })
  // (`data` has a snapshot outside of the pool: its thin device has another name.)
  t.deepEqual(handles(pool), ['my-vg/clone', 'my-vg/monday'])
})

test('where device-mapper does not say what is active, nothing is called inactive', async (t) => {
  const pools = await look({ volumes: [group], survey: undefined })
  t.true(pools.length > 1)
  for (const { name, state, thins } of pools) {
    t.is(state, 'unknown', name)
    for (const { asBase, because } of thins) {
      t.is(asBase, 'unknown')
      t.regex(because, /device-mapper did not say whether its pool is active/)
    }
  }
})

test('pools of the agent, by its catalog or without; and those of others', async (t) => {
  const devices = [
    device('tank', poolUuid({ name: 'tank' }), 9000, 'thin-pool', '254:9100 254:9101 128 0 0'),
    device('tank-a--b', 'DELTAMAPPER-thin-1', 9001, 'thin', '254:9000 3'),
    device('loose', '', 9002, 'thin-pool', '254:9102 254:9103 256 0 1 error_if_no_space'),
    device('any', '', 9003, 'thin', '254:9002 0')
  ]
  const knowledge: AgentKnowledge = {
    catalog: {
      path: '/nowhere',
      served: { find: async () => [] },
      poolClocks: { wentBack: async () => undefined },
      bases: { find: async () => undefined }
    },
    view: {
      pools: [
        { ...newPool('tank'), createdAt: 0 },
        { ...newPool('asleep'), createdAt: 0 }
      ],
      thins: [
        {
          ...{ id: 'thin:1', pool: 'tank', name: 'a-b', kind: 'snapshot', thinId: 3, dmName: 'tank-a--b' },
          ...{ sizeBytes: 1, volume: 'thin:0', origin: 'thin:0', creationTime: 1, transactionId: 1n, createdAt: 0 }
        }
      ],
      intents: []
    },
    records: [],
    held: []
  }
  const pools = await look({ survey: devices, knowledge })
  t.deepEqual(
    pools.map(({ name, kind, state, thins }) => [
      name,
      kind,
      state,
      thins.map(({ handle, kind }) => `${handle} ${kind}`)
    ]),
    [
      ['asleep', 'own', 'inactive', []],
      ['loose', 'plain', 'read-write', ['loose/any unknown']],
      ['tank', 'own', 'read-write', ['tank/a-b snapshot']]
    ]
  )
  const without = await look({ survey: devices })
  t.deepEqual(
    without.map(({ name, kind, thins }) => [name, kind, thins.map(({ handle }) => handle)]),
    [
      ['loose', 'plain', ['loose/any']],
      ['tank', 'own', ['tank/a-b']]
    ]
  )
})

test('a pool that does not answer, and one that says what nobody understands, keep no other away', async (t) => {
  const devices = [9000, 9002, 9004].map((minor) =>
    device(`pool-${minor}`, '', minor, 'thin-pool', '254:9100 254:9101 128 0 0')
  )
  const pools = await look({
    survey: devices,
    deadlineMs: 100,
    deviceMapper: port(devices, async (minor) => {
      if (minor === 9000) return new Promise(() => undefined)
      if (minor === 9002) throw new DeltamapperError('DM_CALL_STUCK', 'it is stuck', 'wait')
      return [row('5 1/2 what')]
    })
  })
  t.deepEqual(
    pools.map(({ name, state, problem }) => [name, state, problem?.code]),
    [
      ['pool-9000', 'unknown', 'DM_CALL_STUCK'],
      ['pool-9002', 'unknown', 'DM_CALL_STUCK'],
      ['pool-9004', 'unknown', 'DM_STATUS_UNKNOWN']
    ]
  )
})

test('a failed pool, and a table that nobody understands', async (t) => {
  const devices = [
    device('dead', '', 9000, 'thin-pool', '254:9100 254:9101 128 0 0'),
    device('strange', '', 9002, 'thin-pool', 'in words')
  ]
  const [dead, strange] = await look({ survey: devices, deviceMapper: port(devices, async () => [row('Fail')]) })
  t.is(dead.state, 'failed')
  t.like(strange, { state: 'failed', problem: { code: 'DM_STATUS_UNKNOWN' } })
})
