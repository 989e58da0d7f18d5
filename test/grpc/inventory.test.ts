import { join } from 'node:path'
import { status } from '@grpc/grpc-js'
import test, { type ExecutionContext } from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import type { Examination } from '../../src/agent/inventory/examination.ts'
import { askInventory, InventoryService } from '../../src/grpc/inventory.ts'
import { examinationOf, poolOf, thinOf } from '../support/examination.ts'
import { some, temporaryFolder, testServer } from './extent-backend.ts'

const problem = { code: 'DM_CALL_STUCK', message: 'it has not answered', remedy: 'see why' }

/** Every field that there is, with the largest numbers that can be. */
const everything: Examination = examinationOf({
  takenAtMs: Number.MAX_SAFE_INTEGER,
  node: { ...examinationOf().node, memoryBytes: Number.MAX_SAFE_INTEGER, problem },
  deviceMapper: { ...examinationOf().deviceMapper, suspended: ['a', 'b'], problem },
  blockDevices: { ...examinationOf().blockDevices, problem },
  lvm: {
    command: 'nsenter -t 1 lvm',
    inUse: false,
    groups: [{ name: 'vg', sizeBytes: 0, freeBytes: 0, missingDisks: 1, untracked: ['vg/a'], problem }],
    problem
  },
  catalog: {
    ...{ path: '/c', consulted: false, sizeBytes: 0, rows: [{ table: 'served', rows: 0 }], problem },
    leases: [{ device: 'dm-name:p', state: 'held', purpose: 'x', takenAtMs: 1, users: ['x', 'y'] }],
    disagreements: [{ kind: 'thin-missing', pool: 'tank', what: 'so', remedy: 'do' }],
    eraHistories: [
      {
        ...{ volume: 'vol', snapshots: 60, removed: 3, supersets: 1, earlierHistories: 2, because: 'so' },
        ...{ oldestTakenAtMs: 1, newestTakenAtMs: 2 ** 52, bitmapBytes: 2 ** 40 }
      },
      {
        volume: 'new',
        snapshots: 0,
        removed: 0,
        supersets: 0,
        earlierHistories: 0,
        because: 'attached',
        bitmapBytes: 0
      }
    ]
  },
  recordedPools: [{ name: 'demo', folder: '/srv', snapshots: ['monday', 'friday'] }],
  trackedVolumes: [
    {
      ...{ name: 'vol', deviceName: 'vol', dataDevice: '/dev/sdb', active: true, problem: 'so', underWay: 'grow' },
      ...{ metadataUsedBytes: 0, metadataTotalBytes: 2 ** 40, heldMetadataSnapshot: 5, heldByUs: false }
    },
    { name: 'off', deviceName: 'off', dataDevice: '/dev/sdc', active: false, problem: '', underWay: '' }
  ],
  pools: [
    poolOf({
      ...{ transactionId: String(2n ** 64n - 1n), devices: 0, unnamedDevices: 2 ** 24 - 1, problem },
      thins: [
        thinOf({ thinId: 2 ** 24 - 1, mappedBytes: 0 }),
        thinOf({ asBase: 'changed', kind: 'unknown', active: true })
      ],
      metadataSnapshot: {
        ...{ block: 4_161_599, whose: 'foreign', ambiguous: true, because: 'so', users: ['z'] },
        ...{ snapshotsSince: 0, transactionsSince: String(2n ** 64n - 1n) }
      }
    }),
    {
      ...{ name: 'empty', kind: 'plain', deviceName: '', state: 'inactive', needsCheck: true, metadataDevice: '' },
      ...{ whenFull: '', discards: '', transactionId: '', thins: [] }
    }
  ],
  findings: [
    { severity: 'problem', kind: 'k', about: 'a', what: 'w', remedy: 'r', command: 'c' },
    { severity: 'note', kind: 'k', about: 'a', what: 'w', remedy: 'r', command: '' }
  ]
})

async function served(t: ExecutionContext, examine: () => Promise<Examination>): Promise<string> {
  const { path } = await testServer(t, { inventory: { examine } })
  return `unix://${path}`
}

