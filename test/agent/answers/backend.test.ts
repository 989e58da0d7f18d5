import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'
import type { Logger } from 'pino'

import { snapshotMetadataBackend } from '../../../src/agent/answers/backend.ts'
import { Sources } from '../../../src/agent/answers/sources.ts'
import type { SeenDevices } from '../../../src/agent/walks/seen-devices.ts'
import { loadRecordedPool } from '../../../src/agent/answers/recorded-pool.ts'
import type { Snapshot, SnapshotSource } from '../../../src/agent/walks/snapshot.ts'
import { answersWith } from '../../../src/agent/targets.ts'
import type { DeviceKnowledge } from '../../../src/agent/answers/served-target.ts'
import { Walkers } from '../../../src/agent/walks/walkers.ts'
import { DeltamapperError, type ErrorCode } from '../../../src/errors.ts'
import type { EncodedStream } from '../../../src/grpc/snapshot-metadata.ts'
import { runCommand } from '../../cli/run-command.ts'
import { testServer } from '../../grpc/extent-backend.ts'
import { testFolder } from '../../support/test-folder.ts'
import { decode, type Extent, writeSamplePool } from '../sample-pool.ts'

const folder = testFolder(test)
const walkers = new Walkers(1)
// Walkers do not keep a process alive; in an agent the server does.
const alive = setInterval(() => undefined, 1000)
test.after.always(async () => {
  await walkers.close()
  clearInterval(alive)
})
const sample = writeSamplePool(join(folder, 'sample'))
const twin = writeSamplePool(join(folder, 'twin'))
const { signal } = new AbortController()

async function recorded() {
  const sources = new Map<string, SnapshotSource>()
  sources.set('sample', await loadRecordedPool('sample', (await sample).folder))
  sources.set('twin', await loadRecordedPool('twin', (await twin).folder))
  return snapshotMetadataBackend(new Sources(sources), walkers, answersWith({}))
}

interface Asked {
  base?: string
  target: string
  startingOffset?: bigint
  maxResults?: number
}

function ask(backend: ReturnType<typeof snapshotMetadataBackend>, asked: Asked): Promise<EncodedStream> {
  const { base, target, startingOffset = 0n, maxResults = 0 } = asked
  return base === undefined
    ? backend.allocated({ snapshotId: target, startingOffset, maxResults }, signal)
    : backend.delta({ baseSnapshotId: base, targetSnapshotId: target, startingOffset, maxResults }, signal)
}

async function extentsOf({ messages, capacityBytes }: EncodedStream): Promise<Extent[]> {
  const decoded = (await Array.fromAsync(messages)).map(decode)
  if (decoded.some((message) => message.capacityBytes !== capacityBytes)) throw new Error('the capacity changes')
  return decoded.flatMap(({ extents }) => extents)
}

test('an answer is that of the metadata, with the capacity of the target', async (t) => {
  const backend = await recorded()
  const pool = await sample
  for (const [base, target] of [
    [undefined, 'mon'],
    ['mon', 'tue'],
    ['tue', 'thu'],
    ['mon', 'mon']
  ] as const) {
    const stream = await ask(backend, {
      ...(base !== undefined && { base: `sample/${base}` }),
      target: `sample/${target}`
    })
    t.is(stream.capacityBytes, pool.listed(target).size_bytes)
    t.deepEqual(await extentsOf(stream), await pool.extents(base, target))
    t.true((stream.statistics?.().nodesRead ?? 0) > 0)
  }
})

