/**
 * From a handle to what is to be read, with what LVM and device-mapper really said of real volumes.
 */
import test from 'ava'
import { DeltamapperError } from '../../../src/errors.ts'
import type { LogicalVolume } from '../../../src/agent/lvm/parse.ts'
import { thinPoolUuid, volumeGroupSource } from '../../../src/agent/answers/volume-group.ts'
import type { DeviceMapperPort } from '../../../src/agent/node/pool-device.ts'
import type { Snapshot } from '../../../src/agent/walks/snapshot.ts'
import { numbersOfAnother, recordedDevices, recordedVolumes, type Scene } from '../../support/recorded-lvm.ts'

const mebibyte = 2 ** 20

function sourceOf(scene: Scene, inactive: string[] = []) {
  const lvm = { logicalVolumes: async (group: string) => (group === 'my-vg' ? recordedVolumes(scene) : undefined) }
  return volumeGroupSource('my-vg', { lvm, deviceMapper: recordedDevices(inactive) })
}

async function find(name: string, scene: Scene = 'volumes'): Promise<Snapshot> {
  const snapshot = await sourceOf(scene).snapshot(name)
  if (!snapshot) throw new Error(`no snapshot ${name}`)
  return snapshot
}

function row(name: string, scene: Scene = 'volumes'): LogicalVolume {
  return recordedVolumes(scene).find((lv) => lv.name === name)!
}

async function refusal(name: string, scene: Scene, inactive: string[] = []): Promise<DeltamapperError> {
  const error: unknown = await sourceOf(scene, inactive)
    .snapshot(name)
    .then(
      () => new Error(`${name} was accepted`),
      (thrown: unknown) => thrown
    )
  if (error instanceof DeltamapperError) return error
  throw error
}

test('a snapshot, active or not', async (t) => {
  const poolDevice = (await recordedDevices().info({ uuid: thinPoolUuid(row('po-ol')) }))!
  const madeReadOnly = (name: string) => row(name).attributes.permissions === 'read-only'
  t.deepEqual(await find('monday'), {
    kind: 'thin',
    handle: 'my-vg/monday',
    metadataDevice: {
      major: 254,
      minor: 0,
      uuid: 'LVM-gJd5mWme1uBQaVQAX6YffsM98VAW3czOZ4L4UK2aRB30gOqBEuFmmymZndJpJrDx-tmeta'
    },
    dataUuid: 'LVM-gJd5mWme1uBQaVQAX6YffsM98VAW3czOGLXZOZl6qeT20QrfQp3DBruMjc3xjPpv-tdata',
    poolIdentity: 'YcF3il-VmZl-SEFf-lJN4-fVxd-wRxv-lwRMTw',
    identity: row('monday').uuid,
    volume: row('data').uuid,
    volumeName: 'my-vg/data',
    writable: true,
    thinId: 2,
    sizeBytes: 64 * mebibyte,
    transactionId: 1n,
    metadataPath: '/dev/mapper/my--vg-po--ol_tmeta',
    live: true,
    madeReadOnly: madeReadOnly('monday'),
    pool: { uuid: thinPoolUuid(row('po-ol')) },
    poolDevice: { major: poolDevice.major, minor: poolDevice.minor }
  })
  t.deepEqual(await find('tue.sd+ay_'), {
    ...(await find('monday')),
    handle: 'my-vg/tue.sd+ay_',
    identity: row('tue.sd+ay_').uuid,
    // It is not active.
    writable: false,
    madeReadOnly: madeReadOnly('tue.sd+ay_'),
    thinId: 3,
    transactionId: 2n
  })
})

test('an active device has to be what LVM says', async (t) => {
  const recorded = recordedDevices()
  // (A copy-on-write snapshot is over this one.)
  const data = (await recorded.info('my--vg-data-real'))!
  const [table] = await recorded.table('my--vg-data-real')
  for (const [changed, message] of [
    [
      { ...table, lengthSectors: table.lengthSectors + 2048 },
      /of 67108864 bytes to LVM.* thin device 1 of 68157440 bytes/
    ],
    [{ ...table, params: table.params.replace(/ 1$/, ' 7') }, /thin device 1 of .* its active device is thin device 7/]
  ] as const) {
    const deviceMapper: DeviceMapperPort = {
      info: recorded.info,
      table: async (reference) =>
        typeof reference === 'object' && 'uuid' in reference && reference.uuid === data.uuid
          ? [changed]
          : recorded.table(reference)
    }
    const source = volumeGroupSource('my-vg', {
      lvm: { logicalVolumes: async () => recordedVolumes('volumes') },
      deviceMapper
    })
    await t.throwsAsync(() => source.snapshot('data'), { code: 'DM_NOT_TRACKED', message })
  }
})