const ask = (address: string, signal?: AbortSignal) =>
  askInventory(address, { deadlineMs: 20_000, ...(signal && { signal }) })

test('what the agent has found arrives as it was', async (t) => {
  for (const examination of [examinationOf(), everything]) {
    t.deepEqual(await ask(await served(t, async () => examination)), examination)
  }
})

test('thousands of snapshots are one answer', async (t) => {
  const thins = Array.from({ length: 30_000 }, (_, thinId) => thinOf({ thinId, handle: `vg0/snapshot-${thinId}` }))
  const examination = examinationOf({ pools: [poolOf({ thins })] })
  const { pools } = await ask(await served(t, async () => examination))
  t.is(pools[0].thins.length, 30_000)
  t.deepEqual(pools[0].thins.at(-1), thins.at(-1))
})

test('a count that no number holds is refused, not rounded', async (t) => {
  const examination = examinationOf()
  const beyond = { ...examination, node: { ...examination.node, memoryBytes: 2 ** 53 + 2 } }
  await t.throwsAsync(ask(await served(t, async () => beyond)), {
    code: 'DM_ANSWER_INVALID',
    message: /9007199254740994/
  })
})

test('an error of the backend arrives with its code; a defect is one', async (t) => {
  const failing = served(t, () => Promise.reject(new DeltamapperError('DM_SHUTTING_DOWN', 'stopping', 'ask again')))
  await t.throwsAsync(ask(await failing), { code: 'DM_SHUTTING_DOWN', message: 'stopping' })
  const broken = served(t, () => Promise.reject(new TypeError('x is undefined')))
  await t.throwsAsync(ask(await broken), { code: 'DM_INTERNAL' })
})

test('nobody there, somebody else there, and no time to wait', async (t) => {
  await t.throwsAsync(ask(`unix://${join(temporaryFolder(t), 'none.sock')}`), { code: 'DM_UNREACHABLE' })
  const { path } = await testServer(t)
  await t.throwsAsync(ask(`unix://${path}`), { code: 'DM_SERVER_FAILED', message: /gives no inventory/ })
  const address = await served(t, () => new Promise(() => undefined))
  await t.throwsAsync(askInventory(address, { deadlineMs: 100 }), { code: 'DM_DEADLINE_EXCEEDED' })
  const gone = new AbortController()
  setTimeout(() => gone.abort(new Error('gone')), 50)
  await t.throwsAsync(ask(address, gone.signal), { message: 'gone' })
  await t.throwsAsync(ask(address, AbortSignal.abort(new Error('gone before'))), { message: 'gone before' })
})

test('on unix sockets only', async (t) => {
  await t.throwsAsync(ask('tcp://127.0.0.1:1'), { code: 'DM_CONFIG_INVALID' })
  await t.throwsAsync(ask('nonsense'), { code: 'DM_CONFIG_INVALID' })
  const { server } = await testServer(t, {
    listen: ['tcp://127.0.0.1:0', join(temporaryFolder(t), 'x.sock')],
    allowLoopbackTcp: true,
    inventory: { examine: async () => examinationOf() }
  })
  const [tcp, unix] = server.addresses
  t.like(await ask(unix), { version: '0.1.0' })
  t.is(await statusOverTcp(tcp), status.UNIMPLEMENTED)
})

/** How a call ends that goes to a TCP port all the same. */
async function statusOverTcp(address: string): Promise<number> {
  const { Client, credentials } = await import('@grpc/grpc-js')
  const { path, requestSerialize, responseDeserialize } = InventoryService.definition['Examine']
  const client = new Client(address.replace('tcp://', 'ipv4:'), credentials.createInsecure())
  try {
    return await new Promise((resolve) => {
      client.makeUnaryRequest(path, requestSerialize, responseDeserialize, {}, (error) => {
        resolve(error?.code ?? status.OK)
      })
    })
  } finally {
    client.close()
  }
}

test('snapshots are served beside it', async (t) => {
  const { path } = await testServer(t, { inventory: { examine: async () => examinationOf() } })
  const { PlainClient } = await import('./plain-client.ts')
  t.is((await new PlainClient(t, path).allocated({ snapshot_id: 'some' })).code, status.OK)
  t.truthy(some)
})
