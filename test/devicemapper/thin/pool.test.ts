/**
 * What a thin pool does when calls fail, which a healthy kernel would not show: with a device-mapper that does as it is told. (What it
 * does with a real one: test/kernel/owned-pools.test.ts.)
 */
import test from 'ava'
import type { DeviceInfo, DeviceReference } from '../../../native/device-mapper.ts'
import { checkNewPool, type PoolPort, ThinPool } from '../../../src/devicemapper/thin/pool.ts'
import { DeltamapperError } from '../../../src/errors.ts'

const uuid = 'DELTAMAPPER-pool-p'
const origin = { uuid: 'DELTAMAPPER-thin-o' }
const status = '5 10/1024 100/200 - rw discard_passdown error_if_no_space - 256'

interface Behaviour {
  /** Calls that fail, by name: at the first so many of them. */
  failing?: Record<string, number>
  status?: string
}

/** Notes every call that changes something, and fails as it is told. */
function obedient({ failing = {}, status: line = status }: Behaviour = {}): { port: PoolPort; calls: string[] } {
  const calls: string[] = []
  const left = { ...failing }
  const called = async (name: string, device: DeviceReference, ...rest: unknown[]): Promise<undefined> => {
    const reference =
      typeof device === 'string' ? device : 'uuid' in device ? device.uuid : `${device.major}:${device.minor}`
    calls.push([name, reference, ...rest].join(' '))
    if ((left[name] ?? 0) > 0) {
      left[name]--
      throw new DeltamapperError('DM_CALL_FAILED', `${name} failed`, 'nothing')
    }
  }
  const info = { name: 'p', uuid, major: 254, minor: 7, hasLiveTable: true, readOnly: false, suspended: false }
  const port = {
    info: async () => info,
    table: async () => [{ startSector: 0, lengthSectors: 2048, targetType: 'thin', params: '254:7 3' }],
    status: async () => [{ startSector: 0, lengthSectors: 2048, targetType: 'thin-pool', params: line }],
    message: (device: DeviceReference, text: string) => called('message', device, text),
    create: (name: string, options: { uuid: string; readOnly: boolean; table: object[] }) =>
      called('create', name, options.uuid, options.readOnly, JSON.stringify(options.table)),
    reload: (device: DeviceReference, [row]: { lengthSectors: number; params: string }[], { readOnly = false } = {}) =>
      called('reload', device, row.lengthSectors, row.params, readOnly),
    clear: (device: DeviceReference) => called('clear', device),
    suspend: (device: DeviceReference) => called('suspend', device),
    resume: (device: DeviceReference) => called('resume', device),
    remove: (device: DeviceReference) => called('remove', device)
  }
  return { port: port as unknown as PoolPort, calls }
}

test('the messages are those of the kernel, to the pool with our UUID', async (t) => {
  const { port, calls } = obedient()
  const pool = new ThinPool(port, uuid)
  await pool.createThin(0)
  await pool.createSnapshot(1, 0)
  await pool.deleteThin(16777215)
  await pool.setTransactionId(2n ** 64n - 2n, 2n ** 64n - 1n)
  t.deepEqual(calls, [
    `message ${uuid} create_thin 0`,
    `message ${uuid} create_snap 1 0`,
    `message ${uuid} delete 16777215`,
    `message ${uuid} set_transaction_id 18446744073709551614 18446744073709551615`
  ])
})

test('an active origin is suspended, and resumed', async (t) => {
  const { port, calls } = obedient()
  await new ThinPool(port, uuid).createSnapshot(1, 0, origin)
  t.deepEqual(calls, [`suspend ${origin.uuid}`, `message ${uuid} create_snap 1 0`, `resume ${origin.uuid}`])
})

test('whatever fails while a snapshot is taken, the origin is resumed', async (t) => {
  for (const failing of [{ suspend: 1 }, { message: 1 }, { message: 1, resume: 2 }, { resume: 1 }]) {
    const { port, calls } = obedient({ failing })
    const taken = new ThinPool(port, uuid).createSnapshot(1, 0, origin)
    if ('suspend' in failing || 'message' in failing) {
      await t.throwsAsync(taken, { code: 'DM_CALL_FAILED' })
    } else await t.notThrowsAsync(taken)
    const resumed = calls.filter((each) => each.startsWith('resume')).length
    t.is(resumed, 1 + (failing.resume ?? 0))
    if ('suspend' in failing)
      t.false(
        calls.some((each) => each.startsWith('message')),
        'not without suspending'
      )
  }
})

