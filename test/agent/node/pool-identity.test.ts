/** Which pool it is: told by what lasts, not by names. */
import test from 'ava'
import type { DeviceInfo, DeviceReference, TableRow } from '../../../native/device-mapper.ts'
import { type DeviceMapperPort, findPoolDevice } from '../../../src/agent/node/pool-device.ts'
import { poolIdentity } from '../../../src/agent/node/pool-identity.ts'
import { recordedDevices } from '../../support/recorded-lvm.ts'

interface Made {
  name: string
  uuid?: string
  table: string
}

/** Devices with minor numbers in their order. */
function deviceMapper(devices: readonly Made[], firstMinor = 0): DeviceMapperPort {
  const find = (reference: DeviceReference): [number, Made] | undefined => {
    const index = devices.findIndex(({ name, uuid = '' }, i) =>
      typeof reference === 'string'
        ? name === reference
        : 'uuid' in reference
          ? uuid === reference.uuid
          : reference.major === 254 && reference.minor === firstMinor + i
    )
    return index < 0 ? undefined : [index, devices[index]]
  }
  return {
    info: async (reference) => {
      const found = find(reference)
      if (!found) return undefined
      const [minor, { name, uuid = '' }] = found
      return { major: 254, minor: firstMinor + minor, name, uuid, hasLiveTable: true } as DeviceInfo
    },
    table: async (reference): Promise<TableRow[]> =>
      (find(reference)?.[1].table ?? '').split('\n').map((line) => {
        const [startSector, lengthSectors, targetType = '', ...params] = line.split(' ')
        return {
          startSector: Number(startSector),
          lengthSectors: Number(lengthSectors),
          targetType,
          params: params.join(' ')
        }
      })
  }
}

async function identity(devices: readonly Made[], firstMinor = 0): Promise<string> {
  const port = deviceMapper(devices, firstMinor)
  return poolIdentity(port, (await findPoolDevice(port, 'pool'))!)
}

/** A pool over two devices without UUIDs, on two disks that have some. */
function pool(changes: Partial<Record<'metadata' | 'data' | 'uuid', string>> = {}, first = 0): Made[] {
  const disk = (text: string) => text.replaceAll(/disk(\d)/g, (_, index: string) => `254:${first + Number(index)}`)
  const { metadata = '0 8192 linear disk0 0', data = '0 65536 linear disk0 8192', uuid = '' } = changes
  return [
    { name: 'disk0', uuid: 'first', table: '0 1000000 zero' },
    { name: 'disk1', uuid: 'second', table: '0 1000000 zero' },
    { name: 'metadata', table: disk(metadata) },
    { name: 'data', table: disk(data) },
    { name: 'pool', uuid, table: `0 65536 thin-pool 254:${first + 2} 254:${first + 3} 128 0 0` }
  ]
}

test("LVM's pools are known by LVM's UUID, whatever the group", async (t) => {
  const devices = recordedDevices()
  const found = await findPoolDevice(devices, 'my--vg-po--ol-tpool')
  t.is(await poolIdentity(devices, found!), 'YcF3il-VmZl-SEFf-lJN4-fVxd-wRxv-lwRMTw')
  t.is(
    await poolIdentity(devices, { ...found!, uuid: found!.uuid.replace(/^LVM-.{32}/, `LVM-${'x'.repeat(32)}`) }),
    'YcF3il-VmZl-SEFf-lJN4-fVxd-wRxv-lwRMTw'
  )
})

test('a UUID is the identity, wherever the pool lies', async (t) => {
  t.is(await identity(pool({ uuid: 'mine' })), 'mine')
  t.is(await identity(pool({ uuid: 'mine', data: '0 65536 linear disk1 0' })), 'mine')
})

test('without a UUID it is what metadata and data lie on, not their numbers or how large they are', async (t) => {
  const first = await identity(pool())
  t.regex(first, /^disks:[0-9a-f]{64}$/)
  t.is(await identity(pool({}, 40), 40), first)
  t.is(await identity(pool({ data: '0 131072 linear disk0 8192\n131072 64 linear disk1 0' })), first)
  for (const other of [
    { metadata: '0 8192 linear disk1 0' },
    { data: '0 65536 linear disk1 8192' },
    { data: '0 65536 linear disk0 16384' }
  ]) {
    t.not(await identity(pool(other)), first, JSON.stringify(other))
  }
})
