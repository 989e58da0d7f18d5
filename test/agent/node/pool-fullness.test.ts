import test from 'ava'
import type { DeviceInfo, TableRow } from '../../../native/device-mapper.ts'
import { Looks } from '../../../src/agent/node/looks.ts'
import { lookAtFullness, lookAtPoolsAndStores } from '../../../src/agent/node/pool-fullness.ts'
import { surveyDevices, type SurveyPort } from '../../../src/agent/node/survey.ts'
import { DeltamapperError } from '../../../src/errors.ts'

const table = '7:0 7:1 128 0 0 '
const row = (targetType: string, params: string): TableRow => ({ startSector: 0, lengthSectors: 8, targetType, params })

/** Thin pools by name, with the status line of each; other devices without one. */
function devices(status: Record<string, string | undefined>): SurveyPort & { looks: number } {
  const names = Object.keys(status)
  const named = (reference: unknown) =>
    typeof reference === 'string' ? reference : names[(reference as { minor: number }).minor]
  const port = {
    looks: 0,
    list: async () => {
      port.looks++
      return names.map((name, minor) => ({ name, major: 253, minor }))
    },
    info: async (reference: unknown) => {
      const name = named(reference)
      return { name, uuid: '', major: 253, minor: names.indexOf(name), hasLiveTable: true } as DeviceInfo
    },
    table: async (reference: unknown) => [
      status[named(reference)] === undefined ? row('linear', '7:0 0') : row('thin-pool', table)
    ],
    status: async (reference: unknown) => {
      const line = status[named(reference)] ?? ''
      if (line === 'gone') throw new DeltamapperError('DM_NO_SUCH_DEVICE', 'it is gone', 'look again')
      return [row('thin-pool', line)]
    }
  }
  return port
}

test('pools as the kernel describes them, in bytes; what is no pool, or went away, is left out', async (t) => {
  const port = devices({
    'vg0-pool0-tpool': '5 900/1024 20/200 - rw discard_passdown queue_if_no_space - 256',
    'vg0-root': undefined,
    broken: 'Fail',
    'a-full': '5 1/1024 200/200 7 out_of_data_space no_discard_passdown error_if_no_space needs_check 256',
    strange: 'what is this',
    vanished: 'gone'
  })
  const pools = await lookAtFullness(port, await surveyDevices(port))
  t.deepEqual(pools, [
    {
      name: 'a-full',
      state: 'out-of-data-space',
      usage: {
        dataBytes: 200 * 65536,
        dataUsedBytes: 200 * 65536,
        metadataBytes: 1024 * 4096,
        metadataUsedBytes: 4096,
        needsCheck: true
      }
    },
    { name: 'broken', state: 'failed', usage: undefined },
    { name: 'strange', state: 'unknown', usage: undefined },
    {
      name: 'vg0-pool0-tpool',
      state: 'read-write',
      usage: {
        dataBytes: 200 * 65536,
        dataUsedBytes: 20 * 65536,
        metadataBytes: 1024 * 4096,
        metadataUsedBytes: 900 * 4096,
        needsCheck: false
      }
    }
  ])
})

test('a look serves everybody who asks for a while', async (t) => {
  const port = devices({ pool: '5 1/1024 20/200 - rw discard_passdown queue_if_no_space - 256' })
  const looks = new Looks(() => lookAtPoolsAndStores(port))
  const seen = await Promise.all([looks.latest(), looks.latest(), looks.latest()])
  t.is(new Set(seen).size, 1)
  t.is(await looks.latest(), seen[0])
  t.is(port.looks, 1)
  const impatient = new Looks(() => lookAtPoolsAndStores(port), { freshMs: 0 })
  await impatient.latest()
  await impatient.latest()
  t.is(port.looks, 3)
})

test('a look that fails or hangs leaves the one before, whose time says so', async (t) => {
  const port = devices({ pool: '5 1/1024 20/200 - rw discard_passdown queue_if_no_space - 256' })
  const { list } = port
  const looks = new Looks(() => lookAtPoolsAndStores(port), { freshMs: 0, waitMs: 20 })
  const fail = () => Promise.reject(new DeltamapperError('DM_CALL_STUCK', 'it hangs', 'wait'))
  port.list = fail
  t.is(await looks.latest(), undefined)
  port.list = list
  const seen = await looks.latest()
  t.is(seen?.what.pools.length, 1)
  port.list = fail
  t.is(await looks.latest(), seen)
  let free: (() => void) | undefined
  port.list = () => new Promise((resolve) => (free = () => resolve([])))
  const alive = setInterval(() => undefined, 1000)
  t.is(await looks.latest(), seen)
  t.is(await looks.latest(), seen, 'and is not asked a second time')
  clearInterval(alive)
  free?.()
  while ((await looks.latest())?.what.pools.length !== 0) port.list = async () => []
})