test('a table that somebody has loaded into the origin is dropped, and the origin resumed whatever comes of that', async (t) => {
  for (const failing of [{}, { clear: 1 }]) {
    const { port, calls } = obedient({ failing })
    const info = { ...(await port.info(origin)), hasInactiveTable: true } as DeviceInfo
    await new ThinPool({ ...port, info: async () => info }, uuid).createSnapshot(1, 0, origin)
    t.deepEqual(
      calls.map((each) => each.split(' ')[0]),
      ['suspend', 'message', 'clear', 'resume']
    )
  }
})

test('an origin that cannot be resumed is said to be suspended, with the way out', async (t) => {
  const { port, calls } = obedient({ failing: { resume: 100 } })
  const error = await t.throwsAsync(new ThinPool(port, uuid).createSnapshot(1, 0, origin), {
    instanceOf: DeltamapperError
  })
  t.is(error.code, 'DM_CALL_STUCK')
  t.regex(error.line, /was suspended and could not be resumed.*`dmsetup resume p`/)
  t.is(calls.filter((each) => each.startsWith('resume')).length, 3)
})

test('a new table is loaded beside the old one and put in place by a resume', async (t) => {
  const { port, calls } = obedient()
  await new ThinPool(port, uuid).resizeThin(origin, 2 ** 21)
  t.deepEqual(calls, [`reload ${origin.uuid} 4096 254:7 3 false`, `resume ${origin.uuid}`])
})

test('a table that cannot be put in place gives way to the old one', async (t) => {
  const { port, calls } = obedient({ failing: { resume: 1 } })
  await t.throwsAsync(new ThinPool(port, uuid).resizeThin(origin, 2 ** 21), { code: 'DM_CALL_FAILED' })
  t.deepEqual(calls, [
    `reload ${origin.uuid} 4096 254:7 3 false`,
    `resume ${origin.uuid}`,
    `reload ${origin.uuid} 2048 254:7 3 false`,
    `resume ${origin.uuid}`
  ])
  const early = obedient({ failing: { reload: 1 } })
  await t.throwsAsync(new ThinPool(early.port, uuid).resizeThin(origin, 2 ** 21), { code: 'DM_CALL_FAILED' })
  t.is(early.calls.length, 1, 'nothing was loaded, and nothing is put in place')
})

test('a thin device is made of the pool by its number', async (t) => {
  const { port, calls } = obedient()
  const plan = { name: 'p-o', uuid: origin.uuid, thinId: 3, sizeBytes: 2 ** 20, readOnly: true }
  await new ThinPool(port, uuid).activateThin(plan)
  const row = { startSector: 0, lengthSectors: 2048, targetType: 'thin', params: '254:7 3' }
  t.deepEqual(calls, [`create p-o ${origin.uuid} true ${JSON.stringify([row])}`])
})

const unchangeable: [string, RegExp][] = [
  ['Fail', /has failed/],
  ['Error', /has failed/],
  ['5 1024/1024 1/200 - ro discard_passdown error_if_no_space - 256', /1024 of 1024 metadata blocks/],
  ['5 10/1024 1/200 - ro discard_passdown error_if_no_space needs_check 256', /needs a check/]
]
for (const [line, words] of unchangeable) {
  test(`takes no changes: ${line}`, async (t) => {
    const error = await t.throwsAsync(new ThinPool(obedient({ status: line }).port, uuid).refuseUnlessChangeable(), {
      instanceOf: DeltamapperError
    })
    t.is(error.code, 'DM_POOL_READ_ONLY')
    t.regex(error.message, words)
  })
}

test('out of data space, a pool still takes messages', async (t) => {
  const full = '5 10/1024 200/200 - out_of_data_space discard_passdown error_if_no_space - 256'
  for (const line of [status, full]) {
    await t.notThrowsAsync(new ThinPool(obedient({ status: line }).port, uuid).refuseUnlessChangeable())
  }
})

test('a name that is taken is refused before any device is looked at', async (t) => {
  const { port, calls } = obedient()
  const plan = {
    ...{ name: 'p', uuid, metadataDevice: '/nowhere/m', dataDevice: '/nowhere/d', blockSectors: 128 },
    ...{ lowWaterBlocks: 0, features: noFeatures }
  }
  await t.throwsAsync(checkNewPool(port, plan), {
    code: 'DM_NAME_TAKEN',
    message: /already is a device-mapper device p/
  })
  const nobody = { ...port, info: async () => undefined } as unknown as PoolPort
  await t.throwsAsync(checkNewPool(nobody, plan), { code: 'DM_NO_SUCH_DEVICE', message: /\/nowhere\/m/ })
  t.deepEqual(calls, [])
})

const noFeatures = {
  ...{ skipBlockZeroing: false, ignoreDiscard: false, noDiscardPassdown: false },
  ...{ readOnly: false, errorIfNoSpace: true }
}
