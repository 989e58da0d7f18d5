/** Each call of the Admin service gets to who answers it. */
import test from 'ava'
import { administration, type BaseBackend, type EraBackend, type PoolBackend } from '../../src/agent/administration.ts'
import { recordingBackend } from '../grpc/admin-backend.ts'

const baseCalls = /Bases?$/
const eraCalls = /era|^(begin|end)Snapshot$/i

test('calls about tracked volumes and calls about pools', async (t) => {
  const [pools, tracked, bases] = [recordingBackend(), recordingBackend(), recordingBackend()]
  const only = (backend: object, wanted: (name: string) => boolean) =>
    Object.fromEntries(Object.entries(backend).filter(([name]) => wanted(name)))
  const deleted: string[] = []
  const backend = administration(
    only(pools.backend, (name) => !eraCalls.test(name) && !baseCalls.test(name)) as unknown as PoolBackend,
    {
      ...only(tracked.backend, (name) => eraCalls.test(name)),
      has: (name: string) => Promise.resolve(name === 'srv'),
      deleteSnapshot(volume: string, name: string) {
        deleted.push(`${volume}/${name}`)
        return Promise.resolve()
      }
    } as unknown as EraBackend,
    only(bases.backend, (name) => baseCalls.test(name)) as unknown as BaseBackend
  )
  await backend.growPool({ pool: 'tank' })
  await backend.dropBase({ handle: 'vg/mon' })
  await backend.growEra({ volume: 'srv' })
  await backend.beginSnapshot({ volume: 'srv', name: 'a', deadlineMs: 0 })
  await backend.createSnapshot({ pool: 'tank', origin: 'v', name: 'a' })
  await backend.deleteSnapshot({ pool: 'srv', name: 'a' })
  await backend.deleteSnapshot({ pool: 'tank', name: 'a' })
  t.deepEqual(
    pools.calls.map(([method]) => method),
    ['growPool', 'createSnapshot', 'deleteSnapshot']
  )
  t.deepEqual(
    tracked.calls.map(([method]) => method),
    ['growEra', 'beginSnapshot']
  )
  t.deepEqual(
    bases.calls.map(([method]) => method),
    ['dropBase']
  )
  t.deepEqual(deleted, ['srv/a'])
})