/** What csi.v1 and the design leave to the backend; empty ids, long ids and negative numbers do not come so far. */
const refusals: [name: string, asked: Asked, code: ErrorCode, says: RegExp][] = [
  ['no handle', { target: 'sample' }, 'DM_HANDLE_INVALID', /"sample" is no snapshot handle/],
  ['a path', { target: '../..' }, 'DM_HANDLE_INVALID', /is no snapshot handle/],
  ['no handle as base', { base: 'a/b/c', target: 'sample/mon' }, 'DM_HANDLE_INVALID', /"a\/b\/c"/],
  ['no handle as target', { base: 'sample/mon', target: '/' }, 'DM_HANDLE_INVALID', /"\/"/],
  ['no such source', { target: 'nowhere/mon' }, 'DM_SNAPSHOT_NOT_FOUND', /no source nowhere/],
  ['no such snapshot', { target: 'sample/fri' }, 'DM_SNAPSHOT_NOT_FOUND', /sample has no snapshot fri/],
  ['no such base', { base: 'sample/fri', target: 'sample/mon' }, 'DM_SNAPSHOT_NOT_FOUND', /no snapshot fri/],
  ['no such target', { base: 'sample/mon', target: 'sample/fri' }, 'DM_SNAPSHOT_NOT_FOUND', /no snapshot fri/],
  ['a volume', { target: 'sample/data' }, 'DM_SNAPSHOT_NOT_FOUND', /no snapshot data/],
  ['another pool', { base: 'twin/mon', target: 'sample/tue' }, 'DM_POOLS_DIFFER', /twin\/mon and sample\/tue/],
  [
    'another volume',
    { base: 'sample/other-mon', target: 'sample/tue' },
    'DM_VOLUMES_DIFFER',
    /sample\/other-mon is a snapshot of sample\/other, sample\/tue of sample\/data/
  ],
  [
    'an offset beyond the end',
    { target: 'sample/mon', startingOffset: 19660801n },
    'DM_OFFSET_OUT_OF_RANGE',
    /19660801/
  ],
  [
    'an offset beyond any double',
    { base: 'sample/mon', target: 'sample/tue', startingOffset: 2n ** 63n - 1n },
    'DM_OFFSET_OUT_OF_RANGE',
    /9223372036854775807 is outside sample\/tue, which has 16384512 bytes/
  ],
  ['a negative offset', { target: 'sample/mon', startingOffset: -1n }, 'DM_OFFSET_OUT_OF_RANGE', /-1 is outside/]
]

for (const [name, asked, code, says] of refusals) {
  test(`refused before any metadata is read: ${name}`, async (t) => {
    await refused(t, ask(await recorded(), asked), code, says)
  })
}

async function refused(t: ExecutionContext, what: Promise<unknown>, code: ErrorCode, says: RegExp) {
  const error = await t.throwsAsync<DeltamapperError>(what, { instanceOf: DeltamapperError })
  t.is(error?.code, code, error?.message)
  t.regex(error?.message ?? '', says)
  return error
}

test('refused by the metadata: reversed order, a lost base, a lost target', async (t) => {
  const backend = await recorded()
  for (const [base, target, code] of [
    ['sample/tue', 'sample/mon', 'DM_ORDER_REVERSED'],
    ['sample/gone', 'sample/thu', 'DM_BASE_LOST'],
    ['sample/thu', 'sample/gone', 'DM_SNAPSHOT_NOT_FOUND']
  ] as const) {
    await refused(t, ask(backend, { base, target }).then(extentsOf), code, /sample/)
  }
})

test('what is not found is told with what there is', async (t) => {
  const error = await refused(t, ask(await recorded(), { target: 'x/y' }), 'DM_SNAPSHOT_NOT_FOUND', /no source x/)
  t.regex(error?.remedy ?? '', /serves sample, twin/)
  const bare = snapshotMetadataBackend(new Sources(new Map()), walkers, answersWith({}))
  const none = await refused(t, ask(bare, { target: 'x/y' }), 'DM_SNAPSHOT_NOT_FOUND', /no source x/)
  t.regex(none?.remedy ?? '', /serves nothing/)
})

test('from the end on there is nothing, and one byte before it is in range', async (t) => {
  const backend = await recorded()
  const { size_bytes } = (await sample).listed('tue')
  const from = async (startingOffset: bigint) => extentsOf(await ask(backend, { target: 'sample/tue', startingOffset }))
  t.deepEqual(await from(BigInt(size_bytes)), [])
  t.deepEqual(await from(BigInt(size_bytes) - 1n), await (await sample).extents(undefined, 'tue', size_bytes - 1))
})

/** A backend over a source that hands out these changes of the snapshots `mon` (the base) and `wed`. */
async function related(
  base: Partial<Snapshot>,
  target: Partial<Snapshot>,
  onSeen: (seen: SeenDevices) => void = () => undefined
) {
  const pool = await sample
  const snapshots = new Map<string, Snapshot>([
    ['base', { ...pool.snapshot('mon'), handle: 's/base', ...base }],
    ['target', { ...pool.snapshot('wed'), handle: 's/target', ...target }]
  ])
  for (const snapshot of snapshots.values()) if (snapshot.volume === '') delete snapshot.volume
  const source: SnapshotSource = { snapshot: async (name) => snapshots.get(name) }
  return snapshotMetadataBackend(
    new Sources(new Map([['s', source]])),
    walkers,
    answersWith({
      knowledge: {
        check: async (seen) => {
          onSeen(seen)
        }
      }
    })
  )
}

const compare = { base: 's/base', target: 's/target' }