test('a number that went to another device between two calls is no verdict on the volume', async (t) => {
  const source = volumeGroupSource('my-vg', {
    lvm: { logicalVolumes: async () => recordedVolumes('volumes') },
    deviceMapper: numbersOfAnother(recordedDevices(), 'my--vg-second-tpool')
  })
  t.deepEqual(await source.snapshot('data'), await find('data'))
})

test('a volume knows itself, and not what it is of', async (t) => {
  const data = await find('data')
  t.is(data.identity, (await find('monday')).volume)
  t.false('volume' in data)
  t.false('volume' in (await find('tue.sd+ay_', 'origins-removed')))
})

test('each pool has its own metadata device', async (t) => {
  t.is((await find('far-monday')).metadataPath, '/dev/mapper/my--vg-second_tmeta')
})

test('external origins are named, with their size', async (t) => {
  const image = { identity: row('image').uuid, sizeBytes: 16 * mebibyte }
  for (const name of ['clone', 'clone-monday', 'clone-copy'])
    t.deepEqual((await find(name)).externalOrigin, image, name)
  t.deepEqual((await find('far-monday')).externalOrigin, {
    identity: row('monday-copy').uuid,
    sizeBytes: 64 * mebibyte
  })
  t.is((await find('clone-monday')).volume, row('clone').uuid)
  // An external origin is not what a volume is a snapshot of: others are over it as well.
  t.false('volume' in (await find('clone')))
  t.false('volume' in (await find('clone-copy', 'origins-removed')))
})

test('the thin-pool target is found whether or not the pool has a device above it', async (t) => {
  const devices = recordedDevices()
  for (const [pool, device] of [
    ['po-ol', 'my--vg-po--ol-tpool'],
    ['second', 'my--vg-second-tpool'],
    // Nothing was put into it yet.
    ['empty', 'my--vg-empty']
  ]) {
    const info = await devices.info({ uuid: thinPoolUuid(row(pool)) })
    t.is(info?.name, device)
    t.is((await devices.table(device))[0].targetType, 'thin-pool')
  }
})

test('a pool that is not active is said so, with the command that activates it', async (t) => {
  for (const name of ['monday', 'tue.sd+ay_']) {
    const error = await refusal(name, 'volumes', ['my--vg-po--ol-tpool', 'my--vg-po--ol'])
    t.is(error.code, 'DM_POOL_INACTIVE')
    t.is(error.status, 'FAILED_PRECONDITION')
    t.regex(error.line, /my-vg\/po-ol is not active here; activate it: lvchange -ay -K my-vg\/po-ol/)
  }
  // The device above it does not matter.
  t.true((await sourceOf('volumes', ['my--vg-po--ol']).snapshot('monday')) !== undefined)
})

test('what cannot be tracked is refused, what is not there is not found', async (t) => {
  for (const name of ['thick', 'thick-cow', 'thin-cow', 'po-ol', 'po-ol_tmeta', 'raid']) {
    t.is((await refusal(name, 'volumes')).code, 'DM_NOT_TRACKED', name)
  }
  t.is((await refusal('monday', 'merging')).code, 'DM_NOT_TRACKED')
  for (const name of ['tuesday', 'my-vg/monday', '[po-ol_tmeta]', '', 'MONDAY', '../monday']) {
    t.is(await sourceOf('volumes').snapshot(name), undefined, name)
  }
})

test('a group that LVM does not see', async (t) => {
  const lvm = { logicalVolumes: async () => undefined }
  const source = volumeGroupSource('gone', { lvm, deviceMapper: recordedDevices() })
  await t.throwsAsync(() => source.snapshot('monday'), {
    message: /no volume group gone/,
    code: 'DM_SNAPSHOT_NOT_FOUND'
  })
  t.throws(() => volumeGroupSource('--config', { lvm, deviceMapper: recordedDevices() }), {
    code: 'DM_ARGUMENT_INVALID'
  })
})
