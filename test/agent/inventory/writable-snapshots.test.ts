import test from 'ava'
import { writableSnapshots } from '../../../src/agent/inventory/writable-snapshots.ts'
import type { SurveyedDevice } from '../../../src/agent/node/survey.ts'

const device = (name: string, minor: number, readOnly: boolean, targetType: string, params: string) =>
  ({
    info: { name, uuid: '', major: 253, minor, readOnly },
    row: { startSector: 0, lengthSectors: 2048, targetType, params }
  }) as unknown as SurveyedDevice

const survey = [
  device('vg0-pool-tpool', 3, false, 'thin-pool', '253:1 253:2 128 0 0'),
  device('vg0-srv', 4, false, 'thin', '253:3 1'),
  device('vg0-monday', 5, false, 'thin', '253:3 2'),
  device('vg0-tuesday', 6, true, 'thin', '253:3 3'),
  device('vg0-other', 7, false, 'thin', '253:9 4')
]
const thin = (handle: string, kind: 'volume' | 'snapshot', thinId: number) => ({ handle, kind, thinId }) as never
const pool = (thins: never[]) => ({ name: 'vg0/pool', kind: 'lvm' as const, deviceName: 'vg0-pool-tpool', thins })

test('a snapshot with a device that can be written to is a warning, a volume and a read-only one are none', (t) => {
  const thins = [
    thin('vg0/srv', 'volume', 1),
    thin('vg0/monday', 'snapshot', 2),
    thin('vg0/tuesday', 'snapshot', 3),
    thin('vg0/of-another-pool', 'snapshot', 4)
  ]
  const [found, ...more] = writableSnapshots(survey, [pool(thins)])
  t.deepEqual(more, [])
  t.like(found, {
    severity: 'warning',
    kind: 'snapshot-writable',
    about: 'vg0/pool',
    command: 'lvchange -pr vg0/monday'
  })
  t.regex(found.what, /^vg0\/monday can be written to/)
})

test('several are one warning; nothing is said where device-mapper did not answer', (t) => {
  const thins = [thin('vg0/srv', 'snapshot', 1), thin('vg0/monday', 'snapshot', 2)]
  t.regex(writableSnapshots(survey, [pool(thins)])[0].what, /^vg0\/srv and 1 more can be written to/)
  t.deepEqual(writableSnapshots(undefined, [pool(thins)]), [])
})