test('only what is known to be unrelated is refused', async (t) => {
  const right = await (await sample).extents('mon', 'wed')
  const answers: [Partial<Snapshot>, Partial<Snapshot>][] = [
    [{ volume: '' }, { volume: 'v2' }],
    [{ volume: 'v1' }, { volume: '' }],
    [{ volume: '' }, { volume: '' }],
    // A snapshot and what it was taken of.
    [{ volume: 'v1', identity: 's1' }, { volume: 's1' }],
    [{ volume: 's2' }, { volume: 'v1', identity: 's2' }]
  ]
  for (const [base, target] of answers) {
    t.deepEqual(await extentsOf(await ask(await related(base, target), compare)), right)
  }
  const refusals: [Partial<Snapshot>, Partial<Snapshot>, RegExp][] = [
    [{ volume: 'v1' }, { volume: 'v2' }, /s\/base is a snapshot of v1, s\/target of v2/],
    [{ volume: 'v1', volumeName: 'vg/home' }, { volume: 'v2', identity: 's' }, /of vg\/home, s\/target of v2/]
  ]
  for (const [base, target, says] of refusals) {
    await refused(t, ask(await related(base, target), compare), 'DM_VOLUMES_DIFFER', says)
  }
})

test('by handles of our own, snapshots of two volumes are compared, and the log says so', async (t) => {
  const log: object[] = []
  const logger = { warn: (fields: object) => void log.push(fields) } as unknown as Logger
  const seen: (boolean | undefined)[] = []
  const knowledge: DeviceKnowledge = { check: async (_seen, anyVolume) => void seen.push(anyVolume) }
  const pool = await sample
  const snapshots = new Map<string, Snapshot>([
    ['base', { ...pool.snapshot('mon'), volume: 'v1', live: true }],
    ['target', { ...pool.snapshot('wed'), volume: 'v2', live: true }]
  ])
  const source: SnapshotSource = { snapshot: async (name) => snapshots.get(name) }
  const backend = snapshotMetadataBackend(
    new Sources(new Map([['s', source]])),
    walkers,
    answersWith({ knowledge, logger })
  )
  const asked = { baseSnapshotId: 's/base', targetSnapshotId: 's/target', startingOffset: 0n, maxResults: 0 }
  const { signal } = new AbortController()
  const by = (anyVolume: boolean) => ({ deadline: Infinity, requestId: 'x', client: 'c', party: 'c', anyVolume })
  t.deepEqual(await extentsOf(await backend.delta(asked, signal, by(true))), await pool.extents('mon', 'wed'))
  t.deepEqual(seen, [true], 'the catalog is told, too')
  t.like(log, [{ base: 's/base', target: 's/target', baseOf: 'v1', targetOf: 'v2' }])
  const error = await t.throwsAsync(backend.delta(asked, signal, by(false)), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_VOLUMES_DIFFER')
})

test('a caller that has the data of a device gets no answer about anything else', async (t) => {
  const pool = await sample
  const metadataDevice = { major: 253, minor: 2, uuid: '' }
  const live = { ...pool.snapshot('wed'), live: true, metadataDevice }
  const source: SnapshotSource = {
    snapshot: async (name) => ({ live, copy: pool.snapshot('wed'), mon: { ...live, ...pool.snapshot('mon') } })[name]
  }
  const backend = snapshotMetadataBackend(new Sources(new Map([['s', source]])), walkers, answersWith({}))
  const { signal } = new AbortController()
  const request = { startingOffset: 0n, maxResults: 0 }
  const asked = (snapshotId: string, device?: string) => {
    const call = { deadline: Infinity, requestId: 'x', client: 'c', party: 'c', anyVolume: false }
    return backend.allocated({ snapshotId, ...request }, signal, { ...call, ...(device !== undefined && { device }) })
  }
  const named = `thin:253:2:${live.thinId}`
  t.true((await extentsOf(await asked('s/copy'))).length > 0, 'who does not say is answered')
  // The walk begins, and finds an image where a device should be.
  const begun = await t.throwsAsync(asked('s/live', named).then(extentsOf), { instanceOf: DeltamapperError })
  t.is(begun.code, 'DM_SNAPSHOT_CHANGED')
  for (const [handle, device] of [
    ['s/live', `thin:253:3:${live.thinId}`],
    ['s/live', `thin:253:2:${live.thinId + 1}`],
    ['s/live', 'classic:LVM-x'],
    ['s/live', ''],
    // An image has no device, whatever is in it.
    ['s/copy', named],
    ['s/mon', named]
  ]) {
    const error = await t.throwsAsync(asked(handle, device), { instanceOf: DeltamapperError }, `${handle} ${device}`)
    t.is(error.code, 'DM_NO_SUCH_DEVICE')
    t.true(error.message.includes(handle))
  }
})

test('what an external origin shows is never left out: such answers are refused', async (t) => {
  const pool = await sample
  const right = await pool.extents('mon', 'wed')
  const origin = (identity: string, sizeBytes?: number) => ({
    externalOrigin: { identity, ...(sizeBytes !== undefined && { sizeBytes }) }
  })
  const [small, large] = [pool.listed('mon').size_bytes, pool.listed('wed').size_bytes]
  t.true(small < large)

  // Over the same origin it cancels out, as far as the base reaches.
  t.deepEqual(await extentsOf(await ask(await related(origin('o', small), origin('o', small)), compare)), right)
  const grown = await related({ ...origin('o'), sizeBytes: large }, origin('o'))
  t.true((await extentsOf(await ask(grown, compare))).length > 0)

  await refused(t, ask(await related({}, origin('o', 1)), { target: 's/target' }), 'DM_NOT_TRACKED', /not all it holds/)
  t.true((await extentsOf(await ask(await related({}, {}), { target: 's/target' }))).length > 0)
  for (const [base, target, says] of [
    [origin('o'), origin('p'), /do not have the same external origin/],
    [origin('o'), {}, /do not have the same external origin/],
    [{}, origin('o'), /do not have the same external origin/],
    [origin('o', large), origin('o', large), /shows more of itself since s\/base, which is smaller/],
    [origin('o', small + 1), origin('o', small + 1), /which is smaller/],
    [origin('o'), origin('o'), /which is smaller/]
  ] as const) {
    await refused(t, ask(await related(base, target), compare), 'DM_NOT_TRACKED', says)
  }
})

test('of a live pool the devices are shown before the first message, and may be refused', async (t) => {
  const seen: SeenDevices[] = []
  const remember = (devices: SeenDevices) => void seen.push(devices)
  const right = await (await sample).extents('mon', 'wed')
  t.deepEqual(await extentsOf(await ask(await related({}, {}, remember), compare)), right)
  t.deepEqual(seen, [], 'a recorded pool does not change: there is nothing to remember')

  t.deepEqual(await extentsOf(await ask(await related({ live: true }, { live: true }, remember), compare)), right)
  t.deepEqual(
    seen.map(({ base, target }) => [base?.snapshot.handle, target.snapshot.handle]),
    [['s/base', 's/target']]
  )

  const refusal = new DeltamapperError('DM_BASE_CHANGED', 'not what it was', 'take a full backup')
  const backend = await related({ live: true }, { live: true }, () => {
    throw refusal
  })
  await t.throwsAsync(ask(backend, compare).then(extentsOf), { is: refusal })
})

test('what a source throws passes through', async (t) => {
  const failure = new DeltamapperError('DM_CALL_STUCK', 'lvs does not answer', 'look at the VG')
  const source: SnapshotSource = { snapshot: () => Promise.reject(failure) }
  const backend = snapshotMetadataBackend(new Sources(new Map([['s', source]])), walkers, answersWith({}))
  await t.throwsAsync(ask(backend, { target: 's/target' }), { is: failure })
  await t.throwsAsync(ask(backend, compare), { is: failure })
})

test('a snapshot that can be written to is answered, and said in the log and on the command line', async (t) => {
  const log: { handle?: string }[] = []
  const logger = { warn: (fields: object) => void log.push(fields) } as unknown as Logger
  const pool = await sample
  const snapshots = new Map<string, Snapshot>([
    ['read-only', { ...pool.snapshot('mon'), volume: 'v', live: true, writable: false }],
    ['writable', { ...pool.snapshot('wed'), handle: 's/writable', volume: 'v', live: true, writable: true }]
  ])
  const source: SnapshotSource = { snapshot: async (name) => snapshots.get(name) }
  const knowledge: DeviceKnowledge = { check: async () => undefined }
  const sources = new Sources(new Map([['s', source]]))
  const backend = snapshotMetadataBackend(sources, walkers, answersWith({ knowledge, logger }))
  const { address } = await testServer(t, { backend })

  const quiet = await runCommand(['allocated', 's/read-only', '--endpoint', address, '-o', 'ndjson'])
  t.is(quiet.stderr, '')
  t.deepEqual(log, [])
  const said = await runCommand(['delta', 's/read-only', 's/writable', '--endpoint', address, '-o', 'ndjson'])
  t.is(said.status, 0)
  t.regex(
    said.stderr,
    /^deltamapper: s\/writable is active and can be written to: .*make it read-only \(LVM: lvchange -pr s\/writable\)/
  )
  t.regex(said.stdout, /"complete":true/)
  t.deepEqual(
    log.map(({ handle }) => handle),
    ['s/writable']
  )
})
